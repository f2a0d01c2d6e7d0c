#include "sparse/unique_voxels.h"

#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"
#include "core/elementwise.cuh"
#include "core/workspace.h"

namespace fastshape::cuda {
namespace {

constexpr const char* kOp = "unique_voxels";

struct UniqueWorkspace {
  uint64_t *keys, *sorted_keys;  // (N,)
  uint32_t* rows;                // (N,)
  int64_t* before;               // (N + 1,) distinct voxels before an entry, and at the end
  unsigned char *sort, *scan;
  size_t sort_bytes, scan_bytes;
  size_t bytes;
};

UniqueWorkspace workspace_of(void* begin, int64_t num_voxels) {
  WorkspaceCutter cutter(begin);
  UniqueWorkspace w{};
  w.keys = cutter.take<uint64_t>(num_voxels);
  w.sorted_keys = cutter.take<uint64_t>(num_voxels);
  w.rows = cutter.take<uint32_t>(num_voxels);
  w.before = cutter.take<int64_t>(num_voxels + 1);
  w.sort_bytes = device_sort_pairs_workspace_bytes<uint64_t>(kOp, num_voxels);
  w.sort = cutter.take<unsigned char>(static_cast<int64_t>(w.sort_bytes));
  w.scan_bytes = device_exclusive_scan_workspace_bytes<int64_t>(kOp, num_voxels + 1);
  w.scan = cutter.take<unsigned char>(static_cast<int64_t>(w.scan_bytes));
  w.bytes = cutter.bytes();
  return w;
}

__device__ bool is_head(const UniqueWorkspace& w, int64_t i) {
  return i == 0 || w.sorted_keys[i - 1] != w.sorted_keys[i];
}

template <class Index>
__global__ void keys_kernel(UniqueVoxels<Index> task, UniqueWorkspace w) {
  const int64_t i = thread_index();
  if (i >= task.num_voxels) return;
  w.keys[i] = coarse_key(task, i);
  w.rows[i] = static_cast<uint32_t>(i);
}

__global__ void heads_kernel(int64_t n, UniqueWorkspace w) {
  const int64_t i = thread_index();
  if (i <= n) w.before[i] = i < n && is_head(w, i);
}

template <class Index>
__global__ void index_kernel(UniqueVoxels<Index> task, UniqueWorkspace w, int64_t* num_unique) {
  const int64_t i = thread_index(), n = task.num_voxels;
  if (i == n) *num_unique = w.before[n];
  if (i < n) task.index[task.order[i]] = w.before[i] - (is_head(w, i) ? 0 : 1);
}

template <class Index>
__global__ void fill_kernel(UniqueVoxels<Index> task, UniqueVoxelsOut<Index> out) {
  const int64_t i = thread_index();
  if (i < task.num_voxels) write_unique(task, out, i);
}

}  // namespace

size_t unique_voxels_workspace_bytes(int64_t num_voxels) {
  return workspace_of(nullptr, num_voxels).bytes;
}

template <class Index>
void unique_voxels_count(const UniqueVoxels<Index>& task, void* workspace, int64_t* num_unique,
                         cudaStream_t stream) {
  const int64_t n = task.num_voxels;
  const UniqueWorkspace w = workspace_of(workspace, n);
  if (n != 0) {
    launch(kOp, keys_kernel<Index>, blocks_for(n), dim3(kBlock), 0, stream, task, w);
    device_sort_pairs<uint64_t>(kOp, w.sort, w.sort_bytes, w.keys, w.sorted_keys, w.rows,
                                reinterpret_cast<uint32_t*>(task.order), n, stream, 0,
                                key_bits(task) < 1 ? 1 : key_bits(task));
  }
  launch(kOp, heads_kernel, blocks_for(n + 1), dim3(kBlock), 0, stream, n, w);
  device_exclusive_scan<int64_t>(kOp, w.scan, w.scan_bytes, w.before, w.before, n + 1, stream);
  launch(kOp, index_kernel<Index>, blocks_for(n + 1), dim3(kBlock), 0, stream, task, w, num_unique);
}

template <class Index>
void unique_voxels_fill(const UniqueVoxels<Index>& task, const UniqueVoxelsOut<Index>& out,
                        cudaStream_t stream) {
  if (task.num_voxels == 0)
    fill_bytes(kOp, out.offsets, 0, sizeof(int64_t), stream);
  else
    launch(kOp, fill_kernel<Index>, blocks_for(task.num_voxels), dim3(kBlock), 0, stream, task,
           out);
}

#define FASTSHAPE_INSTANTIATE(Index)                                                    \
  template void unique_voxels_count<Index>(const UniqueVoxels<Index>&, void*, int64_t*, \
                                           cudaStream_t);                               \
  template void unique_voxels_fill<Index>(const UniqueVoxels<Index>&,                   \
                                          const UniqueVoxelsOut<Index>&, cudaStream_t);
FASTSHAPE_INSTANTIATE(int32_t)
FASTSHAPE_INSTANTIATE(int64_t)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cuda
