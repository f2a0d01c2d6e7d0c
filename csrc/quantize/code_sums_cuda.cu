#include "core/block.cuh"
#include "core/device_algorithms.cuh"
#include "core/elementwise.cuh"
#include "core/workspace.h"
#include "quantize/code_sums.h"

namespace fastshape::cuda {
namespace {

// A stable sort by code leaves each code's rows in order; a warp for each code then adds them up,
// one component a lane.
struct SumsWorkspace {
  uint32_t *keys, *sorted_keys, *rows, *sorted_rows;
  unsigned char* sort;
  size_t sort_bytes;
  size_t bytes;
};

SumsWorkspace sums_workspace(void* begin, int64_t num_rows) {
  WorkspaceCutter cutter(begin);
  SumsWorkspace w{};
  w.keys = cutter.take<uint32_t>(num_rows);
  w.sorted_keys = cutter.take<uint32_t>(num_rows);
  w.rows = cutter.take<uint32_t>(num_rows);
  w.sorted_rows = cutter.take<uint32_t>(num_rows);
  w.sort_bytes = device_sort_pairs_workspace_bytes<uint32_t>("code_sums", num_rows);
  w.sort = cutter.take<unsigned char>(static_cast<int64_t>(w.sort_bytes));
  w.bytes = cutter.bytes();
  return w;
}

template <class T>
__global__ void keys_kernel(CodeSums<T> task, uint32_t* keys, uint32_t* rows) {
  const int64_t n = thread_index();
  if (n >= task.num_rows) return;
  const int64_t sum = sum_row(task, n);
  // What belongs nowhere goes behind all others.
  keys[n] = static_cast<uint32_t>(sum < 0 ? task.levels * task.num_codes : sum);
  rows[n] = static_cast<uint32_t>(n);
}

// The first place whose key is not below `key`.
__device__ __forceinline__ int64_t lower_bound(const uint32_t* keys, int64_t n, uint32_t key) {
  int64_t begin = 0, end = n;
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (keys[middle] < key)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

template <class T>
__global__ void sum_kernel(CodeSums<T> task, const uint32_t* keys, const uint32_t* rows) {
  const int64_t k = thread_index() / 32;
  if (k >= task.levels * task.num_codes) return;
  const auto key = static_cast<uint32_t>(k);
  const int64_t begin = lower_bound(keys, task.num_rows, key);
  const int64_t end = lower_bound(keys, task.num_rows, key + 1);
  const int lane = static_cast<int>(lane_id());
  if (lane == 0 && task.counts != nullptr) task.counts[k] = end - begin;
  for (int component = lane; component < task.dim; component += 32) {
    double total = 0.0;
    int64_t i = begin;
    for (; i + 4 <= end; i += 4) {  // loads first: only the additions wait for each other
      T value[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        value[j] = task.values[static_cast<int64_t>(rows[i + j]) * task.dim + component];
#pragma unroll
      for (int j = 0; j < 4; ++j) total += static_cast<double>(value[j]);
    }
    for (; i < end; ++i)
      total +=
          static_cast<double>(task.values[static_cast<int64_t>(rows[i]) * task.dim + component]);
    task.sums[k * task.dim + component] = static_cast<T>(total);
  }
}

int bits_for(int64_t most) {
  int bits = 1;
  while (bits < 32 && most >> bits != 0) ++bits;
  return bits;
}

}  // namespace

size_t code_sums_workspace_bytes(int64_t num_rows) {
  return sums_workspace(nullptr, num_rows).bytes;
}

template <class T>
void code_sums(const CodeSums<T>& task, void* workspace, cudaStream_t stream) {
  const char* op = "code_sums";
  const int64_t num_sums = task.levels * task.num_codes;
  if (num_sums == 0) return;
  const SumsWorkspace w = sums_workspace(workspace, task.num_rows);
  if (task.num_rows > 0) {
    launch(op, keys_kernel<T>, blocks_for(task.num_rows), dim3(kBlock), 0, stream, task, w.keys,
           w.rows);
    device_sort_pairs<uint32_t>(op, w.sort, w.sort_bytes, w.keys, w.sorted_keys, w.rows,
                                w.sorted_rows, task.num_rows, stream, 0, bits_for(num_sums));
  }
  launch(op, sum_kernel<T>, blocks_for(num_sums * 32), dim3(kBlock), 0, stream, task, w.sorted_keys,
         w.sorted_rows);
}

template void code_sums<float>(const CodeSums<float>&, void*, cudaStream_t);
template void code_sums<double>(const CodeSums<double>&, void*, cudaStream_t);

}  // namespace fastshape::cuda
