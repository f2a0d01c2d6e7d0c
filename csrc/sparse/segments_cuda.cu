#include "sparse/segments.h"

#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"
#include "core/elementwise.cuh"
#include "core/workspace.h"

namespace fastshape::cuda {
namespace {

constexpr const char* kOp = "make_segments";

struct SegmentsWorkspace {
  uint32_t *keys, *sorted_keys;  // (N,) segments
  uint32_t* rows;                // (N,)
  unsigned char* sort;
  size_t sort_bytes;
  size_t bytes;
};

SegmentsWorkspace workspace_of(void* begin, int64_t num_rows) {
  WorkspaceCutter cutter(begin);
  SegmentsWorkspace w{};
  w.keys = cutter.take<uint32_t>(num_rows);
  w.sorted_keys = cutter.take<uint32_t>(num_rows);
  w.rows = cutter.take<uint32_t>(num_rows);
  w.sort_bytes = device_sort_pairs_workspace_bytes<uint32_t>(kOp, num_rows);
  w.sort = cutter.take<unsigned char>(static_cast<int64_t>(w.sort_bytes));
  w.bytes = cutter.bytes();
  return w;
}

__global__ void keys_kernel(MakeSegments task, SegmentsWorkspace w) {
  const int64_t row = thread_index();
  if (row >= task.num_rows) return;
  w.keys[row] = static_cast<uint32_t>(segment_of(task, row));
  w.rows[row] = static_cast<uint32_t>(row);
}

// The first entry of segment s: by bisection, since segments may be empty.
__global__ void offsets_kernel(MakeSegments task, SegmentsWorkspace w) {
  const int64_t s = thread_index();
  if (s > task.num_segments) return;
  int64_t begin = 0, end = task.num_rows;
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (static_cast<int64_t>(w.sorted_keys[middle]) < s)
      begin = middle + 1;
    else
      end = middle;
  }
  task.offsets[s] = begin;
}

// Element (s, j) of the largest.
template <class T>
__device__ void reduce_max(const SegmentReduce<T>& task, int64_t s, int64_t j) {
  int32_t best = -1;
  typename Wide<T>::type value = 0;
  for (int64_t i = task.offsets[s]; i < task.offsets[s + 1]; ++i) {
    const int32_t row = task.order[i];
    const auto candidate = widen(task.values[task.width * row + j]);
    if (best < 0 || replaces(candidate, value)) best = row, value = candidate;
  }
  narrow(value, task.out + task.width * s + j);
  task.best[task.width * s + j] = best;
}

// A thread for an element, so that neighbors read neighbors.
template <class T>
__global__ void reduce_kernel(SegmentReduce<T> task) {
  const int64_t i = thread_index();
  if (i >= task.num_segments * task.width) return;
  const int64_t s = i / task.width, j = i % task.width;
  if (task.reduction == Reduction::max) return reduce_max(task, s, j);
  using W = typename Wide<T>::type;
  W sum = 0;
  const int64_t begin = task.offsets[s], end = task.offsets[s + 1];
  for (int64_t at = begin; at < end; ++at)
    sum += widen(task.values[task.width * task.order[at] + j]);
  const int64_t divisor = divisor_of(task.reduction, end - begin);
  narrow(sum / static_cast<W>(divisor < 1 ? 1 : divisor), task.out + i);
}

template <class T>
__global__ void gather_kernel(GatherSegments<T> task) {
  const int64_t i = thread_index();
  if (i >= task.num_rows * task.width) return;
  const int64_t row = i / task.width;
  task.out[i] = gather_element(task, row, task.index[row], i % task.width);
}

}  // namespace

size_t make_segments_workspace_bytes(int64_t num_rows) {
  return workspace_of(nullptr, num_rows).bytes;
}

void make_segments(const MakeSegments& task, void* workspace, cudaStream_t stream) {
  const SegmentsWorkspace w = workspace_of(workspace, task.num_rows);
  if (task.num_rows != 0) {
    launch(kOp, keys_kernel, blocks_for(task.num_rows), dim3(kBlock), 0, stream, task, w);
    int bits = 1;
    while (task.num_segments >> bits != 0) ++bits;
    device_sort_pairs<uint32_t>(kOp, w.sort, w.sort_bytes, w.keys, w.sorted_keys, w.rows,
                                reinterpret_cast<uint32_t*>(task.order), task.num_rows, stream, 0,
                                bits);
  }
  launch(kOp, offsets_kernel, blocks_for(task.num_segments + 1), dim3(kBlock), 0, stream, task, w);
}

template <class T>
void segment_reduce(const SegmentReduce<T>& task, cudaStream_t stream) {
  const int64_t n = task.num_segments * task.width;
  if (n == 0) return;
  launch("segment_reduce", reduce_kernel<T>, blocks_for(n), dim3(kBlock), 0, stream, task);
}

template <class T>
void gather_segments(const GatherSegments<T>& task, cudaStream_t stream) {
  const int64_t n = task.num_rows * task.width;
  if (n == 0) return;
  launch("gather_segments", gather_kernel<T>, blocks_for(n), dim3(kBlock), 0, stream, task);
}

#define FASTSHAPE_INSTANTIATE(T)                                          \
  template void segment_reduce<T>(const SegmentReduce<T>&, cudaStream_t); \
  template void gather_segments<T>(const GatherSegments<T>&, cudaStream_t);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
FASTSHAPE_INSTANTIATE(Float16)
FASTSHAPE_INSTANTIATE(BFloat16)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cuda
