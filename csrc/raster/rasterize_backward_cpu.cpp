#include "raster/rasterize_backward.h"

#include "core/parallel.h"

namespace fastshape::cpu {

template <class T>
void rasterize_backward(const RasterizeBackward<T>& task) {
  const PixelCenters centers = pixel_centers(task.height, task.width);
  const int64_t rows_a_piece = 1 + 8192 / task.width;
  parallel_for(task.num_images * task.height, rows_a_piece, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t column = 0; column < task.width; ++column)
        write_pixel_gradient(task, centers, row / task.height, row % task.height, column);
  });
}

template void rasterize_backward<float>(const RasterizeBackward<float>&);
template void rasterize_backward<double>(const RasterizeBackward<double>&);

}  // namespace fastshape::cpu
