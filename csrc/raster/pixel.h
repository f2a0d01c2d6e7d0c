// One pixel of one triangle: the weights of its vertices, and how they follow the vertices.
//
// With the pixel's center p = (x, y, 1) in the frame of clip coordinates and M the matrix whose
// columns are the vertices' (x, y, w), the point that is seen has the weights M^-1 p, brought to
// sum
// 1. Shifting x and y by the center's before the products keeps them accurate, and everything is
// computed in doubles.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "raster/triangle.h"

namespace fastshape {

// The centers of an image's pixels lie at -1 + 1/width, ... 1 - 1/width; row 0 is at the top.
struct PixelCenters {
  double step_x, step_y;
};

FASTSHAPE_HOST_DEVICE PixelCenters pixel_centers(int64_t height, int64_t width) {
  return {1.0 / static_cast<double>(width), 1.0 / static_cast<double>(height)};
}
FASTSHAPE_HOST_DEVICE double center_x(const PixelCenters& centers, int64_t column) {
  return static_cast<double>(2 * column + 1) * centers.step_x - 1.0;
}
FASTSHAPE_HOST_DEVICE double center_y(const PixelCenters& centers, int64_t row) {
  return 1.0 - static_cast<double>(2 * row + 1) * centers.step_y;
}

struct PixelPoint {
  double x[3], y[3];  // of the vertices, from the pixel's center, times w
  double z[3], w[3];
  double weight[3];  // not negative, sum 1
  bool held[3];      // weight 0 because the center lies beyond the opposite edge
  double depth;      // z / w of the point
  double point_w, over_w;
  double volume;  // of the three vertices, with the sign of the weights taken out; 0: edge on
};

// Vertices rounded to sub-pixels cover centers that lie beyond the edge by as little: such a weight
// is held at 0. A triangle seen edge on gives each vertex a third.
template <class T>
FASTSHAPE_HOST_DEVICE PixelPoint pixel_point(const T* vertices, const int64_t* corners, double at_x,
                                             double at_y) {
  PixelPoint p;
  for (int i = 0; i < 3; ++i) {
    const ClipVertex v = load_clip(vertices + 4 * corners[i]);
    p.x[i] = v.x - at_x * v.w;
    p.y[i] = v.y - at_y * v.w;
    p.z[i] = v.z;
    p.w[i] = v.w;
  }
  double e[3] = {p.x[1] * p.y[2] - p.y[1] * p.x[2], p.x[2] * p.y[0] - p.y[2] * p.x[0],
                 p.x[0] * p.y[1] - p.y[0] * p.x[1]};
  p.volume = (e[0] * p.w[0] + e[1] * p.w[1]) + e[2] * p.w[2];
  const double sign = (e[0] + e[1]) + e[2] < 0.0 ? -1.0 : 1.0;
  double total = 0.0;
  for (int i = 0; i < 3; ++i) {
    e[i] = sign * e[i];
    p.held[i] = e[i] < 0.0;
    if (p.held[i]) e[i] = 0.0;
    total += e[i];
  }
  const bool proper = total > 0.0 && is_finite_number(total);
  const double share = 1.0 / total;
  for (int i = 0; i < 3; ++i) p.weight[i] = proper ? e[i] * share : 1.0 / 3.0;
  if (!proper) p.volume = 0.0;
  const double z = (p.weight[0] * p.z[0] + p.weight[1] * p.z[1]) + p.weight[2] * p.z[2];
  p.point_w = (p.weight[0] * p.w[0] + p.weight[1] * p.w[1]) + p.weight[2] * p.w[2];
  p.over_w = 1.0 / p.point_w;
  p.depth = z * p.over_w;
  return p;
}

// The gradient with respect to the point's vertices: weight[j] times this for vertex j. x, y, z, w.
//
// For dM the weights u = M^-1 p change by -M^-1 dM u, so a gradient h of u is -(M^-T h) u^T of M:
// one vector for the pixel. A weight that is held takes no part.
FASTSHAPE_HOST_DEVICE void pixel_gradient(const PixelPoint& p, const double* grad_weights,
                                          double grad_depth, double grad_w, double at_x,
                                          double at_y, double* gradient) {
  double g[3], mean = 0.0;
  for (int i = 0; i < 3; ++i) {
    g[i] =
        (grad_weights[i] + grad_depth * p.over_w * (p.z[i] - p.depth * p.w[i])) + grad_w * p.w[i];
    mean += p.weight[i] * g[i];
  }
  double x = 0.0, y = 0.0;
  const double share = 1.0 / p.volume;
  if (is_finite_number(share)) {
    for (int i = 0; i < 3; ++i) {
      if (p.held[i]) continue;
      const int j = i == 2 ? 0 : i + 1, k = j == 2 ? 0 : j + 1;
      x -= (g[i] - mean) * (p.y[j] * p.w[k] - p.w[j] * p.y[k]);
      y -= (g[i] - mean) * (p.w[j] * p.x[k] - p.x[j] * p.w[k]);
    }
    x *= share;
    y *= share;
  }
  gradient[0] = x;
  gradient[1] = y;
  gradient[2] = grad_depth * p.over_w;
  gradient[3] = (grad_w - grad_depth * p.over_w * p.depth) - (at_x * x + at_y * y);
}

}  // namespace fastshape
