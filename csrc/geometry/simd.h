// Eight lanes of a CPU vector register, in the operations of vec3.h.
//
// Written with the compiler's vector types: one source is compiled for SSE2 (or NEON), AVX2 and
// AVX-512 by the flags of the translation unit, each lane rounds as the scalar does, and so every
// instruction set gives the same bits. The unnamed namespace keeps the copies apart.
#pragma once

#include <cstdint>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "geometry/vec3.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // nothing here crosses a translation unit
#endif

namespace fastshape {
namespace {

#define FASTSHAPE_LANES __attribute__((always_inline)) inline

template <class T>
struct SimdTypes;
template <>
struct SimdTypes<float> {
  typedef float Vector __attribute__((vector_size(32)));
  typedef int32_t MaskVector __attribute__((vector_size(32)));
  typedef int32_t Integer;
};
template <>
struct SimdTypes<double> {
  typedef double Vector __attribute__((vector_size(64)));
  typedef int64_t MaskVector __attribute__((vector_size(64)));
  typedef int64_t Integer;
};

template <class T>
struct SimdMask {
  typename SimdTypes<T>::MaskVector v;
};

template <class T>
struct Simd {
  typename SimdTypes<T>::Vector v;

  Simd() = default;
  FASTSHAPE_LANES explicit Simd(T s) { v = s - typename SimdTypes<T>::Vector{}; }
  FASTSHAPE_LANES explicit Simd(int s) : Simd(static_cast<T>(s)) {}
  FASTSHAPE_LANES explicit Simd(const typename SimdTypes<T>::Vector& lanes) : v(lanes) {}
};

template <class T>
FASTSHAPE_LANES Simd<T> load_lanes(const T* p) {
  Simd<T> a;
  __builtin_memcpy(&a.v, p, sizeof(a.v));
  return a;
}
template <class T>
FASTSHAPE_LANES void store_lanes(T* p, const Simd<T>& a) {
  __builtin_memcpy(p, &a.v, sizeof(a.v));
}

template <class T>
FASTSHAPE_LANES Simd<T> operator+(const Simd<T>& a, const Simd<T>& b) {
  return Simd<T>(a.v + b.v);
}
template <class T>
FASTSHAPE_LANES Simd<T> operator-(const Simd<T>& a, const Simd<T>& b) {
  return Simd<T>(a.v - b.v);
}
template <class T>
FASTSHAPE_LANES Simd<T> operator*(const Simd<T>& a, const Simd<T>& b) {
  return Simd<T>(a.v * b.v);
}
template <class T>
FASTSHAPE_LANES Simd<T> operator/(const Simd<T>& a, const Simd<T>& b) {
  return Simd<T>(a.v / b.v);
}
template <class T>
FASTSHAPE_LANES Simd<T> operator-(const Simd<T>& a) {
  return Simd<T>(-a.v);
}
template <class T>
FASTSHAPE_LANES SimdMask<T> operator<(const Simd<T>& a, const Simd<T>& b) {
  return {a.v < b.v};
}
template <class T>
FASTSHAPE_LANES SimdMask<T> operator>(const Simd<T>& a, const Simd<T>& b) {
  return {a.v > b.v};
}
template <class T>
FASTSHAPE_LANES SimdMask<T> operator<=(const Simd<T>& a, const Simd<T>& b) {
  return {a.v <= b.v};
}
template <class T>
FASTSHAPE_LANES SimdMask<T> operator>=(const Simd<T>& a, const Simd<T>& b) {
  return {a.v >= b.v};
}
template <class T>
FASTSHAPE_LANES SimdMask<T> operator&(const SimdMask<T>& a, const SimdMask<T>& b) {
  return {a.v & b.v};
}
template <class T>
FASTSHAPE_LANES SimdMask<T> operator|(const SimdMask<T>& a, const SimdMask<T>& b) {
  return {a.v | b.v};
}
template <class T>
FASTSHAPE_LANES Simd<T> select(const SimdMask<T>& mask, const Simd<T>& a, const Simd<T>& b) {
  return Simd<T>(mask.v ? a.v : b.v);
}

FASTSHAPE_LANES Simd<float> square_root(const Simd<float>& a) {
  Simd<float> r;
#if defined(__AVX__)
  r.v = reinterpret_cast<SimdTypes<float>::Vector>(_mm256_sqrt_ps(reinterpret_cast<__m256>(a.v)));
#else
  for (int i = 0; i < 8; ++i) r.v[i] = sqrtf(a.v[i]);
#endif
  return r;
}
FASTSHAPE_LANES Simd<double> square_root(const Simd<double>& a) {
  Simd<double> r;
  for (int i = 0; i < 8; ++i) r.v[i] = sqrt(a.v[i]);
  return r;
}

// Bit i is lane i.
FASTSHAPE_LANES uint32_t lane_bits(const SimdMask<float>& mask) {
#if defined(__AVX__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask.v)));
#elif defined(__SSE2__)
  union {
    SimdTypes<float>::MaskVector whole;
    __m128 half[2];
  } u;
  u.whole = mask.v;
  return static_cast<uint32_t>(_mm_movemask_ps(u.half[0]) | _mm_movemask_ps(u.half[1]) << 4);
#else
  uint32_t bits = 0;
  for (int i = 0; i < 8; ++i) bits |= (static_cast<uint32_t>(mask.v[i]) & 1u) << i;
  return bits;
#endif
}
FASTSHAPE_LANES uint32_t lane_bits(const SimdMask<double>& mask) {
  uint32_t bits = 0;
  for (int i = 0; i < 8; ++i) bits |= (static_cast<uint32_t>(mask.v[i]) & 1u) << i;
  return bits;
}

template <class T>
FASTSHAPE_LANES Vec3<Simd<T>> broadcast(const Vec3<T>& p) {
  return {Simd<T>(p.x), Simd<T>(p.y), Simd<T>(p.z)};
}

// Rows `first`, first + 1, first + 2 of an array of rows of eight.
template <class T>
FASTSHAPE_LANES Vec3<Simd<T>> load_rows(const T* rows, int first) {
  return {load_lanes(rows + 8 * first), load_lanes(rows + 8 * first + 8),
          load_lanes(rows + 8 * first + 16)};
}

}  // namespace
}  // namespace fastshape
