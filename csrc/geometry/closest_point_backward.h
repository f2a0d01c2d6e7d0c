// The gradient of the distance to a mesh.
//
// By the envelope theorem the closest point may be held in place on its face: with r the offset
// from the point to it, d = |r| gives -r / |r| for the point, and r / |r| for the face's vertices,
// weighted by the barycentric coordinates. Where the distance is zero (or no face was found) the
// gradient is zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "geometry/vec3.h"

namespace fastshape {

template <class T>
struct ClosestPointBackward {
  const T* grad_distance;  // (num_points,)
  const T* points;         // (num_points, 3)
  const T* vertices;       // (num_vertices, 3)
  const int64_t* faces;    // (num_faces, 3)
  const int64_t* face;     // (num_points,), -1: none
  const T* barycentric;    // (num_points, 3)
  int64_t num_points;
  int64_t num_vertices;
  T* grad_points;    // (num_points, 3)
  T* grad_vertices;  // (num_vertices, 3): for each vertex its points' shares, summed in the order
                     // of the points, on every backend and for any number of threads
};

// grad_distance * r / |r|.
template <class T>
FASTSHAPE_HOST_DEVICE Vec3<T> distance_gradient(const ClosestPointBackward<T>& task, int64_t i) {
  const Vec3<T> zero{T(0), T(0), T(0)};
  const int64_t face = task.face[i];
  if (face < 0) return zero;
  const Vec3<T> p = load_point(task.points, i);
  const Vec3<T> a = load_point(task.vertices, task.faces[3 * face]);
  const Vec3<T> b = load_point(task.vertices, task.faces[3 * face + 1]);
  const Vec3<T> c = load_point(task.vertices, task.faces[3 * face + 2]);
  const Vec3<T> r =
      ((a - p) + task.barycentric[3 * i + 1] * (b - a)) + task.barycentric[3 * i + 2] * (c - a);
  const T length = square_root(dot(r, r));
  if (!(length > T(0))) return zero;
  return (task.grad_distance[i] / length) * r;
}

template <class T>
FASTSHAPE_HOST_DEVICE void store_vector(T* out, int64_t i, const Vec3<T>& v) {
  out[3 * i] = v.x;
  out[3 * i + 1] = v.y;
  out[3 * i + 2] = v.z;
}

namespace cpu {
template <class T>
void closest_point_backward(const ClosestPointBackward<T>& task);
}  // namespace cpu

namespace cuda {
size_t closest_point_backward_workspace_bytes(int64_t num_points);
template <class T>
void closest_point_backward(const ClosestPointBackward<T>& task, void* workspace,
                            size_t workspace_bytes, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
