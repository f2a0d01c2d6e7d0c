// A register of floats or doubles, and the exponential function of one.
//
// Included by translation units with different instruction-set flags: everything lies in an unnamed
// namespace, see sampling/lanes.h.
#pragma once

#include <cstdint>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC bug 105593
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#endif

namespace fastshape::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
constexpr int kTileRows = 6, kTileRegisters = 4;  // 24 sums, 4 of b, 1 of a: of 32 registers
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
constexpr int kTileRows = 6, kTileRegisters = 2;  // of 16
#else
constexpr int kRegisterBytes = 16;
constexpr int kTileRows = 4, kTileRegisters = 2;
#endif

template <class T>
constexpr int kLanes = kRegisterBytes / static_cast<int>(sizeof(T));

template <class T>
struct Vector {
  typedef T Register __attribute__((vector_size(kRegisterBytes)));
  Register v;
};

template <class T>
inline Vector<T> load(const T* p) {
  Vector<T> a;
  __builtin_memcpy(&a.v, p, kRegisterBytes);
  return a;
}
template <class T>
inline void store(T* p, Vector<T> a) {
  __builtin_memcpy(p, &a.v, kRegisterBytes);
}
template <class T>
inline Vector<T> broadcast(T a) {
  return {a - typename Vector<T>::Register{}};
}
template <class T>
inline Vector<T> zero() {
  return {typename Vector<T>::Register{}};
}
template <class T>
inline Vector<T> operator+(Vector<T> a, Vector<T> b) {
  return {a.v + b.v};
}
template <class T>
inline Vector<T> operator-(Vector<T> a, Vector<T> b) {
  return {a.v - b.v};
}
template <class T>
inline Vector<T> operator*(Vector<T> a, Vector<T> b) {
  return {a.v * b.v};
}
template <class T>
inline Vector<T> larger(Vector<T> a, Vector<T> b) {
  return {a.v > b.v ? a.v : b.v};
}

// What products of a type are summed in: a word of two bfloat16 is two products, in float.
template <class T>
struct Total {
  using type = T;
};
template <>
struct Total<uint32_t> {
  using type = float;
};
template <class T>
using total = typename Total<T>::type;

// a * b + c, rounded once where the processor can.
#if defined(__AVX512F__)
inline Vector<float> fused(Vector<float> a, Vector<float> b, Vector<float> c) {
  return {(Vector<float>::Register)_mm512_fmadd_ps((__m512)a.v, (__m512)b.v, (__m512)c.v)};
}
inline Vector<double> fused(Vector<double> a, Vector<double> b, Vector<double> c) {
  return {(Vector<double>::Register)_mm512_fmadd_pd((__m512d)a.v, (__m512d)b.v, (__m512d)c.v)};
}
#elif defined(__AVX2__)
inline Vector<float> fused(Vector<float> a, Vector<float> b, Vector<float> c) {
  return {(Vector<float>::Register)_mm256_fmadd_ps((__m256)a.v, (__m256)b.v, (__m256)c.v)};
}
inline Vector<double> fused(Vector<double> a, Vector<double> b, Vector<double> c) {
  return {(Vector<double>::Register)_mm256_fmadd_pd((__m256d)a.v, (__m256d)b.v, (__m256d)c.v)};
}
#else
template <class T>
inline Vector<T> fused(Vector<T> a, Vector<T> b, Vector<T> c) {
  return a * b + c;
}
#endif

#if defined(__AVX512BF16__)
// Of bfloat16 in pairs: c + a.low * b.low + a.high * b.high.
inline Vector<float> fused(Vector<uint32_t> a, Vector<uint32_t> b, Vector<float> c) {
  return {(Vector<float>::Register)_mm512_dpbf16_ps((__m512)c.v, (__m512bh)a.v, (__m512bh)b.v)};
}
#endif

template <class T>
inline T sum_of_lanes(Vector<T> a) {
  T lane[kLanes<T>];
  store(lane, a);
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}
template <class T>
inline T largest_lane(Vector<T> a) {
  T lane[kLanes<T>];
  store(lane, a);
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
  return lane[0];
}
#if defined(__AVX2__)  // floats, without a way through memory
inline float sum_of_lanes(__m256 a) {
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
inline float largest_lane(__m256 a) {
  __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}
#if defined(__AVX512F__)
inline float sum_of_lanes(Vector<float> a) {
  const __m512 v = (__m512)a.v;
  return sum_of_lanes(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}
inline float largest_lane(Vector<float> a) {
  const __m512 v = (__m512)a.v;
  return largest_lane(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}
#else
inline float sum_of_lanes(Vector<float> a) { return sum_of_lanes((__m256)a.v); }
inline float largest_lane(Vector<float> a) { return largest_lane((__m256)a.v); }
#endif
#endif

inline float logarithm(float x) { return __builtin_logf(x); }
inline double logarithm(double x) { return __builtin_log(x); }

// Zero in the first `valid` lanes, -infinity behind them.
template <class T>
inline Vector<T> tail_mask(int64_t valid) {
  Vector<T> mask;
  for (int i = 0; i < kLanes<T>; ++i)
    mask.v[i] = i < valid ? T(0) : -static_cast<T>(__builtin_huge_val());
  return mask;
}

// exp(x) for x <= 0 or so: 2^n * exp(r) with |r| <= ln 2 / 2, a polynomial of degree 6 (Taylor's,
// error 2e-8 / 8 of exp(r)); zero below -87.
#if defined(__AVX512F__)
inline Vector<float> exponential(Vector<float> x) {
  // Below -104 the scaling gives zero; between that and -87 there are numbers of fewer digits.
  const __m512 y = _mm512_max_ps(_mm512_set1_ps(-104.0f), (__m512)x.v);  // of NaN: NaN
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(y, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693145752f), y);  // ln 2 in two parts
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(-1.42860677e-6f), r);
  __m512 p = _mm512_set1_ps(1.0f / 720.0f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return {(Vector<float>::Register)_mm512_scalef_ps(p, n)};
}
#else
inline Vector<float> exponential(Vector<float> x) {
  typedef int32_t Integers __attribute__((vector_size(kRegisterBytes)));
  const Vector<float> lowest = broadcast(-87.0f);
  const Vector<float> y = larger(lowest, x);           // of NaN: NaN
  const Vector<float> magic = broadcast(12582912.0f);  // 1.5 * 2^23: rounds to an integer
  const Vector<float> shifted = fused(y, broadcast(1.44269504f), magic);
  const Vector<float> n = shifted - magic;
  Vector<float> r = fused(n, broadcast(-0.693145752f), y);  // ln 2 in two parts
  r = fused(n, broadcast(-1.42860677e-6f), r);
  Vector<float> p = broadcast(1.0f / 720.0f);
  p = fused(p, r, broadcast(1.0f / 120.0f));
  p = fused(p, r, broadcast(1.0f / 24.0f));
  p = fused(p, r, broadcast(1.0f / 6.0f));
  p = fused(p, r, broadcast(0.5f));
  p = fused(p, r, broadcast(1.0f));
  p = fused(p, r, broadcast(1.0f));
  const Integers power = ((Integers)shifted.v - 0x4b400000) << 23;
  const Vector<float> result = {(Vector<float>::Register)((Integers)p.v + power)};
  return {x.v < lowest.v ? zero<float>().v : result.v};
}
#endif
inline Vector<double> exponential(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x.v[i] = __builtin_exp(x.v[i]);
  return x;
}

}  // namespace
}  // namespace fastshape::cpu
