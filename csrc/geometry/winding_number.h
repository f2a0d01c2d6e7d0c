// The generalized winding number, fast (Barill et al. 2018) or exact.
//
// The sum over faces of their solid angle over 4 pi: exact in the blocks near the point, three
// terms of the far field (bvh_moments.h) for every child farther than beta times its radius. A
// point's value depends on the mesh, the hierarchy and beta, never on the other points, the
// instruction set or the number of threads: eight sums, one for each lane, in the order of the
// traversal.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "geometry/bvh.h"
#include "geometry/bvh_moments.h"
#include "geometry/vec3.h"

namespace fastshape {

template <class T>
struct WindingNumber {
  BvhView<T> bvh;
  const T* moments;  // of bvh_moments
  const T* points;   // (num_points, 3)
  int64_t num_points;
  T beta2;     // beta squared; inf: exact
  T* winding;  // (num_points,); NaN for a point that is not finite
};

// atan(t) = t P(t^2) on [0, 1]: interpolation at Chebyshev points, error 1e-8 (float) and 2e-17.
template <class Real>
FASTSHAPE_HOST_DEVICE Real arctangent_polynomial(const Real& s, float) {
  Real r = Real(0.002766283502f);
  r = r * s + Real(-0.01573124912f);
  r = r * s + Real(0.04213762359f);
  r = r * s + Real(-0.07456854826f);
  r = r * s + Real(0.1061837064f);
  r = r * s + Real(-0.1419779779f);
  r = r * s + Real(0.1999187203f);
  r = r * s + Real(-0.3333303671f);
  return r * s + Real(0.9999999818f);
}
template <class Real>
FASTSHAPE_HOST_DEVICE Real arctangent_polynomial(const Real& s, double) {
  Real r = Real(-0.0000193423475928922986);
  r = r * s + Real(0.000214238107386039468);
  r = r * s + Real(-0.00112525443022346454);
  r = r * s + Real(0.00375113848396514119);
  r = r * s + Real(-0.00899108054265826073);
  r = r * s + Real(0.0167195960635073887);
  r = r * s + Real(-0.0255686236443717393);
  r = r * s + Real(0.0338712670270067489);
  r = r * s + Real(-0.0408112475031788523);
  r = r * s + Real(0.0466874530484852871);
  r = r * s + Real(-0.0523742347191881684);
  r = r * s + Real(0.0587682811448727217);
  r = r * s + Real(-0.0666576491068972235);
  r = r * s + Real(0.0769219899745829418);
  r = r * s + Real(-0.0909089979321734102);
  r = r * s + Real(0.111111105780020824);
  r = r * s + Real(-0.14285714266926734);
  r = r * s + Real(0.199999999996479603);
  r = r * s + Real(-0.333333333333307019);
  return r * s + Real(0.999999999999999967);
}

// atan2, with 0 for (0, 0) and for NaN. T is the scalar type of Real.
template <class T, class Real>
FASTSHAPE_HOST_DEVICE Real arctangent(const Real& y, const Real& x) {
  const Real zero = Real(0);
  const Real ay = select(y < zero, -y, y), ax = select(x < zero, -x, x);
  const auto steep = ay > ax;
  const Real t = select(steep, ax, ay) / select(steep, ay, ax);
  Real r = t * arctangent_polynomial(t * t, T());
  r = select(steep, Real(static_cast<T>(1.57079632679489661923)) - r, r);
  r = select(x < zero, Real(static_cast<T>(3.14159265358979323846)) - r, r);
  r = select(y < zero, -r, r);
  return select((r <= zero) | (r >= zero), r, zero);
}

// Twice the solid angle's half, 2 atan2: 4 pi times the face's share. Van Oosterom and Strackee
// 1983; the numerator a.(b x c) is written with the edges, which cancel nothing.
template <class T, class Real>
FASTSHAPE_HOST_DEVICE Real solid_angle(const Vec3<Real>& p, const Vec3<Real>& a,
                                       const Vec3<Real>& b, const Vec3<Real>& c) {
  const Vec3<Real> pa = a - p, pb = b - p, pc = c - p;
  const Real la = square_root(dot(pa, pa)), lb = square_root(dot(pb, pb)),
             lc = square_root(dot(pc, pc));
  const Real numerator = dot(pa, cross(b - a, c - a));
  const Real denominator =
      ((la * lb) * lc + dot(pa, pb) * lc) + (dot(pb, pc) * la + dot(pc, pa) * lb);
  return Real(2) * arctangent<T>(numerator, denominator);
}

// The far field of one child, times 4 pi. `rows` begins at its column; a row is load(row).
template <class T, class Real, class Load>
FASTSHAPE_HOST_DEVICE Real far_field(const Vec3<Real>& r, const Real& r2, const Load& load) {
  const Real inverse = Real(1) / square_root(r2);
  const Vec3<Real> u = inverse * r;
  const Real x2 = u.x * u.x, y2 = u.y * u.y, z2 = u.z * u.z;
  const Real first = (load(kNormal) * u.x + load(kNormal + 1) * u.y) + load(kNormal + 2) * u.z;
  const Real second =
      (load(kQuadric) * (x2 - z2) + load(kQuadric + 1) * (y2 - z2)) +
      Real(2) * ((load(kQuadric + 2) * (u.x * u.y) + load(kQuadric + 3) * (u.x * u.z)) +
                 load(kQuadric + 4) * (u.y * u.z));
  const Real three = Real(3);
  // xzz = -(xxx + xyy), yzz = -(xxy + yyy), zzz = -(xxz + yyz)
  const Real third =
      ((load(kCubic) * (u.x * (x2 - three * z2)) + load(kCubic + 3) * (u.y * (y2 - three * z2))) +
       three * (load(kCubic + 1) * (u.y * (x2 - z2)) + load(kCubic + 2) * (u.x * (y2 - z2)))) +
      ((load(kCubic + 4) * (u.z * (three * x2 - z2)) +
        load(kCubic + 5) * (u.z * (three * y2 - z2))) +
       Real(6) * (load(kCubic + 6) * ((u.x * u.y) * u.z)));
  return ((first - three * (second * inverse)) +
          Real(static_cast<T>(7.5)) * ((third * inverse) * inverse)) *
         (inverse * inverse);
}

// The eight lanes' sums to the winding number.
template <class T>
FASTSHAPE_HOST_DEVICE T sum_lanes(const T* sums) {
  const T total =
      ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  return total * static_cast<T>(0.0795774715459476678844);  // 1 / 4 pi
}

namespace cpu {
template <class T>
void winding_number(const WindingNumber<T>& task);
}  // namespace cpu

namespace cuda {
size_t winding_number_workspace_bytes(int64_t num_points);
template <class T>
void winding_number(const WindingNumber<T>& task, void* workspace, size_t workspace_bytes,
                    cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
