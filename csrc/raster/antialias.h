// Pixels at silhouettes, mixed with their neighbor beyond it by how far the silhouette reaches.
//
// Laine et al. 2020, "Modular Primitives for High-Performance Differentiable Rendering", section on
// analytic antialiasing: between two neighboring pixels that show different triangles, an edge of
// the nearer one that ends the surface there crosses the line between the two centers. Where it
// crosses, `reach` pixels from the nearer center, the surface is taken to end: beyond the middle it
// covers reach - 1/2 of the farther pixel, before it the farther one shows through 1/2 - reach of
// the nearer.
//
// Ours: the surface is followed from the nearer pixel's triangle through its neighbors, at most
// kMostSteps of them, until it ends or the other center is reached, so that silhouettes of
// triangles smaller than a pixel are found. And a steep silhouette is seen by pixels beside each
// other only, a flat one by those below each other, so that each moves every row or column it
// crosses once: the derivative of a picture's sum is that of the area.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "raster/pixel.h"
#include "raster/vertex_sums.h"

namespace fastshape {

constexpr int kMostSteps = 16;

// Centers lie up to a sub-pixel beyond the triangle that covers them.
constexpr double kReachMargin = 1.0 / 128.0;

template <class T>
struct AntialiasScene {
  const int64_t* triangle_id;  // (num_images, height, width)
  const T* depth;              // (num_images, height, width)
  const T* vertices;           // (num_sets, num_vertices, 4)
  int64_t num_sets;
  int64_t num_vertices;
  const int64_t* faces;  // (num_faces, 3)
  const int64_t* twins;  // (num_faces, 3): edge k, from corner k to the next, is edge t % 3 of face
                         // t / 3 too; -1: of no other
  int64_t num_faces;
  int64_t num_images, height, width;
};

template <class T>
struct Antialias {
  AntialiasScene<T> scene;
  const T* image;  // (num_images, height, width, channels)
  int channels;
  T* result;  // the same
};

template <class T>
struct AntialiasBackward {
  AntialiasScene<T> scene;
  const T* grad_result;  // (num_images, height, width, channels)
  const T* image;
  int channels;
  T* grad_image;     // (num_images, height, width, channels)
  T* grad_vertices;  // (num_sets, num_vertices, 4)
};

// A pixel and the one to its right (axis 0) or below it (axis 1).
struct PixelPair {
  int64_t image, row, column;
  int axis;
};

struct Silhouette {
  bool first_is_near;  // the surface that ends is the first pixel's
  double reach;        // from the nearer center, in pixels
  int64_t vertex[2];   // of the edge
  double share[2];     // what a vertex has of the crossing
  double gradient[3];  // of reach with respect to x, y, w of the crossing, before the shares
};

template <class T>
FASTSHAPE_HOST_DEVICE int64_t pixel_index(const AntialiasScene<T>& scene, const PixelPair& pair,
                                          bool first) {
  const int64_t row = pair.row + (pair.axis == 1 && !first ? 1 : 0);
  const int64_t column = pair.column + (pair.axis == 0 && !first ? 1 : 0);
  return (pair.image * scene.height + row) * scene.width + column;
}

template <class T>
FASTSHAPE_HOST_DEVICE bool is_pair(const AntialiasScene<T>& scene, const PixelPair& pair) {
  return pair.row >= 0 && pair.column >= 0 && pair.row + (pair.axis == 1 ? 1 : 0) < scene.height &&
         pair.column + (pair.axis == 0 ? 1 : 0) < scene.width;
}

// A vertex along the line between the two centers (u), across it (v), and w.
struct LineVertex {
  double u, v, w;
};

template <class T>
FASTSHAPE_HOST_DEVICE LineVertex line_vertex(const T* vertices, int64_t vertex, int axis) {
  const T* p = vertices + 4 * vertex;
  const auto x = static_cast<double>(p[0]), y = static_cast<double>(p[1]);
  return {axis == 0 ? x : y, axis == 0 ? y : x, static_cast<double>(p[3])};
}

FASTSHAPE_HOST_DEVICE double volume_of(const LineVertex& a, const LineVertex& b,
                                       const LineVertex& c) {
  return (a.u * (b.v * c.w - b.w * c.v) + a.v * (b.w * c.u - b.u * c.w)) +
         a.w * (b.u * c.v - b.v * c.u);
}

// Where the surface that the nearer pixel of a pair shows ends between the two centers.
template <class T>
FASTSHAPE_HOST_DEVICE bool find_silhouette(const AntialiasScene<T>& scene,
                                           const PixelCenters& centers, const PixelPair& pair,
                                           Silhouette* s) {
  if (!is_pair(scene, pair)) return false;
  const int64_t first = pixel_index(scene, pair, true), second = pixel_index(scene, pair, false);
  const int64_t first_id = scene.triangle_id[first], second_id = scene.triangle_id[second];
  if (first_id == second_id) return false;
  s->first_is_near =
      second_id < 0 ||
      (first_id >= 0 && (scene.depth[first] < scene.depth[second] ||
                         (scene.depth[first] == scene.depth[second] && first_id < second_id)));

  const int axis = pair.axis;
  const int64_t near_row = pair.row + (axis == 1 && !s->first_is_near ? 1 : 0);
  const int64_t near_column = pair.column + (axis == 0 && !s->first_is_near ? 1 : 0);
  const double x = center_x(centers, near_column), y = center_y(centers, near_row);
  const double from = axis == 0 ? x : y, line = axis == 0 ? y : x;
  // Pixels for a unit of u; rows run against y.
  const double pixels =
      axis == 0 ? 0.5 * static_cast<double>(scene.width) : -0.5 * static_cast<double>(scene.height);
  const double along = s->first_is_near ? pixels : -pixels;
  const T* vertices =
      scene.vertices + (scene.num_sets == 1 ? 0 : pair.image * scene.num_vertices * 4);

  int64_t face = s->first_is_near ? first_id : second_id;
  int entry = -1;
  double showing = 0.0;  // of the first face, as the present one is turned
  for (int step = 0; step < kMostSteps; ++step) {
    if (face == (s->first_is_near ? second_id : first_id)) return false;  // all one surface
    const int64_t* corners = pixel_corners(scene.faces, scene.num_faces, scene.num_vertices, face);
    if (corners == nullptr) return false;
    LineVertex v[3];
    double side[3];
    for (int k = 0; k < 3; ++k) {
      v[k] = line_vertex(vertices, corners[k], axis);
      side[k] = v[k].v - line * v[k].w;
    }
    // The line leaves the face through one of the edges that it crosses.
    int edge = -1;
    double share = 0.0, w = 0.0, position = 0.0;
    for (int k = 0; k < 3; ++k) {
      const int next = k == 2 ? 0 : k + 1;
      if (k == entry || (side[k] > 0.0) == (side[next] > 0.0)) continue;
      const double t = side[k] / (side[k] - side[next]);
      const double edge_w = v[k].w + t * (v[next].w - v[k].w);
      if (!(edge_w > 0.0)) continue;
      const double u = (v[k].u + t * (v[next].u - v[k].u)) / edge_w;
      const double reach = along * (u - from);
      if (edge >= 0 && !(reach > s->reach)) continue;
      edge = k;
      share = t;
      w = edge_w;
      position = u;
      s->reach = reach;
    }
    if (edge < 0 || !(s->reach <= 1.0 + kReachMargin)) return false;
    const int end = edge == 2 ? 0 : edge + 1;
    const int64_t twin = scene.twins[3 * face + edge];
    const int64_t* beyond =
        twin < 0 ? nullptr
                 : pixel_corners(scene.faces, scene.num_faces, scene.num_vertices, twin / 3);
    if (beyond != nullptr) {
      // The surface goes on where the next face shows the side that the first one shows. Asking the
      // last face instead would lose the side at one that is seen edge on.
      if (step == 0) showing = volume_of(v[0], v[1], v[2]);
      const bool turned = beyond[twin % 3] != corners[end];
      const LineVertex next[3] = {line_vertex(vertices, beyond[0], axis),
                                  line_vertex(vertices, beyond[1], axis),
                                  line_vertex(vertices, beyond[2], axis)};
      const double shown = volume_of(next[0], next[1], next[2]);
      if (turned) showing = -showing;
      if (showing * shown > 0.0) {
        face = twin / 3;
        entry = static_cast<int>(twin % 3);
        continue;
      }
    }
    if (!(s->reach >= -kReachMargin)) return false;
    // The edge's line is a u + b v + c w = 0; compared in pixels.
    const double a = v[edge].v * v[end].w - v[edge].w * v[end].v;
    const double b = v[edge].w * v[end].u - v[edge].u * v[end].w;
    const double steep = magnitude(a) * static_cast<double>(axis == 0 ? scene.height : scene.width);
    const double flat = magnitude(b) * static_cast<double>(axis == 0 ? scene.width : scene.height);
    if (axis == 0 ? steep < flat : steep <= flat) return false;
    const double slope =
        ((v[end].u - v[edge].u) - position * (v[end].w - v[edge].w)) / (side[edge] - side[end]);
    const double factor = along / w;
    s->vertex[0] = corners[edge];
    s->vertex[1] = corners[end];
    s->share[0] = 1.0 - share;
    s->share[1] = share;
    s->gradient[0] = factor * (axis == 0 ? 1.0 : slope);
    s->gradient[1] = factor * (axis == 0 ? slope : 1.0);
    s->gradient[2] = -factor * (position + line * slope);
    return true;
  }
  return false;
}

// Which pixel of the pair takes from the other, and how much of it; nothing where no surface ends.
struct Mixing {
  bool found, into_first;
  double amount;
};

FASTSHAPE_HOST_DEVICE Mixing mixing(const Silhouette& s) {
  const bool into_far = s.reach > 0.5;
  return {true, into_far != s.first_is_near, into_far ? s.reach - 0.5 : 0.5 - s.reach};
}

template <class T>
FASTSHAPE_HOST_DEVICE Mixing find_mixing(const AntialiasScene<T>& scene,
                                         const PixelCenters& centers, const PixelPair& pair) {
  Silhouette s;
  return find_silhouette(scene, centers, pair, &s) ? mixing(s) : Mixing{false, false, 0.0};
}

// The four pairs that a pixel belongs to: with its right, its lower, its left, its upper neighbor.
// In the first two it is the first.
FASTSHAPE_HOST_DEVICE PixelPair pair_of(int64_t image, int64_t row, int64_t column, int number) {
  const int axis = number & 1;
  const int64_t back = number >> 1;
  return {image, row - (axis == 1 ? back : 0), column - (axis == 0 ? back : 0), axis};
}

template <class T>
FASTSHAPE_HOST_DEVICE void antialias_pixel(const Antialias<T>& task, int64_t image, int64_t row,
                                           int64_t column, const Mixing* mixings) {
  const int64_t here = (image * task.scene.height + row) * task.scene.width + column;
  T* result = task.result + here * task.channels;
  const T* own = task.image + here * task.channels;
  for (int c = 0; c < task.channels; ++c) result[c] = own[c];
  for (int number = 0; number < 4; ++number) {
    const bool first = number < 2;
    if (!mixings[number].found || mixings[number].into_first != first) continue;
    const PixelPair pair = pair_of(image, row, column, number);
    const T* other = task.image + pixel_index(task.scene, pair, !first) * task.channels;
    const T amount = static_cast<T>(mixings[number].amount);
    for (int c = 0; c < task.channels; ++c) result[c] += amount * (other[c] - own[c]);
  }
}

template <class T>
FASTSHAPE_HOST_DEVICE void antialias_pixel_backward(const AntialiasBackward<T>& task, int64_t image,
                                                    int64_t row, int64_t column,
                                                    const Mixing* mixings) {
  const int64_t here = (image * task.scene.height + row) * task.scene.width + column;
  T* grad = task.grad_image + here * task.channels;
  const T* own = task.grad_result + here * task.channels;
  for (int c = 0; c < task.channels; ++c) grad[c] = own[c];
  for (int number = 0; number < 4; ++number) {
    const bool first = number < 2;
    if (!mixings[number].found) continue;
    const PixelPair pair = pair_of(image, row, column, number);
    const T* other = task.grad_result + pixel_index(task.scene, pair, !first) * task.channels;
    const T amount = static_cast<T>(mixings[number].amount);
    for (int c = 0; c < task.channels; ++c)
      grad[c] += mixings[number].into_first == first ? -(amount * own[c]) : amount * other[c];
  }
}

// The gradient with respect to the pair's reach: one formula on both sides of the middle.
template <class T>
FASTSHAPE_HOST_DEVICE double reach_gradient(const AntialiasBackward<T>& task, const PixelPair& pair,
                                            const Silhouette& s) {
  const int64_t near = pixel_index(task.scene, pair, s.first_is_near);
  const int64_t far = pixel_index(task.scene, pair, !s.first_is_near);
  const int64_t into = s.reach > 0.5 ? far : near;
  double sum = 0.0;
  for (int c = 0; c < task.channels; ++c) {
    const double step = static_cast<double>(task.image[near * task.channels + c]) -
                        static_cast<double>(task.image[far * task.channels + c]);
    sum += static_cast<double>(task.grad_result[into * task.channels + c]) * step;
  }
  return sum;
}

namespace cpu {
template <class T>
void antialias(const Antialias<T>& task);
template <class T>
void antialias_backward(const AntialiasBackward<T>& task);
}  // namespace cpu

namespace cuda {
template <class T>
void antialias(const Antialias<T>& task, cudaStream_t stream);
size_t antialias_backward_workspace_bytes(int64_t num_pixels);
template <class T>
void antialias_backward(const AntialiasBackward<T>& task, void* workspace, size_t workspace_bytes,
                        cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
