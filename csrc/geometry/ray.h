// One ray against boxes and triangles, without cracks.
//
// Woop, Benthin, Wald 2013, "Watertight Ray/Triangle Intersection": the mesh is sheared so that the
// ray becomes the z axis, and each edge's side of the origin follows from its two vertices alone,
// so that the two faces of an edge agree. Rounding never turns such a sign, it can only make it
// zero; then it is decided exactly, and where the ray truly meets an edge or a vertex it is moved
// aside by an infinitesimal amount, the same for all faces (Edelsbrunner and Muecke 1990,
// "Simulation of Simplicity"). So a ray leaves a closed mesh exactly as often as it enters it, also
// through vertices.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "geometry/bvh.h"
#include "geometry/vec3.h"

namespace fastshape {

template <class T>
struct Ray {
  T origin[3], inverse[3];
  T margin[3];      // what is added to a box's near side and taken from its far side
  int near_row[3];  // rows of a node's boxes: which side the ray meets first
  int far_row[3];
  int kx, ky, kz;  // kz: the longest component of the direction
  T shear_x, shear_y, scale_z;
};

// The mesh's largest distance from the ray's origin along an axis, from the root's boxes.
template <class T>
FASTSHAPE_HOST_DEVICE T largest_offset(const T* boxes, const Vec3<T>& origin) {
  T largest = T(0);
  for (int lane = 0; lane < kBvhWidth; ++lane) {
    const Box<T> box = load_box(boxes, 0, lane);
    if (!(box.low.x <= box.high.x)) continue;
    const T sides[6] = {origin.x - box.low.x,  origin.y - box.low.y,  origin.z - box.low.z,
                        box.high.x - origin.x, box.high.y - origin.y, box.high.z - origin.z};
    for (int i = 0; i < 6; ++i) largest = larger(sides[i] < T(0) ? -sides[i] : sides[i], largest);
  }
  return largest;
}

// False for a ray that is not finite or has no direction.
template <class T>
FASTSHAPE_HOST_DEVICE bool make_ray(const T* boxes, const Vec3<T>& origin, const Vec3<T>& direction,
                                    Ray<T>* ray) {
  if (!is_finite(origin) || !is_finite(direction)) return false;
  const T d[3] = {direction.x, direction.y, direction.z};
  const T size[3] = {d[0] < T(0) ? -d[0] : d[0], d[1] < T(0) ? -d[1] : d[1],
                     d[2] < T(0) ? -d[2] : d[2]};
  const int kz = size[0] >= size[1] ? (size[0] >= size[2] ? 0 : 2) : (size[1] >= size[2] ? 1 : 2);
  if (!(size[kz] > T(0))) return false;
  int kx = kz == 2 ? 0 : kz + 1;
  int ky = kx == 2 ? 0 : kx + 1;
  if (d[kz] < T(0)) {  // keeps the orientation of the faces
    const int k = kx;
    kx = ky;
    ky = k;
  }
  ray->kx = kx;
  ray->ky = ky;
  ray->kz = kz;
  ray->shear_x = d[kx] / d[kz];
  ray->shear_y = d[ky] / d[kz];
  ray->scale_z = T(1) / d[kz];
  ray->origin[0] = origin.x;
  ray->origin[1] = origin.y;
  ray->origin[2] = origin.z;
  // A sheared vertex is off by less than 4 epsilon of its offset, a slab's distance by as much.
  const T margin = T(16) * Limits<T>::kEpsilon * largest_offset(boxes, origin);
  const T shortest = size[kz] * static_cast<T>(1e-20);
  for (int k = 0; k < 3; ++k) {
    const bool backward = d[k] < T(0);
    const T length = larger(size[k], shortest);
    ray->inverse[k] = T(1) / (backward ? -length : length);
    ray->margin[k] = backward ? margin : -margin;
    ray->near_row[k] = backward ? 3 + k : k;
    ray->far_row[k] = backward ? k : 3 + k;
  }
  return true;
}

// The ray's stretch inside boxes; load(row) gives a row of the node. Monotone: a box within another
// never gets the longer stretch, in rounded arithmetic.
template <class Real, class T, class Load>
FASTSHAPE_HOST_DEVICE void box_stretch(const Ray<T>& ray, const Load& load, Real* near, Real* far) {
  for (int k = 0; k < 3; ++k) {
    const Real origin = Real(ray.origin[k]), margin = Real(ray.margin[k]),
               inverse = Real(ray.inverse[k]);
    const Real t_near = ((load(ray.near_row[k]) - origin) + margin) * inverse;
    const Real t_far = ((load(ray.far_row[k]) - origin) - margin) * inverse;
    *near = k == 0 ? t_near : larger(t_near, *near);
    *far = k == 0 ? t_far : smaller(t_far, *far);
  }
}

template <class Real>
struct ShearedVertex {
  Real x, y, z;
};

template <class Real, class T>
FASTSHAPE_HOST_DEVICE ShearedVertex<Real> shear(const Ray<T>& ray, const Real& along_x,
                                                const Real& along_y, const Real& along_z) {
  const Real z = along_z - Real(ray.origin[ray.kz]);
  return {(along_x - Real(ray.origin[ray.kx])) - Real(ray.shear_x) * z,
          (along_y - Real(ray.origin[ray.ky])) - Real(ray.shear_y) * z, z};
}

// Which side of the edge p q the origin lies on, times its length.
template <class Real>
FASTSHAPE_HOST_DEVICE Real edge_side(const ShearedVertex<Real>& p, const ShearedVertex<Real>& q) {
  return p.x * q.y - p.y * q.x;
}

// Lanes that may be hit; `triangle_hit` decides.
template <class Real>
FASTSHAPE_HOST_DEVICE auto may_hit(const ShearedVertex<Real>& a, const ShearedVertex<Real>& b,
                                   const ShearedVertex<Real>& c) {
  const Real u = edge_side(c, b), v = edge_side(a, c), w = edge_side(b, a), zero = Real(0);
  return ((u >= zero) & (v >= zero) & (w >= zero)) | ((u <= zero) & (v <= zero) & (w <= zero));
}

// Sign of px qy - py qx, exactly: doubles hold products of floats, and the error of a product of
// doubles is a double.
FASTSHAPE_HOST_DEVICE int exact_side(float px, float py, float qx, float qy) {
  const double left = static_cast<double>(px) * static_cast<double>(qy);
  const double right = static_cast<double>(py) * static_cast<double>(qx);
  return left > right ? 1 : (left < right ? -1 : 0);
}
FASTSHAPE_HOST_DEVICE int exact_side(double px, double py, double qx, double qy) {
  const double left = px * qy, right = py * qx;
  if (left != right) return left > right ? 1 : -1;
  const double left_error = fma(px, qy, -left), right_error = fma(py, qx, -right);
  return left_error > right_error ? 1 : (left_error < right_error ? -1 : 0);
}

// With the origin moved by (e, e^2), e -> 0+; 0 only for an edge without length.
template <class T>
FASTSHAPE_HOST_DEVICE int moved_side(const ShearedVertex<T>& p, const ShearedVertex<T>& q) {
  const T side = edge_side(p, q);
  if (side != T(0)) return side > T(0) ? 1 : -1;
  const int exact = exact_side(p.x, p.y, q.x, q.y);
  if (exact != 0) return exact;
  if (p.y != q.y) return p.y > q.y ? 1 : -1;
  return q.x > p.x ? 1 : (q.x < p.x ? -1 : 0);
}

template <class T>
struct TriangleHit {
  T t;
  T u, v, w;  // weights of a, b, c
  int side;   // 1 where the ray goes out through the face, -1 where it comes in
};

// Whether the line meets the triangle, and where. t lies in the ray's stretch inside the triangle's
// box, so boxes may be skipped by their stretch. `slot` is block * 8 + lane.
template <class T>
FASTSHAPE_HOST_DEVICE bool triangle_hit(const BvhView<T>& bvh, const Ray<T>& ray, int64_t slot,
                                        TriangleHit<T>* hit) {
  const T* rows = bvh.triangles + (slot >> 3) * 72 + (slot & 7);
  const auto vertex = [&](int first) {
    return shear<T>(ray, rows[8 * (first + ray.kx)], rows[8 * (first + ray.ky)],
                    rows[8 * (first + ray.kz)]);
  };
  const ShearedVertex<T> a = vertex(0), b = vertex(3), c = vertex(6);
  const int side = moved_side(c, b);
  if (side == 0 || moved_side(a, c) != side || moved_side(b, a) != side) return false;
  T u = edge_side(c, b), v = edge_side(a, c), w = edge_side(b, a);
  T total = (u + v) + w;
  if (!(total != T(0))) u = v = w = T(1), total = T(3);  // only rounding brings this about
  hit->side = -side;
  hit->u = u / total;
  hit->v = v / total;
  hit->w = w / total;
  T t = (((u * a.z + v * b.z) + w * c.z) / total) * ray.scale_z;
  const auto bound = [&](int row) {  // of the triangle's own box
    const int axis = row < 3 ? row : row - 3;
    const T p = rows[8 * axis], q = rows[8 * (3 + axis)], r = rows[8 * (6 + axis)];
    return row < 3 ? smaller(smaller(p, q), r) : larger(larger(p, q), r);
  };
  T near, far;
  box_stretch(ray, bound, &near, &far);
  t = smaller(larger(t, near), larger(near, far));
  hit->t = t;
  return is_finite(t);
}

}  // namespace fastshape
