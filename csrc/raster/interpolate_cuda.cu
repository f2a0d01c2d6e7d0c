#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"
#include "raster/interpolate.h"

namespace fastshape::cuda {
namespace {

template <class T>
__global__ void interpolate_kernel(Interpolate<T> task) {
  const int64_t i = thread_index();
  if (i < task.num_images * task.image_pixels) interpolate_pixel(task, i);
}

template <class T>
__global__ void interpolate_backward_kernel(InterpolateBackward<T> task) {
  const int64_t i = thread_index();
  if (i < task.num_images * task.image_pixels) interpolate_pixel_backward(task, i);
}

}  // namespace

template <class T>
void interpolate(const Interpolate<T>& task, cudaStream_t stream) {
  const int64_t n = task.num_images * task.image_pixels;
  if (n != 0)
    launch("interpolate", interpolate_kernel<T>, blocks_for(n), dim3(kBlock), 0, stream, task);
}

template <class T>
void interpolate_backward(const InterpolateBackward<T>& task, cudaStream_t stream) {
  const int64_t n = task.num_images * task.image_pixels;
  if (n != 0)
    launch("interpolate_backward", interpolate_backward_kernel<T>, blocks_for(n), dim3(kBlock), 0,
           stream, task);
}

template void interpolate<float>(const Interpolate<float>&, cudaStream_t);
template void interpolate<double>(const Interpolate<double>&, cudaStream_t);
template void interpolate_backward<float>(const InterpolateBackward<float>&, cudaStream_t);
template void interpolate_backward<double>(const InterpolateBackward<double>&, cudaStream_t);

}  // namespace fastshape::cuda
