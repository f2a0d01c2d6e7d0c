#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"
#include "sparse/voxel_hash.h"

namespace fastshape::cuda {
namespace {

constexpr const char* kOp = "voxel_hash";

template <class Index>
__global__ void insert_kernel(VoxelHash<Index> task, unsigned long long* duplicate) {
  const int64_t i = thread_index();
  if (i >= task.num_voxels) return;
  const int row = static_cast<int>(i);
  const Voxel voxel = voxel_at(task.coords, i);
  for (uint64_t slot = first_slot(voxel, task.num_slots);; slot = next_slot(slot, task.num_slots)) {
    int old = atomicCAS(task.slots + slot, kNoRow, row);
    if (old == kNoRow) return;
    if (!is_voxel_at(task.coords, old, voxel)) continue;
    old = atomicMin(task.slots + slot, row);
    atomicMin(duplicate, static_cast<unsigned long long>(old < row ? row : old));
    return;
  }
}

}  // namespace

template <class Index>
void voxel_hash(const VoxelHash<Index>& task, int64_t* duplicate, cudaStream_t stream) {
  fill_bytes(kOp, task.slots, 0xff, static_cast<size_t>(task.num_slots) * sizeof(int32_t), stream);
  fill_bytes(kOp, duplicate, 0xff, sizeof(int64_t), stream);
  if (task.num_voxels == 0) return;
  launch(kOp, insert_kernel<Index>, blocks_for(task.num_voxels), dim3(kBlock), 0, stream, task,
         reinterpret_cast<unsigned long long*>(duplicate));
}

template void voxel_hash<int32_t>(const VoxelHash<int32_t>&, int64_t*, cudaStream_t);
template void voxel_hash<int64_t>(const VoxelHash<int64_t>&, int64_t*, cudaStream_t);

}  // namespace fastshape::cuda
