// Sixteen float lanes: one AVX-512 register, two AVX2 registers, or an array that the compiler
// vectorises.
//
// Included by translation units with different instruction-set flags, so everything here lies in an
// unnamed namespace: the linker must never share one of these functions between them. For the same
// reason no std templates here.
#pragma once

#include <cstdint>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own intrinsics start from "undefined" registers and warn about it (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

namespace fastshape::cpu {
namespace {

constexpr int kLanes = 16;

#if defined(__AVX512F__)

struct Lanes {
  __m512 v;
};
inline Lanes load(const float* p) { return {_mm512_load_ps(p)}; }
inline Lanes load_unaligned(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Lanes a) { _mm512_store_ps(p, a.v); }
inline Lanes broadcast(float a) { return {_mm512_set1_ps(a)}; }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes lanes_min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Lanes lanes_max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline uint32_t less(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
inline uint32_t equal(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
inline float largest(Lanes a) {
  const __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}
// Appends base + (number of each set bit of mask) to `out`, which has room for 16 more; returns the
// new end.
inline int32_t* append_set_bits(int32_t* out, int32_t base, uint32_t mask) {
  const __m512i numbers =
      _mm512_add_epi32(_mm512_set1_epi32(base),
                       _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  // Compress in a register and store it whole: compressing into memory is microcoded on some
  // processors.
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), numbers));
  return out + __builtin_popcount(mask);
}

#elif defined(__AVX2__)

struct Lanes {
  __m256 low, high;
};
inline Lanes load(const float* p) { return {_mm256_load_ps(p), _mm256_load_ps(p + 8)}; }
inline Lanes load_unaligned(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Lanes a) {
  _mm256_store_ps(p, a.low);
  _mm256_store_ps(p + 8, a.high);
}
inline Lanes broadcast(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
inline Lanes operator+(Lanes a, Lanes b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Lanes operator-(Lanes a, Lanes b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Lanes operator*(Lanes a, Lanes b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Lanes lanes_min(Lanes a, Lanes b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline Lanes lanes_max(Lanes a, Lanes b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline uint32_t less(Lanes a, Lanes b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)) |
                               _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ)) << 8);
}
inline uint32_t equal(Lanes a, Lanes b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_EQ_OQ)) |
                               _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_EQ_OQ)) << 8);
}
inline float largest(Lanes a) {
  const __m256 b = _mm256_max_ps(a.low, a.high);
  __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

#else

// GCC's and Clang's vector types: SSE2 on x86-64, NEON on aarch64.
using Quad = float __attribute__((vector_size(16), may_alias));
using UnalignedQuad = float __attribute__((vector_size(16), may_alias, aligned(4)));
using QuadMask = int32_t __attribute__((vector_size(16)));
constexpr int kQuads = kLanes / 4;

struct Lanes {
  Quad v[kQuads];
};

template <class F>
inline Lanes for_quads(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}
inline Lanes load(const float* p) {
  return for_quads([=](int i) { return reinterpret_cast<const Quad*>(p)[i]; });
}
inline Lanes load_unaligned(const float* p) {
  return for_quads(
      [=](int i) -> Quad { return *reinterpret_cast<const UnalignedQuad*>(p + 4 * i); });
}
inline void store(float* p, const Lanes& a) {
  for (int i = 0; i < kQuads; ++i) reinterpret_cast<Quad*>(p)[i] = a.v[i];
}
inline Lanes broadcast(float b) {
  return for_quads([=](int) { return Quad{b, b, b, b}; });
}
inline Lanes operator+(const Lanes& a, const Lanes& b) {
  return for_quads([&](int i) { return a.v[i] + b.v[i]; });
}
inline Lanes operator-(const Lanes& a, const Lanes& b) {
  return for_quads([&](int i) { return a.v[i] - b.v[i]; });
}
inline Lanes operator*(const Lanes& a, const Lanes& b) {
  return for_quads([&](int i) { return a.v[i] * b.v[i]; });
}
inline Lanes lanes_min(const Lanes& a, const Lanes& b) {
  return for_quads([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Lanes lanes_max(const Lanes& a, const Lanes& b) {
  return for_quads([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
template <class F>
inline uint32_t set_bits(F compare) {
  QuadMask bits{};
  for (int i = 0; i < kQuads; ++i) bits |= compare(i) & (QuadMask{1, 2, 4, 8} << (4 * i));
  return static_cast<uint32_t>(bits[0] | bits[1] | bits[2] | bits[3]);
}
inline uint32_t less(const Lanes& a, const Lanes& b) {
  return set_bits([&](int i) -> QuadMask { return a.v[i] < b.v[i]; });
}
inline uint32_t equal(const Lanes& a, const Lanes& b) {
  return set_bits([&](int i) -> QuadMask { return a.v[i] == b.v[i]; });
}
inline float largest(const Lanes& a) {
  const Quad low = a.v[0] > a.v[1] ? a.v[0] : a.v[1], high = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  const Quad all = low > high ? low : high;
  const float even = all[0] > all[2] ? all[0] : all[2], odd = all[1] > all[3] ? all[1] : all[3];
  return even > odd ? even : odd;
}

#endif

#if !defined(__AVX512F__)
inline int32_t* append_set_bits(int32_t* out, int32_t base, uint32_t mask) {
  for (; mask != 0; mask &= mask - 1) *out++ = base + __builtin_ctz(mask);
  return out;
}
#endif

}  // namespace
}  // namespace fastshape::cpu
