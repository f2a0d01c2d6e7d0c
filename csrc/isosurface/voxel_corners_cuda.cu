#include "isosurface/voxel_corners.h"

#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"
#include "core/elementwise.cuh"
#include "core/workspace.h"

namespace fastshape::cuda {
namespace {

constexpr const char* kOp = "voxel_corners";

struct CornersWorkspace {
  uint64_t *keys, *sorted_keys;    // (8 N,)
  uint32_t *slots, *sorted_slots;  // (8 N,) 8 * voxel + k
  int64_t* first;                  // (8 N + 1,) distinct keys before, and at the end
  unsigned char *sort, *scan;
  size_t sort_bytes, scan_bytes;
  size_t bytes;
};

CornersWorkspace workspace_of(void* begin, int64_t num_voxels) {
  WorkspaceCutter cutter(begin);
  CornersWorkspace w{};
  const int64_t n = 8 * num_voxels;
  w.keys = cutter.take<uint64_t>(n);
  w.sorted_keys = cutter.take<uint64_t>(n);
  w.slots = cutter.take<uint32_t>(n);
  w.sorted_slots = cutter.take<uint32_t>(n);
  w.first = cutter.take<int64_t>(n + 1);
  w.sort_bytes = device_sort_pairs_workspace_bytes<uint64_t>(kOp, n);
  w.sort = cutter.take<unsigned char>(static_cast<int64_t>(w.sort_bytes));
  w.scan_bytes = device_exclusive_scan_workspace_bytes<int64_t>(kOp, n + 1);
  w.scan = cutter.take<unsigned char>(static_cast<int64_t>(w.scan_bytes));
  w.bytes = cutter.bytes();
  return w;
}

__global__ void keys_kernel(VoxelCorners task, CornersWorkspace w, VoxelCornersFound* found) {
  const int64_t i = thread_index();
  if (i >= task.num_voxels) return;
  if (!is_voxel(task, i))
    atomicMin(reinterpret_cast<unsigned long long*>(&found->bad_voxel),
              static_cast<unsigned long long>(i));
  const uint64_t key = voxel_key(task, i);
  for (int k = 0; k < 8; ++k) {
    w.keys[8 * i + k] = key + voxel_corner_step(task, k);
    w.slots[8 * i + k] = static_cast<uint32_t>(8 * i + k);
  }
}

__global__ void heads_kernel(int64_t n, CornersWorkspace w) {
  const int64_t i = thread_index();
  if (i > n) return;
  w.first[i] = i < n && (i == 0 || w.sorted_keys[i - 1] != w.sorted_keys[i]);
}

__global__ void found_kernel(int64_t num_voxels, CornersWorkspace w, VoxelCornersFound* found) {
  found->num_corners = w.first[8 * num_voxels];
  if (found->bad_voxel < 0) found->bad_voxel = num_voxels;
}

__global__ void fill_kernel(VoxelCorners task, CornersWorkspace w, VoxelCornersOut out) {
  const int64_t i = thread_index();
  if (i >= 8 * task.num_voxels) return;
  const bool head = i == 0 || w.sorted_keys[i - 1] != w.sorted_keys[i];
  const int64_t corner = w.first[i] - (head ? 0 : 1);
  out.index[w.sorted_slots[i]] = corner;
  if (head) write_corner(task, w.sorted_keys[i], corner, out);
}

}  // namespace

size_t voxel_corners_workspace_bytes(int64_t num_voxels) {
  return workspace_of(nullptr, num_voxels).bytes;
}

void voxel_corners_count(const VoxelCorners& task, void* workspace, VoxelCornersFound* found,
                         cudaStream_t stream) {
  const int64_t n = 8 * task.num_voxels;
  const CornersWorkspace w = workspace_of(workspace, task.num_voxels);
  fill_bytes(kOp, found, 0xff, sizeof(VoxelCornersFound), stream);
  if (n != 0) {
    launch(kOp, keys_kernel, blocks_for(task.num_voxels), dim3(kBlock), 0, stream, task, w, found);
    device_sort_pairs<uint64_t>(kOp, w.sort, w.sort_bytes, w.keys, w.sorted_keys, w.slots,
                                w.sorted_slots, n, stream);
  }
  launch(kOp, heads_kernel, blocks_for(n + 1), dim3(kBlock), 0, stream, n, w);
  device_exclusive_scan<int64_t>(kOp, w.scan, w.scan_bytes, w.first, w.first, n + 1, stream);
  launch(kOp, found_kernel, dim3(1), dim3(1), 0, stream, task.num_voxels, w, found);
}

void voxel_corners_fill(const VoxelCorners& task, const void* workspace, const VoxelCornersFound&,
                        const VoxelCornersOut& out, cudaStream_t stream) {
  if (task.num_voxels == 0) return;
  const CornersWorkspace w = workspace_of(const_cast<void*>(workspace), task.num_voxels);
  launch(kOp, fill_kernel, blocks_for(8 * task.num_voxels), dim3(kBlock), 0, stream, task, w, out);
}

}  // namespace fastshape::cuda
