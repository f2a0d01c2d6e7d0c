#include "isosurface/corner_mean.h"

#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"
#include "core/elementwise.cuh"
#include "core/workspace.h"

namespace fastshape::cuda {
namespace {

constexpr const char* kOp = "corner_mean";
constexpr uint64_t kNowhere = ~uint64_t{0};

struct MeanWorkspace {
  uint64_t *keys, *sorted_keys;    // (8 N,) corners
  uint32_t *slots, *sorted_slots;  // (8 N,)
  unsigned char* sort;
  size_t sort_bytes;
  size_t bytes;
};

MeanWorkspace workspace_of(void* begin, int64_t num_voxels) {
  WorkspaceCutter cutter(begin);
  MeanWorkspace w{};
  const int64_t n = 8 * num_voxels;
  w.keys = cutter.take<uint64_t>(n);
  w.sorted_keys = cutter.take<uint64_t>(n);
  w.slots = cutter.take<uint32_t>(n);
  w.sorted_slots = cutter.take<uint32_t>(n);
  w.sort_bytes = device_sort_pairs_workspace_bytes<uint64_t>(kOp, n);
  w.sort = cutter.take<unsigned char>(static_cast<int64_t>(w.sort_bytes));
  w.bytes = cutter.bytes();
  return w;
}

template <class T>
__global__ void keys_kernel(CornerMean<T> task, MeanWorkspace w) {
  const int64_t slot = thread_index();
  if (slot >= 8 * task.num_voxels) return;
  const int64_t corner = task.index[slot];
  w.keys[slot] =
      corner >= 0 && corner < task.num_corners ? static_cast<uint64_t>(corner) : kNowhere;
  w.slots[slot] = static_cast<uint32_t>(slot);
}

// Each corner's run in the sorted list, by the thread of its first entry.
template <class T>
__global__ void means_kernel(CornerMean<T> task, MeanWorkspace w) {
  const int64_t i = thread_index(), n = 8 * task.num_voxels;
  if (i >= n) return;
  const uint64_t key = w.sorted_keys[i];
  if (key == kNowhere || (i > 0 && w.sorted_keys[i - 1] == key)) return;
  const int64_t corner = static_cast<int64_t>(key);
  for (int64_t at = i; at < n && w.sorted_keys[at] == key; ++at)
    add_to_mean(task, w.sorted_slots[at], corner);
  finish_mean(task, corner);
}

}  // namespace

size_t corner_mean_workspace_bytes(int64_t num_voxels) {
  return workspace_of(nullptr, num_voxels).bytes;
}

template <class T>
void corner_mean(const CornerMean<T>& task, void* workspace, size_t workspace_bytes,
                 cudaStream_t stream) {
  const MeanWorkspace w = workspace_of(workspace, task.num_voxels);
  FASTSHAPE_CHECK_VALUE(workspace_bytes >= w.bytes, kOp, ": the workspace has ", workspace_bytes,
                        " bytes, ", w.bytes, " are needed");
  const int64_t n = 8 * task.num_voxels;
  fill_bytes(kOp, task.mean, 0, static_cast<size_t>(task.num_corners * task.width) * sizeof(T),
             stream);
  fill_bytes(kOp, task.counts, 0, static_cast<size_t>(task.num_corners) * sizeof(int64_t), stream);
  if (n == 0) return;
  launch(kOp, keys_kernel<T>, blocks_for(n), dim3(kBlock), 0, stream, task, w);
  device_sort_pairs<uint64_t>(kOp, w.sort, w.sort_bytes, w.keys, w.sorted_keys, w.slots,
                              w.sorted_slots, n, stream);
  launch(kOp, means_kernel<T>, blocks_for(n), dim3(kBlock), 0, stream, task, w);
}

template void corner_mean<float>(const CornerMean<float>&, void*, size_t, cudaStream_t);
template void corner_mean<double>(const CornerMean<double>&, void*, size_t, cudaStream_t);

}  // namespace fastshape::cuda
