// The backward step of every interpolation: what pixels give to the vertices of their triangles.
//
// sums[v] = sum over the pixels whose triangle has the vertex v of weight * values[pixel], without
// atomics: the same bits on every run and for any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"

namespace fastshape {

template <class T>
struct VertexSums {
  const T* values;             // (num_images * image_pixels, channels)
  const T* weights;            // (num_images * image_pixels, 3)
  const int64_t* triangle_id;  // (num_images * image_pixels,), -1: nothing
  const int64_t* faces;        // (num_faces, 3)
  int64_t num_faces;
  int64_t num_images, image_pixels;
  int64_t num_sets;  // num_images, or 1: all images show the same vertices
  int64_t num_vertices;
  int channels;
  T* sums;  // (num_sets, num_vertices, channels)
};

// Null where the pixel shows nothing.
FASTSHAPE_HOST_DEVICE const int64_t* pixel_corners(const int64_t* faces, int64_t num_faces,
                                                   int64_t num_vertices, int64_t face) {
  if (face < 0 || face >= num_faces) return nullptr;
  const int64_t* corners = faces + 3 * face;
  for (int k = 0; k < 3; ++k)
    if (corners[k] < 0 || corners[k] >= num_vertices) return nullptr;
  return corners;
}

namespace cpu {
template <class T>
void vertex_sums(const VertexSums<T>& task);
}  // namespace cpu

namespace cuda {
size_t vertex_sums_workspace_bytes(int64_t num_pixels);
template <class T>
void vertex_sums(const VertexSums<T>& task, void* workspace, size_t workspace_bytes,
                 cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
