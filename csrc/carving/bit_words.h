// 64 truth values, as bytes and as the bits of a word. The unnamed namespace keeps the copies of
// the instruction sets apart.
#pragma once

#include <cstdint>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fastshape {
namespace {

// Bit i: values[i] is not zero, for 64 values.
inline uint64_t pack_word(const uint8_t* values) {
#if defined(__AVX512BW__)
  const __m512i v = _mm512_loadu_si512(values);
  return _mm512_test_epi8_mask(v, v);
#elif defined(__AVX2__)
  uint64_t zero = 0;
  for (int i = 0; i < 2; ++i) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + 32 * i));
    const int bits = _mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_setzero_si256()));
    zero |= static_cast<uint64_t>(static_cast<uint32_t>(bits)) << (32 * i);
  }
  return ~zero;
#elif defined(__SSE2__)
  uint64_t zero = 0;
  for (int i = 0; i < 4; ++i) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + 16 * i));
    const int bits = _mm_movemask_epi8(_mm_cmpeq_epi8(v, _mm_setzero_si128()));
    zero |= static_cast<uint64_t>(bits) << (16 * i);
  }
  return ~zero;
#else
  uint64_t word = 0;
  for (int i = 0; i < 64; ++i) word |= static_cast<uint64_t>(values[i] != 0) << i;
  return word;
#endif
}

// 64 bytes, each 1 or 0.
inline void unpack_word(uint64_t word, uint8_t* values) {
#if defined(__AVX512BW__)
  _mm512_storeu_si512(values, _mm512_maskz_set1_epi8(word, 1));
#elif defined(__AVX2__)
  const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
                                          2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  for (int i = 0; i < 2; ++i) {
    const __m256i bytes =
        _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int32_t>(word >> (32 * i))), spread);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + 32 * i),
                        _mm256_and_si256(set, _mm256_set1_epi8(1)));
  }
#else
  for (int i = 0; i < 8; ++i) {
    for (int k = 0; k < 8; ++k) values[8 * i + k] = static_cast<uint8_t>(word >> (8 * i + k) & 1);
  }
#endif
}

}  // namespace
}  // namespace fastshape
