// What the instruction sets' translation units give to sparse_conv3d_cpu.cpp.
#pragma once

#include "sparse/sparse_conv3d.h"

namespace fastshape::cpu {

// Two rows that meet at an offset: out of the result's, in of the features'.
struct RowPair {
  int32_t out, in;
};

template <class T>
struct ConvKernels {
  int panel;  // columns of the result that a packed panel holds
  // weight[:, k, :] as panels of (in_channels, panel), zeros in the columns beyond out_channels.
  void (*pack)(const SparseConv3d<T>& task, int k, T* panels);
  // Rows [begin, end) of the result. `sums`: (end - begin) times the columns of all panels.
  void (*rows)(const SparseConv3d<T>& task, const T* panels, int64_t begin, int64_t end,
               typename Wide<T>::type* sums, RowPair* pairs);
};

// The pairs of all offsets, by offset and ascending by the result's row: those of k are
// [begin[k], begin[k + 1]).
struct PairLists {
  const RowPair* pairs;
  const int64_t* begin;
};

// Part of the gradient: these offsets, and these output channels.
struct WeightGradPart {
  int first_offset, end_offset;
  int64_t first_channel, end_channel;
};

template <class T>
struct WeightGradKernel {
  int tile;  // rows of the gradient that are summed together
  void (*sums)(const SparseConv3dWeightGrad<T>& task, const PairLists& lists,
               const WeightGradPart& part);
};

#define FASTSHAPE_DECLARE(suffix)                           \
  void conv_kernels_##suffix(ConvKernels<float>* out);      \
  void conv_kernels_##suffix(ConvKernels<double>* out);     \
  void conv_kernels_##suffix(WeightGradKernel<float>* out); \
  void conv_kernels_##suffix(WeightGradKernel<double>* out);
FASTSHAPE_DECLARE(portable)
FASTSHAPE_DECLARE(avx2)
FASTSHAPE_DECLARE(avx512)
#undef FASTSHAPE_DECLARE
void conv_kernels_avx512bf16(ConvKernels<BFloat16>* out);

}  // namespace fastshape::cpu
