// The closest point of a mesh.
//
// The rule: of all faces with finite vertices, the one whose rounded squared distance
// (closest_on_triangle, in the precision of the mesh) is smallest; ties go to the lowest face
// index. That is a property of the mesh and the point alone: the hierarchy may only skip faces that
// are farther than the best one, hence the slack in the bound.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "geometry/bvh.h"
#include "geometry/vec3.h"

namespace fastshape {

template <class Real>
struct ClosestOnTriangle {
  Real distance2;
  Real v, w;  // barycentric coordinates of b and c
};

// One end of a segment to the other: t in [0, 1], and the offset from the query. The ends are taken
// as they are, so all faces around a vertex give the same distance to it, to the bit.
template <class Real>
FASTSHAPE_HOST_DEVICE Real closest_on_segment(const Vec3<Real>& pa, const Vec3<Real>& pb,
                                              const Vec3<Real>& ab, Vec3<Real>* offset) {
  Real t = -dot(pa, ab) / dot(ab, ab);
  t = select(t > Real(0), t, Real(0));  // also where ab is zero and t is not a number
  const auto beyond = t >= Real(1);
  t = select(beyond, Real(1), t);
  *offset = select(beyond, pb, pa + t * ab);
  return t;
}

// Ericson, Real-Time Collision Detection, 5.1.5, solves this by regions of the plane; a sliver's
// plane is noise, so here every edge is tried and the plane last. Each candidate is a point of the
// triangle, so a badly placed one costs nothing: the smallest distance wins.
template <class Real>
FASTSHAPE_HOST_DEVICE ClosestOnTriangle<Real> closest_on_triangle(const Vec3<Real>& p,
                                                                  const Vec3<Real>& a,
                                                                  const Vec3<Real>& b,
                                                                  const Vec3<Real>& c) {
  const Vec3<Real> pa = a - p, pb = b - p, pc = c - p;
  const Vec3<Real> ab = b - a, ac = c - a, bc = c - b;
  Vec3<Real> offset;

  ClosestOnTriangle<Real> best;
  best.v = closest_on_segment(pa, pb, ab, &offset);
  best.w = Real(0);
  best.distance2 = dot(offset, offset);

  Real t = closest_on_segment(pa, pc, ac, &offset);
  Real distance2 = dot(offset, offset);
  auto closer = distance2 < best.distance2;
  best.distance2 = select(closer, distance2, best.distance2);
  best.v = select(closer, Real(0), best.v);
  best.w = select(closer, t, best.w);

  t = closest_on_segment(pb, pc, bc, &offset);
  distance2 = dot(offset, offset);
  closer = distance2 < best.distance2;
  best.distance2 = select(closer, distance2, best.distance2);
  best.v = select(closer, Real(1) - t, best.v);
  best.w = select(closer, t, best.w);

  const Vec3<Real> normal = cross(ab, ac);
  const Real scale = Real(1) / dot(normal, normal);
  const Real v = dot(cross(ac, pa), normal) * scale;
  const Real w = dot(cross(pa, ab), normal) * scale;
  offset = (pa + v * ab) + w * ac;
  distance2 = dot(offset, offset);
  closer = (v >= Real(0)) & (w >= Real(0)) & (v + w <= Real(1)) & (distance2 < best.distance2);
  best.distance2 = select(closer, distance2, best.distance2);
  best.v = select(closer, v, best.v);
  best.w = select(closer, w, best.w);
  return best;
}

// A lower bound of the exact squared distance to the box, up to a few roundings.
template <class Real>
FASTSHAPE_HOST_DEVICE Real box_distance2(const Vec3<Real>& p, const Vec3<Real>& low,
                                         const Vec3<Real>& high) {
  const Vec3<Real> d{larger(larger(low.x - p.x, p.x - high.x), Real(0)),
                     larger(larger(low.y - p.y, p.y - high.y), Real(0)),
                     larger(larger(low.z - p.z, p.z - high.z), Real(0))};
  return dot(d, d);
}

// Boxes beyond this cannot hold a face at `distance2` or nearer. Errors of closest_on_triangle that
// are relative to the distance; those relative to the triangle's size are in its box.
template <class T>
FASTSHAPE_HOST_DEVICE T search_limit(T distance2) {
  const T slack = T(32) * Limits<T>::kEpsilon, largest = Limits<T>::kMax;
  return smaller(distance2 * (T(1) + slack), largest);
}

template <class T>
struct ClosestPoint {
  BvhView<T> bvh;
  const T* points;  // (num_points, 3)
  int64_t num_points;
  T* distance;     // (num_points,); NaN for a point that is not finite, inf if nothing is found
  int64_t* face;   // (num_points,); -1 in both cases
  T* barycentric;  // (num_points, 3); NaN in both cases
  T* closest;      // (num_points, 3); NaN in both cases
};

template <class T>
FASTSHAPE_HOST_DEVICE void write_no_face(const ClosestPoint<T>& task, int64_t i, T distance) {
  task.distance[i] = distance;
  task.face[i] = -1;
  for (int k = 0; k < 3; ++k)
    task.barycentric[3 * i + k] = task.closest[3 * i + k] = not_a_number<T>();
}

// `slot` is block * 8 + lane.
template <class T>
FASTSHAPE_HOST_DEVICE void write_closest(const ClosestPoint<T>& task, int64_t i, const Vec3<T>& p,
                                         int64_t slot) {
  Vec3<T> a, b, c;
  load_triangle(task.bvh.triangles, slot >> 3, static_cast<int>(slot & 7), &a, &b, &c);
  const ClosestOnTriangle<T> found = closest_on_triangle(p, a, b, c);
  const T u = larger((T(1) - found.v) - found.w, T(0));
  task.distance[i] = square_root(found.distance2);
  task.face[i] = task.bvh.face_index[slot];
  task.barycentric[3 * i] = u;
  task.barycentric[3 * i + 1] = found.v;
  task.barycentric[3 * i + 2] = found.w;
  const Vec3<T> closest = (u * a + found.v * b) + found.w * c;
  task.closest[3 * i] = closest.x;
  task.closest[3 * i + 1] = closest.y;
  task.closest[3 * i + 2] = closest.z;
}

namespace cpu {
template <class T>
void closest_point(const ClosestPoint<T>& task);
}  // namespace cpu

namespace cuda {
size_t closest_point_workspace_bytes(int64_t num_points);
template <class T>
void closest_point(const ClosestPoint<T>& task, void* workspace, size_t workspace_bytes,
                   cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
