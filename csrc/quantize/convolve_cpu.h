// The convolution of multi-scale quantization on the CPU, per instruction set.
#pragma once

#include "quantize/multiscale.h"

namespace fastshape::cpu {

// Components of a row of memory: whole vectors of every instruction set.
constexpr int kPadding = 16;
inline int padded_dim(int dim) { return (dim + kPadding - 1) / kPadding * kPadding; }

// A grid of (height, width) vectors of `dim` components; rows of memory have padded_dim(dim).
struct ConvolveSizes {
  int height, width, dim;
};

// out[x] = bias + sum over ky, kx, component of weight * padded, for row y.
//   padded: (height + 2, width + 2, dim), zeros around the grid
//   weight: (9, dim, padded_dim), bias and out: (padded_dim,) and (width, padded_dim)
// and what the transpose gives: sums[tap, i, o] += sum over cells of padded[cell + tap, i] *
// grad[cell, o], with grad (height, width, padded_dim) and sums (9, dim, padded_dim).
#define FASTSHAPE_DECLARE(suffix, T)                                                        \
  void convolve_row_##suffix(const ConvolveSizes& sizes, const T* padded, const T* weight,  \
                             const T* bias, int y, T* out);                                 \
  void convolve_weight_##suffix(const ConvolveSizes& sizes, const T* padded, const T* grad, \
                                T* sums);
#define FASTSHAPE_DECLARE_BOTH(suffix) \
  FASTSHAPE_DECLARE(suffix, float)     \
  FASTSHAPE_DECLARE(suffix, double)
FASTSHAPE_DECLARE_BOTH(portable)
FASTSHAPE_DECLARE_BOTH(avx2)
FASTSHAPE_DECLARE_BOTH(avx512)
#undef FASTSHAPE_DECLARE_BOTH
#undef FASTSHAPE_DECLARE

template <class T>
struct Convolve {
  void (*row)(const ConvolveSizes&, const T*, const T*, const T*, int, T*);
  void (*weight)(const ConvolveSizes&, const T*, const T*, T*);
};

// The best that this build and this machine have.
template <class T>
Convolve<T> convolve();

}  // namespace fastshape::cpu
