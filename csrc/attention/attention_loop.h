// Attention of one sequence and one head, in blocks that stay in the caches: products of small
// matrices, a softmax between them. Included by translation units with different instruction-set
// flags, with FASTSHAPE_DEFINE_ATTENTION(suffix).
//
// Keys are packed with features outside and keys side by side, in panels as wide as a tile, so that
// every product is sums of a number times a register.
#pragma once

#include <type_traits>

#include "attention/attention_cpu.h"
#include "attention/attention_lanes.h"

namespace fastshape::cpu {
namespace {

constexpr int kMaxHeadDim = 128;
constexpr int kQueryBlock = 24;          // rows of scores at a time
constexpr int kBackwardQueryBlock = 48;  // there every block also passes over the keys' gradients

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class W>
constexpr int kPanel = kTileRegisters * kLanes<W>;  // columns of a tile

// ---- Products ----------------------------------------------------------------------------------

// c[m][n] (+)= sum over t < depth of a[m * a_row + t * a_step] * b[t * b_step + n], of `Rows` rows
// and `Registers` registers of columns. With pairs of bfloat16, t counts pairs.
template <class E, int Rows, int Registers>
inline void tile(const E* a, int64_t a_row, int64_t a_step, const E* b, int64_t b_step,
                 int64_t depth, total<E>* c, int64_t c_row, bool add) {
  using W = total<E>;
  Vector<W> sum[Rows][Registers];
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < Registers; ++n)
      sum[m][n] = add ? load(c + m * c_row + n * kLanes<E>) : zero<W>();
  for (int64_t t = 0; t < depth; ++t, a += a_step, b += b_step) {
    Vector<E> column[Registers];
#pragma GCC unroll 8
    for (int n = 0; n < Registers; ++n) column[n] = load(b + n * kLanes<E>);
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
      const Vector<E> factor = broadcast(a[m * a_row]);
#pragma GCC unroll 8
      for (int n = 0; n < Registers; ++n) sum[m][n] = fused(factor, column[n], sum[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < Registers; ++n) store(c + m * c_row + n * kLanes<E>, sum[m][n]);
}

template <class E, int Registers>
inline void tiles_of_rows(int rows, const E* a, int64_t a_row, int64_t a_step, const E* b,
                          int64_t b_step, int64_t depth, total<E>* c, int64_t c_row, bool add) {
  switch (rows) {
    case 1:
      return tile<E, 1, Registers>(a, a_row, a_step, b, b_step, depth, c, c_row, add);
    case 2:
      return tile<E, 2, Registers>(a, a_row, a_step, b, b_step, depth, c, c_row, add);
    case 3:
      return tile<E, 3, Registers>(a, a_row, a_step, b, b_step, depth, c, c_row, add);
    case 4:
      return tile<E, 4, Registers>(a, a_row, a_step, b, b_step, depth, c, c_row, add);
    case 5:
      return tile<E, 5, Registers>(a, a_row, a_step, b, b_step, depth, c, c_row, add);
    default:
      return tile<E, 6, Registers>(a, a_row, a_step, b, b_step, depth, c, c_row, add);
  }
}

// Rows that are needed soon, asked for a few at a time between tiles: they come while the tiles are
// worked on. More at once than the processor can wait for would be dropped.
struct Ahead {
  static constexpr int kRows = 8;  // of a tile
  const char** rows;
  int64_t count = 0, written = 0;  // from `written` on rows are written to
  int bytes;
  int64_t at = 0;
  void some() {
    const int64_t end = smaller(at + kRows, count);
    for (; at < end; ++at) {
      if (at < written)
        for (int b = 0; b < bytes; b += 64) __builtin_prefetch(rows[at] + b, 0, 2);
      else
        for (int b = 0; b < bytes; b += 64) __builtin_prefetch(rows[at] + b, 1, 2);
    }
  }
};

// `columns` counts lanes and is a multiple of a register's; panel p of b begins at p * b_panel.
// Rows are cut into tiles of nearly equal height.
template <class E>
inline void product(int64_t rows, int64_t columns, int64_t depth, const E* a, int64_t a_row,
                    int64_t a_step, const E* b, int64_t b_step, int64_t b_panel, total<E>* c,
                    int64_t c_row, bool add, Ahead* ahead = nullptr) {
  if (rows == 0) return;
  const int64_t bands = (rows + kTileRows - 1) / kTileRows;
  for (int64_t n = 0; n < columns; n += kPanel<E>, b += b_panel) {
    const int registers = static_cast<int>(smaller(kPanel<E>, columns - n) / kLanes<E>);
    int64_t m = 0;
    for (int64_t band = 0; band < bands; ++band) {
      const int height = static_cast<int>((rows - m) / (bands - band));
      const E* from = a + m * a_row;
      total<E>* to = c + m * c_row + n;
      if (ahead != nullptr) ahead->some();
      switch (registers) {
        case 1:
          tiles_of_rows<E, 1>(height, from, a_row, a_step, b, b_step, depth, to, c_row, add);
          break;
        case 2:
          tiles_of_rows<E, 2>(height, from, a_row, a_step, b, b_step, depth, to, c_row, add);
          break;
#if defined(__AVX512F__)
        case 3:
          tiles_of_rows<E, 3>(height, from, a_row, a_step, b, b_step, depth, to, c_row, add);
          break;
        default:
          tiles_of_rows<E, 4>(height, from, a_row, a_step, b, b_step, depth, to, c_row, add);
          break;
#endif
      }
      m += height;
    }
  }
}

// ---- Rows --------------------------------------------------------------------------------------

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

// ---- Forward -----------------------------------------------------------------------------------

// Scores (rows, ld) of `keys` keys in place: p = exp(s - largest), of all that were seen so far;
// the rows' earlier results are scaled by exp(former largest - largest).
template <class W>
inline void softmax_rows(W* scores, int64_t rows, int64_t ld, int64_t keys, W* largest, W* sum,
                         W* out, int head_dim, bool first) {
  const int64_t last = round_up(keys, kLanes<W>) - kLanes<W>;
  const Vector<W> tail = tail_mask<W>(keys - last);
  for (int64_t i = 0; i < rows; ++i) {
    W* row = scores + i * ld;
    const Vector<W> end = load(row + last) + tail;
    Vector<W> most = end;
    for (int64_t k = 0; k < last; k += kLanes<W>) most = larger(load(row + k), most);
    W top = largest_lane(most);
    if (!first && largest[i] > top) top = largest[i];
    const Vector<W> subtract = broadcast(top);
    Vector<W> total = exponential(end - subtract);
    store(row + last, total);
    for (int64_t k = 0; k < last; k += kLanes<W>) {
      const Vector<W> p = exponential(load(row + k) - subtract);
      store(row + k, p);
      total = total + p;
    }
    if (!first) {
      W shrink[kLanes<W>];
      store(shrink, exponential(broadcast(largest[i] - top)));
      sum[i] *= shrink[0];
      for (int d = 0; d < head_dim; ++d) out[i * head_dim + d] *= shrink[0];
    }
    sum[i] = (first ? W(0) : sum[i]) + sum_of_lanes(total);
    largest[i] = top;
  }
}

// Queries are prepared, and their results finished, a block at a time: what is written often is
// little and stays in the first cache. Of more than one chunk of keys the results are summed in the
// scratch memory.
template <class T>
void forward_item(const AttentionForward<T>& task, const AttentionItem& item, int64_t head,
                  void* scratch) {
  using W = wide<T>;
  const Attention<T>& in = task.in;
  const int n = in.head_dim;
  const int64_t columns = round_up(n, kLanes<W>), queries = item.end_q - item.begin_q;
  const int32_t first_key = in.keys.offsets[item.sequence];
  const int32_t end_key = in.keys.offsets[item.sequence + 1];
  const int64_t most_keys = smaller(kKeyChunk, end_key - first_key);
  const bool one_chunk = end_key - first_key <= kKeyChunk;
  const Preparation<W> query_how = query_preparation(in, head), key_how = key_preparation(in, head);
  const bool plain_keys = is_plain<T>(key_how);
  Scratch memory{static_cast<unsigned char*>(scratch)};
  auto* const query_rows = memory.take<int64_t>(queries);
  auto* const key_rows = memory.take<int64_t>(most_keys);
  auto* const key_list = memory.take<const W*>(most_keys);
  W* const largest = memory.take<W>(queries);
  W* const sum = memory.take<W>(queries);
  W* const q = memory.take<W>(kQueryBlock * n);
  W* const scores = memory.take<W>(kQueryBlock * round_up(most_keys, kLanes<W>));
  W* const k_panels = memory.take<W>((most_keys + kPanel<W>)*n);
  W* const v = memory.take<W>(most_keys * columns);
  W* const sums = memory.take<W>((one_chunk ? kQueryBlock : queries) * columns);
  W* const k = memory.take<W>(plain_keys ? 0 : most_keys * n);
  W* const lse = task.lse + head * in.queries.total;
  Ahead ahead{memory.take<const char*>(2 * (queries + most_keys)), 0, 0,
              n * static_cast<int>(sizeof(T))};

  rows_of(in.queries, item.sequence, item.begin_q, item.end_q, query_rows);
  if (first_key == end_key) {
    for (int64_t i = 0; i < queries; ++i) {
      T* const to = head_row(task.out, query_rows[i], head);
      for (int d = 0; d < n; ++d) narrow(W(0), to + d);
      lse[query_rows[i]] = -static_cast<W>(__builtin_huge_val());
    }
  }
  for (int32_t begin = first_key; begin < end_key; begin += kKeyChunk) {
    const int32_t end = end_key - begin < kKeyChunk ? end_key : begin + kKeyChunk;
    const int64_t keys = end - begin, ld = round_up(keys, kLanes<W>);
    rows_of(in.keys, item.sequence, begin, end, key_rows);
    list_rows<W>(k, n, keys, key_list);
    for (int64_t j = 0; j < keys; ++j) {
      const T* const from = head_row(in.k, key_rows[j], head);
      if (plain_keys)
        key_list[j] = reinterpret_cast<const W*>(from);
      else
        prepare_row(from, k + j * n, key_how, key_rows[j]);
      W* const to = v + j * columns;
      widen_row(head_row(in.v, key_rows[j], head), to, n);
      for (int64_t d = n; d < columns; ++d) to[d] = 0;
    }
    pack_transposed(key_list, keys, n, k_panels);
    const bool first = begin == first_key;
    if (first && head + 1 < in.num_heads) {  // they lie behind this head's
      add_rows(ahead, in.q, query_rows, queries, head + 1);
      add_rows(ahead, in.k, key_rows, keys, head + 1);
      add_rows(ahead, in.v, key_rows, keys, head + 1);
      ahead.written = ahead.count;
      add_rows(ahead, task.out, query_rows, queries, head + 1);
    }
    for (int64_t i = 0; i < queries; i += kQueryBlock) {
      const int64_t rows = smaller(kQueryBlock, queries - i);
      W* const out = sums + (one_chunk ? 0 : i * columns);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = query_rows[i + r];
        prepare_row(head_row(in.q, row, head), q + r * n, query_how, row);
      }
      product<W>(rows, ld, n, q, n, 1, k_panels, kPanel<W>, kPanel<W> * n, scores, ld, false,
                 &ahead);
      softmax_rows(scores, rows, ld, keys, largest + i, sum + i, out, static_cast<int>(columns),
                   first);
      product<W>(rows, columns, keys, scores, ld, 1, v, columns, kPanel<W>, out, columns, !first,
                 &ahead);
      if (end != end_key) continue;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = query_rows[i + r];
        scale_row(out + r * columns, W(1) / sum[i + r], head_row(task.out, row, head), n);
        lse[row] = largest[i + r] + logarithm(sum[i + r]);
      }
    }
  }
}

// ---- Backward ----------------------------------------------------------------------------------

// Whole sequences, in chunks of keys, and within these in blocks of queries. Of more than one chunk
// of keys the queries' gradients are summed in the scratch memory.
template <class T>
void backward_item(const AttentionBackward<T>& task, int64_t sequence, int64_t head,
                   wide<T>* q_gamma_sum, wide<T>* k_gamma_sum, void* scratch) {
  using W = wide<T>;
  const Attention<T>& in = task.in;
  constexpr int64_t kBlock = kBackwardQueryBlock;
  const int n = in.head_dim;
  const int64_t columns = round_up(n, kLanes<W>);
  const int32_t first_query = in.queries.offsets[sequence];
  const int32_t end_query = in.queries.offsets[sequence + 1];
  const int32_t first_key = in.keys.offsets[sequence], end_key = in.keys.offsets[sequence + 1];
  const int64_t queries = end_query - first_query;
  const int64_t most_keys = smaller(kKeyChunk, end_key - first_key);
  const bool one_chunk = end_key - first_key <= kKeyChunk;
  const bool plain_values = std::is_same<T, W>::value;

  Scratch memory{static_cast<unsigned char*>(scratch)};
  auto* const key_rows = memory.take<int64_t>(most_keys);
  auto* const list = memory.take<const W*>(most_keys);
  W* const q = memory.take<W>(kBlock * columns);
  W* const grad_out = memory.take<W>(kBlock * columns);
  W* const k = memory.take<W>(most_keys * columns);
  W* const k_panels = memory.take<W>((most_keys + kPanel<W>)*n);
  W* const v_panels = memory.take<W>((most_keys + kPanel<W>)*n);
  W* const p = memory.take<W>(kBlock * round_up(most_keys, kLanes<W>));
  W* const ds = memory.take<W>(kBlock * round_up(most_keys, kLanes<W>));
  W* const grad_k = memory.take<W>(most_keys * columns);
  W* const grad_v = memory.take<W>(most_keys * columns);
  W* const v = memory.take<W>(plain_values ? 0 : most_keys * n);
  W* const grad_q_sums = memory.take<W>((one_chunk ? kBlock : queries) * columns);

  const Preparation<W> query_how = query_preparation(in, head), key_how = key_preparation(in, head);
  const W* const lse_of_head = task.lse + head * in.queries.total;
  if (first_key == end_key) {
    for (int32_t at = first_query; at < end_query; ++at) {
      const int64_t row = row_of(in.queries, sequence, at);
      for (int64_t d = 0; d < columns; ++d) q[d] = 0;
      prepare_row_backward(head_row(in.q, row, head), q, head_row(task.grad_q, row, head),
                           q_gamma_sum, query_how, row);
    }
  }
  for (int32_t begin = first_key; begin < end_key; begin += kKeyChunk) {
    const int32_t end = end_key - begin < kKeyChunk ? end_key : begin + kKeyChunk;
    const int64_t keys = end - begin, ld = round_up(keys, kLanes<W>);
    rows_of(in.keys, sequence, begin, end, key_rows);
    for (int64_t j = 0; j < keys; ++j) {
      W* const to = k + j * columns;
      prepare_row(head_row(in.k, key_rows[j], head), to, key_how, key_rows[j]);
      for (int64_t d = n; d < columns; ++d) to[d] = 0;
    }
    list_rows<W>(k, columns, keys, list);
    pack_transposed(list, keys, n, k_panels);
    list_rows<W>(v, n, keys, list);
    for (int64_t j = 0; j < keys; ++j) {
      const T* const from = head_row(in.v, key_rows[j], head);
      if (plain_values)
        list[j] = reinterpret_cast<const W*>(from);
      else
        widen_row(from, v + j * n, n);
    }
    pack_transposed(list, keys, n, v_panels);

    for (int64_t i = 0; i < queries; i += kBlock) {
      const int64_t rows = smaller(kBlock, queries - i);
      int64_t query_rows[kBlock];
      W lse[kBlock], delta[kBlock];
      const auto first_row = static_cast<int32_t>(first_query + i);
      rows_of(in.queries, sequence, first_row, static_cast<int32_t>(first_row + rows), query_rows);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = query_rows[r];
        W *const to = q + r * columns, *const g = grad_out + r * columns;
        prepare_row(head_row(in.q, row, head), to, query_how, row);
        widen_row(head_row(task.grad_out, row, head), g, n);
        const T* const o = head_row(task.out, row, head);
        if constexpr (std::is_same<T, W>::value) {
          delta[r] = dot(g, o, n);
        } else {
          W wide_o[kMaxHeadDim];
          widen_row(o, wide_o, n);
          delta[r] = dot(g, wide_o, n);
        }
        lse[r] = lse_of_head[row];
        for (int64_t d = n; d < columns; ++d) to[d] = g[d] = 0;
      }
      product<W>(rows, ld, n, q, columns, 1, k_panels, kPanel<W>, kPanel<W> * n, p, ld, false);
      product<W>(rows, ld, n, grad_out, columns, 1, v_panels, kPanel<W>, kPanel<W> * n, ds, ld,
                 false);
      for (int64_t r = 0; r < rows; ++r) {
        const Vector<W> subtract = broadcast(lse[r]), less = broadcast(delta[r]);
        W *const p_row = p + r * ld, *const ds_row = ds + r * ld;
        for (int64_t j = 0; j < ld; j += kLanes<W>) {
          const Vector<W> here = exponential(load(p_row + j) - subtract);
          store(p_row + j, here);
          store(ds_row + j, here * (load(ds_row + j) - less));
        }
      }
      W* const grad_q = grad_q_sums + (one_chunk ? 0 : i * columns);
      product<W>(rows, columns, keys, ds, ld, 1, k, columns, kPanel<W>, grad_q, columns,
                 begin != first_key);
      if (end == end_key)
        for (int64_t r = 0; r < rows; ++r)
          prepare_row_backward(head_row(in.q, query_rows[r], head), grad_q + r * columns,
                               head_row(task.grad_q, query_rows[r], head), q_gamma_sum, query_how,
                               query_rows[r]);
      product<W>(keys, columns, rows, p, 1, ld, grad_out, columns, kPanel<W>, grad_v, columns,
                 i != 0);
      product<W>(keys, columns, rows, ds, 1, ld, q, columns, kPanel<W>, grad_k, columns, i != 0);
    }
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t row = key_rows[j];
      T *const to_k = head_row(task.grad_k, row, head), *const to_v =
                                                            head_row(task.grad_v, row, head);
      if (queries == 0)
        for (int64_t d = 0; d < columns; ++d) grad_k[j * columns + d] = grad_v[j * columns + d] = 0;
      prepare_row_backward(head_row(in.k, row, head), grad_k + j * columns, to_k, k_gamma_sum,
                           key_how, row);
      scale_row(grad_v + j * columns, W(1), to_v, n);
    }
  }
}

}  // namespace

#define FASTSHAPE_DEFINE_FOR(suffix, T)                                                           \
  void attention_item_##suffix(const AttentionForward<T>& task, const AttentionItem& item,        \
                               int64_t head, void* scratch) {                                     \
    forward_item(task, item, head, scratch);                                                      \
  }                                                                                               \
  void attention_backward_item_##suffix(const AttentionBackward<T>& task, int64_t sequence,       \
                                        int64_t head, wide<T>* q_gamma_sum, wide<T>* k_gamma_sum, \
                                        void* scratch) {                                          \
    backward_item(task, sequence, head, q_gamma_sum, k_gamma_sum, scratch);                       \
  }
#define FASTSHAPE_DEFINE_ATTENTION(suffix) \
  FASTSHAPE_DEFINE_FOR(suffix, float)      \
  FASTSHAPE_DEFINE_FOR(suffix, double)     \
  FASTSHAPE_DEFINE_FOR(suffix, BFloat16)   \
  FASTSHAPE_DEFINE_FOR(suffix, Float16)

}  // namespace fastshape::cpu
