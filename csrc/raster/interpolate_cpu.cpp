#include "raster/interpolate.h"

#include "core/parallel.h"

namespace fastshape::cpu {

template <class T>
void interpolate(const Interpolate<T>& task) {
  parallel_for(task.num_images * task.image_pixels, 8192, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) interpolate_pixel(task, i);
  });
}

template <class T>
void interpolate_backward(const InterpolateBackward<T>& task) {
  parallel_for(task.num_images * task.image_pixels, 8192, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) interpolate_pixel_backward(task, i);
  });
}

template void interpolate<float>(const Interpolate<float>&);
template void interpolate<double>(const Interpolate<double>&);
template void interpolate_backward<float>(const InterpolateBackward<float>&);
template void interpolate_backward<double>(const InterpolateBackward<double>&);

}  // namespace fastshape::cpu
