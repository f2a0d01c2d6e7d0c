// Attention of one sequence and one head, in blocks that stay in the caches: products of small
// matrices, a softmax between them. Included by translation units with different instruction-set
// flags, with FASTSHAPE_DEFINE_ATTENTION(suffix).
#pragma once

#include <type_traits>

#include "attention/attention_cpu.h"
#include "attention/attention_rows.h"

namespace fastshape::cpu {
namespace {

constexpr int kQueryBlock = 24;          // rows of scores at a time
constexpr int kBackwardQueryBlock = 48;  // there every block also passes over the keys' gradients

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
