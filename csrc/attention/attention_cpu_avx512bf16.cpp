// bfloat16 by the processor's products of pairs: twice as many a cycle as those of floats. Queries,
// keys, values, probabilities and their gradients are rounded to bfloat16 before a product, sums
// are floats.
#include "attention/attention_loop.h"

namespace fastshape::cpu {
namespace {

using Pair = uint32_t;  // two bfloat16, the first one low

// Features of a row, or positions of a column, in pairs.
struct PairRows {
  BFloat16* data;
  int64_t stride;  // in bfloat16, even
  BFloat16* row(int64_t i) const { return data + i * stride; }
  const Pair* pairs(int64_t i) const {
    return reinterpret_cast<const Pair*>(__builtin_assume_aligned(data + i * stride, 4));
  }
};

inline __m256i narrow_lanes(Vector<float> a) { return (__m256i)_mm512_cvtneps_pbh((__m512)a.v); }

// A prepared row, rounded.
inline void prepare_pairs(const BFloat16* from, BFloat16* to, const Preparation<float>& how,
                          int64_t row) {
  const int n = how.head_dim;
  if (how.gamma == nullptr && how.rope == nullptr) {
    __builtin_memcpy(to, from, static_cast<size_t>(n) * sizeof(BFloat16));
    return;
  }
  float wide_row[kMaxHeadDim];
  prepare_row(from, wide_row, how, row);
  for (int i = 0; i < n; ++i) narrow(wide_row[i], to + i);
}

// Two rows side by side: [n] pairs, zeros up to `columns`. Without a second row: zeros.
inline void interleave(const BFloat16* first, const BFloat16* second, int n, int64_t columns,
                       Pair* to) {
  for (int64_t d = 0; d < columns; d += 16) {
    const auto mask = static_cast<__mmask16>(n - d >= 16 ? 0xffff : (1 << (n - d)) - 1);
    const __m256i low = _mm256_maskz_loadu_epi16(mask, first + d);
    const __m256i high =
        second == nullptr ? _mm256_setzero_si256() : _mm256_maskz_loadu_epi16(mask, second + d);
    _mm512_storeu_si512(to + d,
                        _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                                        _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
  }
}

// All rows as pairs of rows: [ceil(count / 2)][columns].
inline void pair_rows(const PairRows& rows, int64_t count, int n, int64_t columns, Pair* to) {
  for (int64_t i = 0; i < count; i += 2, to += columns)
    interleave(rows.row(i), i + 1 < count ? rows.row(i + 1) : nullptr, n, columns, to);
}

inline PairRows take_rows(Scratch& memory, int64_t count, int n) {
  return {memory.take<BFloat16>(count * n), n};
}

void forward_pairs(const AttentionForward<BFloat16>& task, const AttentionItem& item, int64_t head,
                   void* scratch) {
  const Attention<BFloat16>& in = task.in;
  const int n = in.head_dim;
  const int64_t columns = round_up(n, 16), queries = item.end_q - item.begin_q;
  Scratch memory{static_cast<unsigned char*>(scratch)};
  auto* const query_rows = memory.take<int64_t>(kQueryChunk);
  auto* const key_rows = memory.take<int64_t>(kKeyChunk);
  auto* const list = memory.take<const Pair*>(kKeyChunk);
  const PairRows q = take_rows(memory, kQueryChunk, n), k = take_rows(memory, kKeyChunk, n);
  auto* const out = memory.take<float>(kQueryChunk * kMaxHeadDim);
  auto* const largest = memory.take<float>(kQueryChunk);
  auto* const sum = memory.take<float>(kQueryChunk);
  auto* const k_panels = memory.take<Pair>((kKeyChunk + kPanel<Pair>)*kMaxHeadDim / 2);
  auto* const v_pairs = memory.take<Pair>(kKeyChunk / 2 * kMaxHeadDim);
  auto* const scores = memory.take<float>(kQueryBlock * kKeyChunk);
  auto* const p = memory.take<BFloat16>(kQueryBlock * kKeyChunk);

  rows_of(in.queries, item.sequence, item.begin_q, item.end_q, query_rows);
  Preparation<float> query_how = query_preparation(in, head);
  query_how.factor = 1;  // the scores are scaled instead: no second rounding
  const Preparation<float> key_how = key_preparation(in, head);
  for (int64_t i = 0; i < queries; ++i)
    prepare_pairs(head_row(in.q, query_rows[i], head), q.row(i), query_how, query_rows[i]);

  const Vector<float> scale = broadcast(in.scale);
  const float infinity = __builtin_huge_valf();
  const int32_t first_key = in.keys.offsets[item.sequence];
  const int32_t end_key = in.keys.offsets[item.sequence + 1];
  for (int32_t begin = first_key; begin < end_key; begin += kKeyChunk) {
    const int32_t end = end_key - begin < kKeyChunk ? end_key : begin + kKeyChunk;
    const int64_t keys = end - begin, ld = round_up(keys, 16);
    const bool first = begin == first_key;
    const Vector<float> tail = tail_mask<float>(keys - (ld - 16));
    rows_of(in.keys, item.sequence, begin, end, key_rows);
    for (int64_t j = 0; j < keys; ++j)
      prepare_pairs(head_row(in.k, key_rows[j], head), k.row(j), key_how, key_rows[j]);
    for (int64_t j = 0; j < keys; j += 2)
      interleave(head_row(in.v, key_rows[j], head),
                 j + 1 < keys ? head_row(in.v, key_rows[j + 1], head) : nullptr, n, columns,
                 v_pairs + j / 2 * columns);
    list_rows(k.pairs(0), n / 2, keys, list);
    pack_transposed(list, keys, n / 2, k_panels);
    for (int64_t i = 0; i < queries; i += kQueryBlock) {
      const int64_t rows = smaller(kQueryBlock, queries - i);
      product<Pair>(rows, ld, n / 2, q.pairs(i), n / 2, 1, k_panels, kPanel<Pair>,
                    kPanel<Pair> * (n / 2), scores, ld, false);
      for (int64_t r = 0; r < rows; ++r) {
        const float* const row = scores + r * ld;
        const Vector<float> end = fused(load(row + ld - 16), scale, tail);
        Vector<float> most = end;
        for (int64_t j = 0; j < ld - 16; j += 16) most = larger(load(row + j) * scale, most);
        float& top = largest[i + r];
        const float former = top, here = largest_lane(most);
        top = first || here > former ? here : former;
        const Vector<float> subtract = broadcast(top), negative = broadcast(-top);
        BFloat16* const to = p + r * ld;
        Vector<float> total = exponential(end - subtract);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + ld - 16), narrow_lanes(total));
        for (int64_t j = 0; j < ld - 16; j += 16) {
          const Vector<float> x = exponential(fused(load(row + j), scale, negative));
          total = total + x;
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + j), narrow_lanes(x));
        }
        if (first) {
          sum[i + r] = sum_of_lanes(total);
        } else {
          float shrink[16];
          store(shrink, exponential(broadcast(former - top)));
          sum[i + r] = sum[i + r] * shrink[0] + sum_of_lanes(total);
          for (int64_t d = 0; d < columns; ++d) out[(i + r) * columns + d] *= shrink[0];
        }
      }
      product<Pair>(rows, columns, (keys + 1) / 2, reinterpret_cast<const Pair*>(p), ld / 2, 1,
                    v_pairs, columns, kPanel<Pair>, out + i * columns, columns, !first);
    }
  }

  float* const lse = task.lse + head * in.queries.total;
  for (int64_t i = 0; i < queries; ++i) {
    BFloat16* const to = head_row(task.out, query_rows[i], head);
    const bool empty = first_key == end_key;
    const float inverse = empty ? 0.0f : 1.0f / sum[i];
    for (int d = 0; d < n; ++d) narrow(empty ? 0.0f : out[i * columns + d] * inverse, to + d);
    lse[query_rows[i]] = empty ? -infinity : largest[i] + logarithm(sum[i]);
  }
}

// As backward_item.
void backward_pairs(const AttentionBackward<BFloat16>& task, int64_t sequence, int64_t head,
                    float* q_gamma_sum, float* k_gamma_sum, void* scratch) {
  const Attention<BFloat16>& in = task.in;
  const int n = in.head_dim;
  const int64_t columns = round_up(n, 16);
  const int32_t first_query = in.queries.offsets[sequence];
  const int32_t end_query = in.queries.offsets[sequence + 1];
  const int32_t first_key = in.keys.offsets[sequence], end_key = in.keys.offsets[sequence + 1];

  constexpr int kBlock = kBackwardQueryBlock;
  Scratch memory{static_cast<unsigned char*>(scratch)};
  auto* const query_rows = memory.take<int64_t>(kQueryChunk);
  auto* const key_rows = memory.take<int64_t>(kKeyChunk);
  auto* const list = memory.take<const Pair*>(kKeyChunk);
  const PairRows q = take_rows(memory, kQueryChunk, n), g = take_rows(memory, kQueryChunk, n);
  const PairRows k = take_rows(memory, kKeyChunk, n), v = take_rows(memory, kKeyChunk, n);
  auto* const lse = memory.take<float>(kQueryChunk);
  auto* const delta = memory.take<float>(kQueryChunk);
  auto* const q_pairs = memory.take<Pair>(kQueryChunk / 2 * kMaxHeadDim);
  auto* const g_pairs = memory.take<Pair>(kQueryChunk / 2 * kMaxHeadDim);
  auto* const k_pairs = memory.take<Pair>(kKeyChunk / 2 * kMaxHeadDim);
  auto* const k_panels = memory.take<Pair>((kKeyChunk + kPanel<Pair>)*kMaxHeadDim / 2);
  auto* const v_panels = memory.take<Pair>((kKeyChunk + kPanel<Pair>)*kMaxHeadDim / 2);
  auto* const grad_k = memory.take<float>(kKeyChunk * kMaxHeadDim);
  auto* const grad_v = memory.take<float>(kKeyChunk * kMaxHeadDim);
  auto* const scores = memory.take<float>(kBlock * kKeyChunk);
  auto* const products = memory.take<float>(kBlock * kKeyChunk);
  auto* const p_pairs = memory.take<Pair>(kBlock / 2 * kKeyChunk);   // queries in pairs
  auto* const ds_pairs = memory.take<Pair>(kBlock / 2 * kKeyChunk);  // queries in pairs
  auto* const ds = memory.take<BFloat16>(kBlock * kKeyChunk);
  auto* const grad_q = memory.take<float>((end_query - first_query) * columns);

  Preparation<float> query_how = query_preparation(in, head), key_how = key_preparation(in, head);
  query_how.factor = 1;
  Preparation<float> query_back = query_how, key_back = key_how;
  query_back.factor = key_back.factor = in.scale;
  const Vector<float> scale = broadcast(in.scale);
  const float* const lse_of_head = task.lse + head * in.queries.total;

  for (int32_t begin = first_key; begin < end_key; begin += kKeyChunk) {
    const int32_t end = end_key - begin < kKeyChunk ? end_key : begin + kKeyChunk;
    const int64_t keys = end - begin, ld = round_up(keys, 16);
    rows_of(in.keys, sequence, begin, end, key_rows);
    for (int64_t j = 0; j < keys; ++j) {
      prepare_pairs(head_row(in.k, key_rows[j], head), k.row(j), key_how, key_rows[j]);
      __builtin_memcpy(v.row(j), head_row(in.v, key_rows[j], head),
                       static_cast<size_t>(n) * sizeof(BFloat16));
    }
    list_rows(k.pairs(0), n / 2, keys, list);
    pack_transposed(list, keys, n / 2, k_panels);
    list_rows(v.pairs(0), n / 2, keys, list);
    pack_transposed(list, keys, n / 2, v_panels);
    pair_rows(k, keys, n, columns, k_pairs);
    for (int64_t i = 0; i < keys * columns; ++i) grad_k[i] = 0;
    for (int64_t i = 0; i < keys * columns; ++i) grad_v[i] = 0;

    for (int32_t begin_q = first_query; begin_q < end_query; begin_q += kQueryChunk) {
      const int32_t end_q = end_query - begin_q < kQueryChunk ? end_query : begin_q + kQueryChunk;
      const int64_t queries = end_q - begin_q;
      rows_of(in.queries, sequence, begin_q, end_q, query_rows);
      for (int64_t i = 0; i < queries; ++i) {
        const int64_t row = query_rows[i];
        prepare_pairs(head_row(in.q, row, head), q.row(i), query_how, row);
        __builtin_memcpy(g.row(i), head_row(task.grad_out, row, head),
                         static_cast<size_t>(n) * sizeof(BFloat16));
        float left[kMaxHeadDim], right[kMaxHeadDim];
        widen_row(head_row(task.out, row, head), left, n);
        widen_row(g.row(i), right, n);
        delta[i] = dot(left, right, n);
        lse[i] = lse_of_head[row];
      }
      pair_rows(q, queries, n, columns, q_pairs);
      pair_rows(g, queries, n, columns, g_pairs);
      float* const grad_q_chunk = grad_q + (begin_q - first_query) * columns;
      for (int64_t i = 0; i < queries; i += kBlock) {
        const int64_t rows = smaller(kBlock, queries - i), pairs = (rows + 1) / 2;
        product<Pair>(rows, ld, n / 2, q.pairs(i), n / 2, 1, k_panels, kPanel<Pair>,
                      kPanel<Pair> * (n / 2), scores, ld, false);
        product<Pair>(rows, ld, n / 2, g.pairs(i), n / 2, 1, v_panels, kPanel<Pair>,
                      kPanel<Pair> * (n / 2), products, ld, false);
        for (int64_t r = 0; r < rows; r += 2) {
          const bool two = r + 1 < rows;
          for (int64_t j = 0; j < ld; j += 16) {
            const auto mask =
                static_cast<__mmask16>(keys - j >= 16 ? 0xffff : (1 << (keys - j)) - 1);
            __m512i p_both = _mm512_setzero_si512(), ds_both = _mm512_setzero_si512();
            for (int64_t h = 0; h < (two ? 2 : 1); ++h) {
              const int64_t at = (r + h) * ld + j;
              const Vector<float> x =
                  exponential(fused(load(scores + at), scale, broadcast(-lse[i + r + h])));
              const Vector<float> here = {
                  (Vector<float>::Register)_mm512_maskz_mov_ps(mask, (__m512)x.v)};
              const Vector<float> grad = here * (load(products + at) - broadcast(delta[i + r + h]));
              const __m256i p_16 = narrow_lanes(here), ds_16 = narrow_lanes(grad);
              _mm256_storeu_si256(reinterpret_cast<__m256i*>(ds + at), ds_16);
              const __m512i p_32 = _mm512_cvtepu16_epi32(p_16);
              const __m512i ds_32 = _mm512_cvtepu16_epi32(ds_16);
              p_both = h == 0 ? p_32 : _mm512_or_si512(p_both, _mm512_slli_epi32(p_32, 16));
              ds_both = h == 0 ? ds_32 : _mm512_or_si512(ds_both, _mm512_slli_epi32(ds_32, 16));
            }
            _mm512_storeu_si512(p_pairs + r / 2 * ld + j, p_both);
            _mm512_storeu_si512(ds_pairs + r / 2 * ld + j, ds_both);
          }
        }
        product<Pair>(rows, columns, (keys + 1) / 2, reinterpret_cast<const Pair*>(ds), ld / 2, 1,
                      k_pairs, columns, kPanel<Pair>, grad_q_chunk + i * columns, columns,
                      begin != first_key);
        product<Pair>(keys, columns, pairs, p_pairs, 1, ld, g_pairs + i / 2 * columns, columns,
                      kPanel<Pair>, grad_v, columns, true);
        product<Pair>(keys, columns, pairs, ds_pairs, 1, ld, q_pairs + i / 2 * columns, columns,
                      kPanel<Pair>, grad_k, columns, true);
      }
    }
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t row = key_rows[j];
      prepare_row_backward(head_row(in.k, row, head), grad_k + j * columns,
                           head_row(task.grad_k, row, head), k_gamma_sum, key_back, row);
      BFloat16* const to = head_row(task.grad_v, row, head);
      for (int d = 0; d < n; ++d) narrow(grad_v[j * columns + d], to + d);
    }
  }

  if (first_key == end_key)
    for (int64_t i = 0; i < (end_query - first_query) * columns; ++i) grad_q[i] = 0;
  for (int32_t begin_q = first_query; begin_q < end_query; begin_q += kQueryChunk) {
    const int32_t end_q = end_query - begin_q < kQueryChunk ? end_query : begin_q + kQueryChunk;
    rows_of(in.queries, sequence, begin_q, end_q, query_rows);
    for (int64_t i = 0; i < end_q - begin_q; ++i) {
      const int64_t row = query_rows[i];
      prepare_row_backward(head_row(in.q, row, head),
                           grad_q + (begin_q - first_query + i) * columns,
                           head_row(task.grad_q, row, head), q_gamma_sum, query_back, row);
    }
  }
}

}  // namespace

void attention_item_avx512bf16(const AttentionForward<BFloat16>& task, const AttentionItem& item,
                               int64_t head, void* scratch) {
  forward_pairs(task, item, head, scratch);
}
void attention_backward_item_avx512bf16(const AttentionBackward<BFloat16>& task, int64_t sequence,
                                        int64_t head, float* q_gamma_sum, float* k_gamma_sum,
                                        void* scratch) {
  backward_pairs(task, sequence, head, q_gamma_sum, k_gamma_sum, scratch);
}

}  // namespace fastshape::cpu
