// The first face that each ray meets.
//
// The rule: of all faces that the line meets (triangle_hit) at t >= 0, the one with the smallest
// rounded t; ties go to the lowest face index. That does not depend on the hierarchy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "geometry/bvh.h"
#include "geometry/ray.h"

namespace fastshape {

template <class T>
struct CastRays {
  BvhView<T> bvh;
  const T* origins;     // (num_rays, 3)
  const T* directions;  // (num_rays, 3), of any length but zero
  int64_t num_rays;
  T* t;            // (num_rays,), in lengths of the direction; inf: nothing met; NaN: no ray
  int64_t* face;   // (num_rays,), -1 in both cases
  T* barycentric;  // (num_rays, 3), NaN in both cases
};

template <class T>
struct FirstHit {
  T t = Limits<T>::kMax;
  int64_t face = -1;
  TriangleHit<T> hit{};
};

template <class T>
FASTSHAPE_HOST_DEVICE void try_slot(const BvhView<T>& bvh, const Ray<T>& ray, int64_t slot,
                                    FirstHit<T>* first) {
  TriangleHit<T> hit;
  if (!triangle_hit(bvh, ray, slot, &hit) || !(hit.t >= T(0))) return;
  const int64_t face = bvh.face_index[slot];
  if (hit.t < first->t || (hit.t == first->t && (first->face < 0 || face < first->face))) {
    first->t = hit.t;
    first->face = face;
    first->hit = hit;
  }
}

template <class T>
FASTSHAPE_HOST_DEVICE void write_first_hit(const CastRays<T>& task, int64_t i, bool is_ray,
                                           const FirstHit<T>& first) {
  const bool found = is_ray && first.face >= 0;
  const T nan = not_a_number<T>();
  task.t[i] = found ? first.t : (is_ray ? infinity<T>() : nan);
  task.face[i] = found ? first.face : -1;
  task.barycentric[3 * i] = found ? first.hit.u : nan;
  task.barycentric[3 * i + 1] = found ? first.hit.v : nan;
  task.barycentric[3 * i + 2] = found ? first.hit.w : nan;
}

namespace cpu {
template <class T>
void cast_rays(const CastRays<T>& task);
}  // namespace cpu

namespace cuda {
size_t cast_rays_workspace_bytes(int64_t num_rays);
template <class T>
void cast_rays(const CastRays<T>& task, void* workspace, size_t workspace_bytes,
               cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
