// Attributes of vertices at pixels, and the gradient with respect to the weights.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "raster/vertex_sums.h"

namespace fastshape {

template <class T>
struct Interpolate {
  const T* attributes;  // (num_sets, num_vertices, channels)
  int64_t num_sets;     // num_images, or 1: all images show the same vertices
  int64_t num_vertices;
  const int64_t* faces;  // (num_faces, 3)
  int64_t num_faces;
  int64_t num_images, image_pixels;
  const int64_t* triangle_id;  // (num_images * image_pixels,)
  const T* barycentrics;       // (num_images * image_pixels, 3)
  int channels;
  T* values;  // (num_images * image_pixels, channels), 0 where there is nothing
};

template <class T>
struct InterpolateBackward {
  const T* attributes;  // as above
  int64_t num_sets;
  int64_t num_vertices;
  const int64_t* faces;
  int64_t num_faces;
  int64_t num_images, image_pixels;
  const int64_t* triangle_id;
  const T* grad_values;  // (num_images * image_pixels, channels)
  int channels;
  T* grad_barycentrics;  // (num_images * image_pixels, 3)
};

template <class T>
FASTSHAPE_HOST_DEVICE void interpolate_pixel(const Interpolate<T>& task, int64_t i) {
  T* values = task.values + i * task.channels;
  const int64_t* corners =
      pixel_corners(task.faces, task.num_faces, task.num_vertices, task.triangle_id[i]);
  if (corners == nullptr) {
    for (int c = 0; c < task.channels; ++c) values[c] = T(0);
    return;
  }
  const int64_t set = task.num_sets == 1 ? 0 : i / task.image_pixels;
  const T* attributes = task.attributes + set * task.num_vertices * task.channels;
  const T* p = attributes + corners[0] * task.channels;
  const T* q = attributes + corners[1] * task.channels;
  const T* r = attributes + corners[2] * task.channels;
  const T* weight = task.barycentrics + 3 * i;
  for (int c = 0; c < task.channels; ++c)
    values[c] = (weight[0] * p[c] + weight[1] * q[c]) + weight[2] * r[c];
}

template <class T>
FASTSHAPE_HOST_DEVICE void interpolate_pixel_backward(const InterpolateBackward<T>& task,
                                                      int64_t i) {
  T* grad = task.grad_barycentrics + 3 * i;
  const int64_t* corners =
      pixel_corners(task.faces, task.num_faces, task.num_vertices, task.triangle_id[i]);
  if (corners == nullptr) {
    for (int k = 0; k < 3; ++k) grad[k] = T(0);
    return;
  }
  const int64_t set = task.num_sets == 1 ? 0 : i / task.image_pixels;
  const T* attributes = task.attributes + set * task.num_vertices * task.channels;
  const T* value = task.grad_values + i * task.channels;
  for (int k = 0; k < 3; ++k) {
    const T* attribute = attributes + corners[k] * task.channels;
    double sum = 0.0;
    for (int c = 0; c < task.channels; ++c)
      sum += static_cast<double>(value[c]) * static_cast<double>(attribute[c]);
    grad[k] = static_cast<T>(sum);
  }
}

namespace cpu {
template <class T>
void interpolate(const Interpolate<T>& task);
template <class T>
void interpolate_backward(const InterpolateBackward<T>& task);
}  // namespace cpu

namespace cuda {
template <class T>
void interpolate(const Interpolate<T>& task, cudaStream_t stream);
template <class T>
void interpolate_backward(const InterpolateBackward<T>& task, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
