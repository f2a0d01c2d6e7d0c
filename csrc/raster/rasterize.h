// Which triangle each pixel shows, with the weights of its vertices and its depth.
//
// The rule: of all triangles that cover the pixel's center (triangle.h) with a depth z/w in [-1,
// 1], the one whose depth, rounded to 2^-32 of that range, is smallest; ties go to the lowest face.
// Both sides of a triangle are seen.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "raster/pixel.h"
#include "raster/triangle.h"

namespace fastshape {

template <class T>
struct Rasterize {
  const T* vertices;  // (num_sets, num_vertices, 4) x, y, z, w; one set may serve all images
  int64_t num_sets;
  int64_t num_vertices;
  const int64_t* faces;  // (num_faces, 3)
  int64_t num_faces;     // below 2^32 - 1
  const int64_t*
      face_offsets;  // (num_images + 1,): the faces of image i begin at [i]; null: all faces
  int64_t num_images, height, width;
  int64_t* triangle_id;  // (num_images, height, width), -1: nothing
  T* barycentrics;       // (..., 3), 0 where there is nothing
  T* depth;              // (...), 1
  T* w;                  // (...), 0
};

template <class T>
FASTSHAPE_HOST_DEVICE const T* image_vertices(const Rasterize<T>& task, int64_t image) {
  return task.vertices + (task.num_sets == 1 ? 0 : image * task.num_vertices * 4);
}

struct FaceRange {
  int64_t begin, end;
};

template <class T>
FASTSHAPE_HOST_DEVICE FaceRange image_faces(const Rasterize<T>& task, int64_t image) {
  if (task.face_offsets == nullptr) return {0, task.num_faces};
  const int64_t begin = task.face_offsets[image], end = task.face_offsets[image + 1];
  return {begin < 0 ? 0 : begin, end < task.num_faces ? end : task.num_faces};
}

// `key` is what the visibility buffer holds for the pixel.
template <class T>
FASTSHAPE_HOST_DEVICE void write_pixel(const Rasterize<T>& task, const PixelCenters& centers,
                                       int64_t image, int64_t row, int64_t column, uint64_t key) {
  const int64_t at = (image * task.height + row) * task.width + column;
  T* weights = task.barycentrics + 3 * at;
  if (key == kNothing) {
    task.triangle_id[at] = -1;
    weights[0] = weights[1] = weights[2] = T(0);
    task.depth[at] = T(1);
    task.w[at] = T(0);
    return;
  }
  const auto face = static_cast<int64_t>(key & 0xffffffffu);
  const PixelPoint p = pixel_point(image_vertices(task, image), task.faces + 3 * face,
                                   center_x(centers, column), center_y(centers, row));
  task.triangle_id[at] = face;
  for (int i = 0; i < 3; ++i) weights[i] = static_cast<T>(p.weight[i]);
  task.depth[at] = static_cast<T>(p.depth);
  task.w[at] = static_cast<T>(p.point_w);
}

namespace cpu {
template <class T>
void rasterize(const Rasterize<T>& task);
}  // namespace cpu

namespace cuda {
size_t rasterize_workspace_bytes(int64_t num_sets, int64_t num_vertices, int64_t num_images,
                                 int64_t num_faces, int64_t height, int64_t width, bool ragged);
template <class T>
void rasterize(const Rasterize<T>& task, void* workspace, size_t workspace_bytes,
               cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
