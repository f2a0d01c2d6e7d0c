// Softmax attention within sequences of rows: the windows of a sparse voxel grid, or packed
// sequences.
//
// The tokens of all sequences, one after the other, have positions; a sequence's positions are some
// runs of rows. So nothing is gathered: a kernel asks for the row of a position.
//
// Of a query q and the keys k of its sequence: s = scale * (q . k), p = exp(s - lse), where lse is
// the logarithm of the sum of all exp(s), out = sum of p * v. A sequence without keys gives zeros.
// Before that, q and k are each divided by their norm (at least 1e-12) and multiplied by gamma and
// sqrt(head_dim) if there are gammas; then rotated by their voxel's coordinates if there is a
// table: features 2 p and 2 p + 1 by the angle of axis p / rope_pairs and frequency p % rope_pairs,
// those behind the third axis not at all.
//
// Arithmetic is in float (double for double). No result depends on how the work was cut or on the
// number of threads: no atomics, one order for every sum.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/half.h"
#include "core/host_device.h"

namespace fastshape {

template <class T>
using wide = typename Wide<T>::type;

// (rows, heads, head_dim), features side by side.
template <class T>
struct HeadRows {
  T* data;
  int64_t row_stride, head_stride;
};

template <class T>
FASTSHAPE_HOST_DEVICE T* head_row(const HeadRows<T>& rows, int64_t row, int64_t head) {
  return rows.data + row * rows.row_stride + head * rows.head_stride;
}

// Sequence s has positions [offsets[s], offsets[s + 1]). Its runs are run_offsets[s] and on; run r
// has the rows from run_starts[r] on for the positions from run_positions[r] on. Without runs a
// position is a row.
struct Sequences {
  const int32_t* offsets;        // (S + 1,)
  const int32_t* run_offsets;    // (S + 1,)
  const int32_t* run_starts;     // (R,)
  const int32_t* run_positions;  // (R + 1,)
  int64_t total;                 // rows
};

// The row of a position of sequence `sequence`.
FASTSHAPE_HOST_DEVICE int64_t row_of(const Sequences& s, int64_t sequence, int32_t position) {
  if (s.run_offsets == nullptr) return position;
  int32_t low = s.run_offsets[sequence], high = s.run_offsets[sequence + 1];
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    if (s.run_positions[middle] <= position)
      low = middle;
    else
      high = middle;
  }
  return static_cast<int64_t>(s.run_starts[low]) + (position - s.run_positions[low]);
}

template <class T>
struct Attention {
  HeadRows<const T> q, k, v;
  Sequences queries, keys;
  int64_t num_sequences, num_heads;
  int head_dim;  // a multiple of 8, 16 to 128
  wide<T> scale;
  const wide<T>*q_gamma, *k_gamma;  // (heads, head_dim), or null
  const int32_t* coords;            // (rows, 4), with a table
  const float* rope;                // (rope_length, rope_pairs, 2), or null
  int rope_length, rope_pairs;
};

template <class T>
struct AttentionForward {
  Attention<T> in;
  HeadRows<T> out;
  wide<T>* lse;  // (heads, queries.total)
};

// The gammas' gradients come as one part for each of `gamma_parts` shares of the sequences, to be
// added up.
template <class T>
struct AttentionBackward {
  Attention<T> in;
  HeadRows<const T> out, grad_out;
  const wide<T>* lse;
  HeadRows<T> grad_q, grad_k, grad_v;
  int64_t gamma_parts;
  wide<T>*q_gamma_grad, *k_gamma_grad;  // (gamma_parts, heads, head_dim), or null
};

namespace cpu {
template <class T>
void attention(const AttentionForward<T>& task);
template <class T>
void attention_backward(const AttentionBackward<T>& task);
}  // namespace cpu

namespace cuda {
template <class T>
void attention(const AttentionForward<T>& task, cudaStream_t stream);
size_t attention_backward_workspace_bytes(int64_t num_queries, int64_t num_sequences,
                                          int64_t num_heads, int64_t head_dim, bool is_wide);
template <class T>
void attention_backward(const AttentionBackward<T>& task, void* workspace, size_t workspace_bytes,
                        cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
