#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"
#include "raster/rasterize_backward.h"

namespace fastshape::cuda {
namespace {

template <class T>
__global__ void rasterize_backward_kernel(RasterizeBackward<T> task) {
  const int64_t i = thread_index();
  const int64_t row = i / task.width;
  if (row < task.num_images * task.height)
    write_pixel_gradient(task, pixel_centers(task.height, task.width), row / task.height,
                         row % task.height, i % task.width);
}

}  // namespace

template <class T>
void rasterize_backward(const RasterizeBackward<T>& task, cudaStream_t stream) {
  const int64_t n = task.num_images * task.height * task.width;
  if (n != 0)
    launch("rasterize_backward", rasterize_backward_kernel<T>, blocks_for(n), dim3(kBlock), 0,
           stream, task);
}

template void rasterize_backward<float>(const RasterizeBackward<float>&, cudaStream_t);
template void rasterize_backward<double>(const RasterizeBackward<double>&, cudaStream_t);

}  // namespace fastshape::cuda
