// Lanes of a vector register for depth carving: floats, and 32-bit numbers for their pixels. The
// unnamed namespace keeps the copies of the instruction sets apart.
#pragma once

#include <cstdint>

#if defined(__AVX512F__) || defined(__AVX2__)
#define FASTSHAPE_CARVE_LANES
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own intrinsics start from "undefined" registers and warn about it (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

#if defined(FASTSHAPE_CARVE_LANES)
namespace fastshape {
namespace {

#if defined(__AVX512F__)

constexpr int kLanes = 16;
struct Lanes {
  __m512 v;
};
inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Lanes all(float a) { return {_mm512_set1_ps(a)}; }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
// As bits, bit i of lane i; false of NaN.
inline uint32_t less(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
inline uint32_t at_most(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ); }
inline uint32_t equal(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
// row * width + column, both cut down to whole numbers; 0 beside the lanes of `mask`.
inline void store_pixels(int32_t* out, int32_t width, Lanes row, Lanes column, uint32_t mask) {
  const __m512i pixel =
      _mm512_add_epi32(_mm512_mullo_epi32(_mm512_cvttps_epi32(row.v), _mm512_set1_epi32(width)),
                       _mm512_cvttps_epi32(column.v));
  _mm512_storeu_si512(out, _mm512_maskz_mov_epi32(static_cast<__mmask16>(mask), pixel));
}
inline Lanes look_up(const float* map, const int32_t* pixels) {
  return {_mm512_i32gather_ps(_mm512_loadu_si512(pixels), map, 4)};
}
inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }

#else

constexpr int kLanes = 8;
struct Lanes {
  __m256 v;
};
inline Lanes load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Lanes all(float a) { return {_mm256_set1_ps(a)}; }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm256_div_ps(a.v, b.v)}; }
inline uint32_t sign_bits(__m256 a) { return static_cast<uint32_t>(_mm256_movemask_ps(a)); }
inline uint32_t less(Lanes a, Lanes b) { return sign_bits(_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)); }
inline uint32_t at_most(Lanes a, Lanes b) { return sign_bits(_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)); }
inline uint32_t equal(Lanes a, Lanes b) { return sign_bits(_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)); }
inline void store_pixels(int32_t* out, int32_t width, Lanes row, Lanes column, uint32_t mask) {
  const __m256i pixel =
      _mm256_add_epi32(_mm256_mullo_epi32(_mm256_cvttps_epi32(row.v), _mm256_set1_epi32(width)),
                       _mm256_cvttps_epi32(column.v));
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i asked =
      _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int32_t>(mask)), bit), bit);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_and_si256(pixel, asked));
}
inline Lanes look_up(const float* map, const int32_t* pixels) {
  return {
      _mm256_i32gather_ps(map, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixels)), 4)};
}
inline void store(float* p, Lanes a) { _mm256_storeu_ps(p, a.v); }

#endif

}  // namespace
}  // namespace fastshape
#endif
