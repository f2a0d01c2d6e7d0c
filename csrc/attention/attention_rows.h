// Rows of queries, keys and values: where they lie, their norm and rotation with its gradient, and
// how they are packed for the products.
//
// Keys are packed with features outside and keys side by side, in panels as wide as a tile, so that
// every product is sums of a number times a register.
#pragma once

#include <type_traits>

#include "attention/attention_cpu.h"
#include "attention/attention_products.h"

namespace fastshape::cpu {
namespace {

constexpr int kMaxHeadDim = 128;

// Rows of a chunk of positions, run by run.
inline void rows_of(const Sequences& s, int64_t sequence, int32_t begin, int32_t end,
                    int64_t* rows) {
  if (s.run_offsets == nullptr) {
    for (int32_t p = begin; p < end; ++p) *rows++ = p;
    return;
  }
  int32_t run = s.run_offsets[sequence];
  while (s.run_positions[run + 1] <= begin && run + 1 < s.run_offsets[sequence + 1]) ++run;
  for (int32_t p = begin; p < end; ++p) {
    if (p >= s.run_positions[run + 1]) ++run;
    *rows++ = static_cast<int64_t>(s.run_starts[run]) + (p - s.run_positions[run]);
  }
}

// Features are a multiple of 8: eight sums, one order on every instruction set.
template <class W>
inline W dot(const W* a, const W* b, int n) {
  W part[8] = {};
  for (int i = 0; i < n; i += 8)
    for (int j = 0; j < 8; ++j) part[j] += a[i + j] * b[i + j];
  return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}
#if defined(__AVX2__)
inline float dot(const float* a, const float* b, int n) {
  __m256 part = _mm256_setzero_ps();
  for (int i = 0; i < n; i += 8)
    part = _mm256_add_ps(part, _mm256_mul_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i)));
  return sum_of_lanes(part);
}
#endif

template <class W>
inline W norm_of(const W* x, int n) {
  const W norm = static_cast<W>(__builtin_sqrt(dot(x, x, n)));
  const W least = static_cast<W>(1e-12);
  return norm > least ? norm : least;
}

// Cosine and sine of pair p of a row, where it turns.
inline const float* phase(const float* table, int length, int pairs, const int32_t* coords, int p) {
  int at = coords[1 + p / pairs];
  at = at < 0 ? 0 : at < length ? at : length - 1;
  return table + 2 * (static_cast<int64_t>(at) * pairs + p % pairs);
}

// What the norm and the rotation of one side of the attention need.
template <class W>
struct Preparation {
  const W* gamma;  // (head_dim,) or null
  const int32_t* coords;
  const float* rope;
  int rope_length, rope_pairs, head_dim;
  W factor;  // of everything
};

template <class W>
inline void turn(W* x, const Preparation<W>& how, int64_t row, W sign) {
  for (int p = 0; p < 3 * how.rope_pairs; ++p) {
    const float* at = phase(how.rope, how.rope_length, how.rope_pairs, how.coords + 4 * row, p);
    const W cos = static_cast<W>(at[0]), sin = sign * static_cast<W>(at[1]);
    const W even = x[2 * p], odd = x[2 * p + 1];
    x[2 * p] = even * cos - odd * sin;
    x[2 * p + 1] = even * sin + odd * cos;
  }
}

template <class T, class W>
inline void widen_row(const T* from, W* to, int n) {
  for (int i = 0; i < n; ++i) to[i] = widen(from[i]);
}

inline void widen_row(const float* from, float* to, int n) {
  int i = 0;
  for (; i + kLanes<float> <= n; i += kLanes<float>) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = from[i];
}

// factor times a row.
template <class W, class T>
inline void scale_row(const W* from, W factor, T* to, int n) {
  for (int i = 0; i < n; ++i) narrow(from[i] * factor, to + i);
}
inline void scale_row(const float* from, float factor, float* to, int n) {
  const Vector<float> by = broadcast(factor);
  int i = 0;
  for (; i + kLanes<float> <= n; i += kLanes<float>) store(to + i, load(from + i) * by);
  for (; i < n; ++i) to[i] = from[i] * factor;
}

#if defined(__AVX512F__)
inline void widen_row(const Float16* from, float* to, int n) {
  for (int i = 0; i < n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm512_castps512_ps256(_mm512_cvtph_ps(_mm256_castsi128_si256(half))));
  }
}
#endif

template <class T, class W>
inline void prepare_row(const T* from, W* to, const Preparation<W>& how, int64_t row) {
  const int n = how.head_dim;
  if constexpr (std::is_same<T, W>::value) {
    if (how.gamma == nullptr && how.rope == nullptr) return scale_row(from, how.factor, to, n);
  }
  widen_row(from, to, n);
  if (how.gamma != nullptr) {
    const W factor =
        static_cast<W>(__builtin_sqrt(static_cast<double>(n))) / norm_of(to, n) * how.factor;
    for (int i = 0; i < n; ++i) to[i] = to[i] * factor * how.gamma[i];
  } else if (how.factor != 1) {
    for (int i = 0; i < n; ++i) to[i] *= how.factor;
  }
  if (how.rope != nullptr) turn(to, how, row, W(1));
}

// The gradient of prepare_row: `grad` in, gradient of the raw row out; gamma's is added to its sum.
template <class T, class W>
inline void prepare_row_backward(const T* from, const W* grad, T* out, W* gamma_sum,
                                 const Preparation<W>& how, int64_t row) {
  const int n = how.head_dim;
  if (how.gamma == nullptr && how.rope == nullptr) return scale_row(grad, how.factor, out, n);
  W x[kMaxHeadDim], g[kMaxHeadDim];
  for (int i = 0; i < n; ++i) g[i] = grad[i] * how.factor;
  if (how.rope != nullptr) turn(g, how, row, W(-1));
  if (how.gamma != nullptr) {
    widen_row(from, x, n);
    const W norm = norm_of(x, n);
    const W root = static_cast<W>(__builtin_sqrt(static_cast<double>(n)));
    for (int i = 0; i < n; ++i) x[i] = x[i] / norm;
    if (gamma_sum != nullptr)
      for (int i = 0; i < n; ++i) gamma_sum[i] += g[i] * x[i] * root;
    for (int i = 0; i < n; ++i) g[i] = g[i] * how.gamma[i] * (root / norm);
    const W along = norm > static_cast<W>(1e-12) ? dot(g, x, n) : W(0);
    for (int i = 0; i < n; ++i) g[i] = g[i] - x[i] * along;
  }
  for (int i = 0; i < n; ++i) narrow(g[i], out + i);
}

template <class T>
inline Preparation<wide<T>> query_preparation(const Attention<T>& in, int64_t head) {
  const int64_t at = head * in.head_dim;
  return {in.q_gamma == nullptr ? nullptr : in.q_gamma + at,
          in.coords,
          in.rope,
          in.rope_length,
          in.rope_pairs,
          in.head_dim,
          in.scale};
}
template <class T>
inline Preparation<wide<T>> key_preparation(const Attention<T>& in, int64_t head) {
  const int64_t at = head * in.head_dim;
  return {in.k_gamma == nullptr ? nullptr : in.k_gamma + at,
          in.coords,
          in.rope,
          in.rope_length,
          in.rope_pairs,
          in.head_dim,
          wide<T>(1)};
}

#if defined(__AVX512F__)
// 16 x 16 words: words `first` to `first` + n of the first `rows` rows; the rest counts as zero.
// Writes n rows of 16, `to_row` apart.
template <class E>
inline void transpose_words(const E* const* rows, int64_t count, int first, int n, E* to,
                            int64_t to_row) {
  auto* out = reinterpret_cast<float*>(to);
  const auto mask = static_cast<__mmask16>(n >= 16 ? 0xffff : (1 << n) - 1);
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    a[i] = i < count ? _mm512_maskz_loadu_ps(mask, rows[i] + first) : _mm512_setzero_ps();
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // a[i + c]: column c of each quarter, of rows i to i + 3
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m512d low = _mm512_castps_pd(b[i + h]), high = _mm512_castps_pd(b[i + 2 + h]);
      a[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      a[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 even01 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0x88);
    const __m512 odd23 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0xdd);
    b[c] = _mm512_shuffle_f32x4(even01, even23, 0x88);
    b[8 + c] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
    b[4 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    b[12 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
  }
#pragma GCC unroll 16
  for (int d = 0; d < 16; ++d)
    if (d < n) _mm512_storeu_ps(out + d * to_row, b[d]);
}
#endif

// `count` rows of n to panels [n][kPanel] of `count` rounded up to a register; what is beside is
// zero.
template <class E>
inline void pack_transposed(const E* const* rows, int64_t count, int n, E* panels) {
  constexpr int kWidth = kPanel<E>;
  const int64_t padded = round_up(count, kLanes<E>);
  for (int64_t first = 0; first < padded; first += kWidth, panels += kWidth * n) {
    const int64_t there = smaller(kWidth, padded - first);
    for (int64_t i = 0; i < there; i += kLanes<E>) {
      const E* const* const from = rows + first + i;
      const int64_t here = smaller(kLanes<E>, count - first - i);
#if defined(__AVX512F__)
      if constexpr (sizeof(E) == 4) {
        for (int d = 0; d < n; d += 16)
          transpose_words(from, here, d, n - d, panels + kWidth * d + i, kWidth);
        continue;
      }
#endif
      for (int d = 0; d < n; ++d) {
        E* const to = panels + kWidth * d + i;
        for (int64_t j = 0; j < here; ++j) to[j] = from[j][d];
        for (int64_t j = here; j < kLanes<E>; ++j) to[j] = 0;
      }
    }
  }
}

template <class T>
inline void add_rows(Ahead& ahead, const HeadRows<T>& rows, const int64_t* list, int64_t count,
                     int64_t head) {
  for (int64_t i = 0; i < count; ++i)
    ahead.rows[ahead.count++] = reinterpret_cast<const char*>(head_row(rows, list[i], head));
}

// Whether prepared rows are the rows as they lie in memory.
template <class T, class W>
inline bool is_plain(const Preparation<W>& how) {
  return std::is_same<T, W>::value && how.gamma == nullptr && how.rope == nullptr &&
         how.factor == 1;
}

// `rows` rows of `row` each, one after the other, as pack_transposed takes them.
template <class E>
inline void list_rows(const E* first, int64_t row, int64_t count, const E** to) {
  for (int64_t i = 0; i < count; ++i) to[i] = first + i * row;
}

// Hands out the scratch memory.
struct Scratch {
  unsigned char* at;
  template <class W>
  W* take(int64_t count) {
    W* here = reinterpret_cast<W*>(at);
    at += round_up(count * static_cast<int64_t>(sizeof(W)), 64);
    return here;
  }
};

}  // namespace
}  // namespace fastshape::cpu
