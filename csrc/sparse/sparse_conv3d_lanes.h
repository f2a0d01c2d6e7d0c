// The vector registers of the convolution's loops, by the flags of the translation unit.
//
// kRows rows of a result by two registers of its columns are summed at a time; kStep numbers of a
// row of features go into one lane.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/half.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// GCC would store vectors that are used more than once and read them back each time.
#if defined(__AVX2__)
#define FASTSHAPE_IN_REGISTERS(a, b) asm("" : "+v"(a), "+v"(b))
#else
#define FASTSHAPE_IN_REGISTERS(a, b)
#endif

namespace fastshape {
namespace {

template <class T>
struct ConvLanes;

#if defined(__AVX512F__)

template <>
struct ConvLanes<float> {
  using Vector = __m512;
  static constexpr int kLanes = 16, kRows = 8, kStep = 1;
  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static Vector load(const float* p, int count) { return _mm512_maskz_loadu_ps(mask_of(count), p); }
  static void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
  static void store(float* p, Vector v, int count) { _mm512_mask_storeu_ps(p, mask_of(count), v); }
  static Vector all(const float* p) { return _mm512_set1_ps(*p); }
  static Vector add_product(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }

 private:
  static __mmask16 mask_of(int count) {
    return static_cast<__mmask16>(count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
  }
};

template <>
struct ConvLanes<double> {
  using Vector = __m512d;
  static constexpr int kLanes = 8, kRows = 8, kStep = 1;
  static Vector zero() { return _mm512_setzero_pd(); }
  static Vector load(const double* p) { return _mm512_loadu_pd(p); }
  static Vector load(const double* p, int count) {
    return _mm512_maskz_loadu_pd(mask_of(count), p);
  }
  static void store(double* p, Vector v) { _mm512_storeu_pd(p, v); }
  static void store(double* p, Vector v, int count) { _mm512_mask_storeu_pd(p, mask_of(count), v); }
  static Vector all(const double* p) { return _mm512_set1_pd(*p); }
  static Vector add_product(Vector a, Vector b, Vector c) { return _mm512_fmadd_pd(a, b, c); }
  static Vector add(Vector a, Vector b) { return _mm512_add_pd(a, b); }

 private:
  static __mmask8 mask_of(int count) {
    return static_cast<__mmask8>(count >= 8 ? 0xff : count <= 0 ? 0 : (1 << count) - 1);
  }
};

#if defined(__AVX512BF16__)
// Pairs of numbers, whose two products are added to a float.
template <>
struct ConvLanes<BFloat16> {
  using Vector = __m512;
  static constexpr int kLanes = 16, kRows = 8, kStep = 2;
  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static Vector load(const BFloat16* p) {
    return _mm512_castsi512_ps(_mm512_loadu_si512(static_cast<const void*>(p)));
  }
  static void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
  static Vector all(const BFloat16* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof(pair));
    return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
  }
  static Vector add_product(Vector a, Vector b, Vector c) {
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
  }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
};
#endif

#elif defined(__AVX2__)

template <>
struct ConvLanes<float> {
  using Vector = __m256;
  static constexpr int kLanes = 8, kRows = 6, kStep = 1;
  static Vector zero() { return _mm256_setzero_ps(); }
  static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static Vector load(const float* p, int count) { return _mm256_maskload_ps(p, mask_of(count)); }
  static void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
  static void store(float* p, Vector v, int count) { _mm256_maskstore_ps(p, mask_of(count), v); }
  static Vector all(const float* p) { return _mm256_broadcast_ss(p); }
  static Vector add_product(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }

 private:
  static __m256i mask_of(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

template <>
struct ConvLanes<double> {
  using Vector = __m256d;
  static constexpr int kLanes = 4, kRows = 6, kStep = 1;
  static Vector zero() { return _mm256_setzero_pd(); }
  static Vector load(const double* p) { return _mm256_loadu_pd(p); }
  static Vector load(const double* p, int count) { return _mm256_maskload_pd(p, mask_of(count)); }
  static void store(double* p, Vector v) { _mm256_storeu_pd(p, v); }
  static void store(double* p, Vector v, int count) { _mm256_maskstore_pd(p, mask_of(count), v); }
  static Vector all(const double* p) { return _mm256_broadcast_sd(p); }
  static Vector add_product(Vector a, Vector b, Vector c) { return _mm256_fmadd_pd(a, b, c); }
  static Vector add(Vector a, Vector b) { return _mm256_add_pd(a, b); }

 private:
  static __m256i mask_of(int count) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
  }
};

#else

template <class T>
struct PortableLanes {
  static constexpr int kLanes = 16 / sizeof(T), kRows = 4, kStep = 1;
  typedef T Vector __attribute__((vector_size(16)));
  static Vector zero() { return Vector{}; }
  static Vector load(const T* p) {
    Vector v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static Vector load(const T* p, int count) {
    Vector v{};
    for (int i = 0; i < kLanes && i < count; ++i) v[i] = p[i];
    return v;
  }
  static void store(T* p, Vector v) { std::memcpy(p, &v, sizeof(v)); }
  static void store(T* p, Vector v, int count) {
    for (int i = 0; i < kLanes && i < count; ++i) p[i] = v[i];
  }
  static Vector all(const T* p) { return *p - Vector{}; }
  static Vector add_product(Vector a, Vector b, Vector c) { return c + a * b; }
  static Vector add(Vector a, Vector b) { return a + b; }
};
template <>
struct ConvLanes<float> : PortableLanes<float> {};
template <>
struct ConvLanes<double> : PortableLanes<double> {};

#endif

}  // namespace
}  // namespace fastshape
