// On CUDA: one thread for a voxel, over the views until they have decided.
#include "carving/depth_carve.h"
#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"

namespace fastshape::cuda {
namespace {

template <class T>
__global__ void carve_kernel(DepthCarve<T> task, int64_t* bad_row) {
  const int64_t i = thread_index();
  if (i >= task.voxels.num_voxels) return;
  const bool good = is_in_grid(extent(task), task.voxels, i);
  if (!good) atomicMin(reinterpret_cast<long long*>(bad_row), static_cast<long long>(i));
  task.mask[i] = good && is_kept(task, i);
}

}  // namespace

template <class T>
void depth_carve(const DepthCarve<T>& task, int64_t* bad_row, cudaStream_t stream) {
  if (task.voxels.num_voxels == 0) return;
  launch("depth_carve", carve_kernel<T>, blocks_for(task.voxels.num_voxels), dim3(kBlock), 0,
         stream, task, bad_row);
}

#define FASTSHAPE_INSTANTIATE(T) \
  template void depth_carve<T>(const DepthCarve<T>&, int64_t*, cudaStream_t);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cuda
