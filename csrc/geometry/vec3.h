// Three-component arithmetic, for scalars (host and device) and for lanes of a vector register
// (simd.h): every sum is written in one fixed order, so both round alike.
#pragma once

#include <cmath>
#include <limits>

#include "core/host_device.h"

namespace fastshape {

template <class Real>
struct Vec3 {
  Real x, y, z;
};

template <class Real>
FASTSHAPE_HOST_DEVICE Vec3<Real> operator+(const Vec3<Real>& a, const Vec3<Real>& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z};
}

template <class Real>
FASTSHAPE_HOST_DEVICE Vec3<Real> operator-(const Vec3<Real>& a, const Vec3<Real>& b) {
  return {a.x - b.x, a.y - b.y, a.z - b.z};
}

template <class Real>
FASTSHAPE_HOST_DEVICE Vec3<Real> operator-(const Vec3<Real>& a) {
  return {-a.x, -a.y, -a.z};
}

template <class Real>
FASTSHAPE_HOST_DEVICE Vec3<Real> operator*(const Real& s, const Vec3<Real>& a) {
  return {s * a.x, s * a.y, s * a.z};
}

template <class Real>
FASTSHAPE_HOST_DEVICE Real dot(const Vec3<Real>& a, const Vec3<Real>& b) {
  return (a.x * b.x + a.y * b.y) + a.z * b.z;
}

template <class Real>
FASTSHAPE_HOST_DEVICE Vec3<Real> cross(const Vec3<Real>& a, const Vec3<Real>& b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

// select(mask, a, b), smaller, larger, square_root: the scalar forms. simd.h has those for lanes.
FASTSHAPE_HOST_DEVICE float select(bool mask, float a, float b) { return mask ? a : b; }
FASTSHAPE_HOST_DEVICE double select(bool mask, double a, double b) { return mask ? a : b; }

template <class Real, class Mask>
FASTSHAPE_HOST_DEVICE Vec3<Real> select(const Mask& mask, const Vec3<Real>& a,
                                        const Vec3<Real>& b) {
  return {select(mask, a.x, b.x), select(mask, a.y, b.y), select(mask, a.z, b.z)};
}

// A NaN in `a` gives b.
template <class Real>
FASTSHAPE_HOST_DEVICE Real smaller(const Real& a, const Real& b) {
  return select(a < b, a, b);
}
template <class Real>
FASTSHAPE_HOST_DEVICE Real larger(const Real& a, const Real& b) {
  return select(a > b, a, b);
}

FASTSHAPE_HOST_DEVICE float square_root(float v) { return sqrtf(v); }
FASTSHAPE_HOST_DEVICE double square_root(double v) { return sqrt(v); }

FASTSHAPE_HOST_DEVICE bool is_finite(float v) { return v - v == 0.0f; }
FASTSHAPE_HOST_DEVICE bool is_finite(double v) { return v - v == 0.0; }
template <class T>
FASTSHAPE_HOST_DEVICE bool is_finite(const Vec3<T>& v) {
  return is_finite(v.x) && is_finite(v.y) && is_finite(v.z);
}

template <class T>
FASTSHAPE_HOST_DEVICE Vec3<T> load_point(const T* points, int64_t i) {
  return {points[3 * i], points[3 * i + 1], points[3 * i + 2]};
}

// std::numeric_limits is not callable on the device without a compiler flag.
template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float kEpsilon = 1.1920928955078125e-07f;
  static constexpr float kMax = 3.40282346638528859812e+38f;
};
template <>
struct Limits<double> {
  static constexpr double kEpsilon = 2.220446049250313e-16;
  static constexpr double kMax = 1.7976931348623157e+308;
};

template <class T>
FASTSHAPE_HOST_DEVICE T not_a_number() {
  return static_cast<T>(NAN);
}
template <class T>
FASTSHAPE_HOST_DEVICE T infinity() {
  return static_cast<T>(INFINITY);
}

}  // namespace fastshape
