// The gradient of a pixel's weights and depth with respect to its triangle's vertices.
//
// For vertex j it is the weight of j times one vector of the pixel (pixel.h), which is written
// here; vertex_sums.h adds them up. Which triangle a pixel shows is held.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "raster/pixel.h"
#include "raster/vertex_sums.h"

namespace fastshape {

template <class T>
struct RasterizeBackward {
  const T* vertices;  // (num_sets, num_vertices, 4)
  int64_t num_sets;
  int64_t num_vertices;
  const int64_t* faces;  // (num_faces, 3)
  int64_t num_faces;
  int64_t num_images, height, width;
  const int64_t* triangle_id;  // (num_images, height, width)
  const T* grad_barycentrics;  // (..., 3), or null: zero
  const T* grad_depth;         // (...), or null
  const T* grad_w;             // (...), or null
  T* gradients;                // (..., 4)
};

template <class T>
FASTSHAPE_HOST_DEVICE void write_pixel_gradient(const RasterizeBackward<T>& task,
                                                const PixelCenters& centers, int64_t image,
                                                int64_t row, int64_t column) {
  const int64_t i = (image * task.height + row) * task.width + column;
  T* gradients = task.gradients + 4 * i;
  const int64_t* corners =
      pixel_corners(task.faces, task.num_faces, task.num_vertices, task.triangle_id[i]);
  double g[4] = {0.0, 0.0, 0.0, 0.0};
  if (corners != nullptr) {
    const T* vertices = task.vertices + (task.num_sets == 1 ? 0 : image * task.num_vertices * 4);
    const double x = center_x(centers, column), y = center_y(centers, row);
    const PixelPoint p = pixel_point(vertices, corners, x, y);
    double weights[3] = {0.0, 0.0, 0.0};
    if (task.grad_barycentrics != nullptr)
      for (int k = 0; k < 3; ++k)
        weights[k] = static_cast<double>(task.grad_barycentrics[3 * i + k]);
    pixel_gradient(p, weights,
                   task.grad_depth == nullptr ? 0.0 : static_cast<double>(task.grad_depth[i]),
                   task.grad_w == nullptr ? 0.0 : static_cast<double>(task.grad_w[i]), x, y, g);
  }
  for (int k = 0; k < 4; ++k) gradients[k] = static_cast<T>(g[k]);
}

namespace cpu {
template <class T>
void rasterize_backward(const RasterizeBackward<T>& task);
}  // namespace cpu

namespace cuda {
template <class T>
void rasterize_backward(const RasterizeBackward<T>& task, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
