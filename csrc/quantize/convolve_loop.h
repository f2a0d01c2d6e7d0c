// The CPU's convolution, compiled once per instruction set: include it from one .cpp each.
#pragma once

#include "quantize/convolve_cpu.h"
#include "quantize/lanes.h"

namespace fastshape {
namespace {

constexpr int kTileCells = 8;       // neighbors along x whose sums stand in registers
constexpr int kTileComponents = 8;  // components whose sums of weights do

template <class T, int cells>
FASTSHAPE_INLINE void convolve_cells(const cpu::ConvolveSizes& sizes, const T* padded,
                                     const T* weight, const T* bias, int y, int x, int o, T* out) {
  using Vector = typename Lanes<T>::Vector;
  const int dim = sizes.dim, stride = cpu::padded_dim(dim);
  Vector sum[cells];
  const Vector begin = load(bias + o);
#pragma GCC unroll 8
  for (int k = 0; k < cells; ++k) sum[k] = begin;
  for (int tap = 0; tap < kTaps; ++tap) {
    const T* const w = weight + static_cast<int64_t>(tap) * dim * stride + o;
    const T* const u =
        padded + (static_cast<int64_t>(y + tap / 3) * (sizes.width + 2) + x + tap % 3) * dim;
    for (int i = 0; i < dim; ++i) {
      const Vector row = load(w + static_cast<int64_t>(i) * stride);
#pragma GCC unroll 8
      for (int k = 0; k < cells; ++k) sum[k] = sum[k] + row * all(u[k * dim + i]);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < cells; ++k) store(out + static_cast<int64_t>(x + k) * stride + o, sum[k]);
}

template <class T>
inline void convolve_row_loop(const cpu::ConvolveSizes& sizes, const T* padded, const T* weight,
                              const T* bias, int y, T* out) {
  for (int o = 0; o < cpu::padded_dim(sizes.dim); o += kLanes<T>) {
    int x = 0;
    for (; x + kTileCells <= sizes.width; x += kTileCells)
      convolve_cells<T, kTileCells>(sizes, padded, weight, bias, y, x, o, out);
    for (; x < sizes.width; ++x) convolve_cells<T, 1>(sizes, padded, weight, bias, y, x, o, out);
  }
}

template <class T, int components>
FASTSHAPE_INLINE void weight_components(const cpu::ConvolveSizes& sizes, const T* padded,
                                        const T* grad, int tap, int i, int o, T* sums) {
  using Vector = typename Lanes<T>::Vector;
  const int dim = sizes.dim, stride = cpu::padded_dim(dim);
  Vector sum[components] = {};
  for (int y = 0; y < sizes.height; ++y) {
    const T* u =
        padded + (static_cast<int64_t>(y + tap / 3) * (sizes.width + 2) + tap % 3) * dim + i;
    const T* g = grad + static_cast<int64_t>(y) * sizes.width * stride + o;
    for (int x = 0; x < sizes.width; ++x, u += dim, g += stride) {
      const Vector row = load(g);
#pragma GCC unroll 8
      for (int k = 0; k < components; ++k) sum[k] = sum[k] + row * all(u[k]);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < components; ++k) {
    T* const at = sums + (static_cast<int64_t>(tap) * dim + i + k) * stride + o;
    store(at, load(at) + sum[k]);
  }
}

template <class T>
inline void convolve_weight_loop(const cpu::ConvolveSizes& sizes, const T* padded, const T* grad,
                                 T* sums) {
  for (int tap = 0; tap < kTaps; ++tap)
    for (int o = 0; o < cpu::padded_dim(sizes.dim); o += kLanes<T>) {
      int i = 0;
      for (; i + kTileComponents <= sizes.dim; i += kTileComponents)
        weight_components<T, kTileComponents>(sizes, padded, grad, tap, i, o, sums);
      for (; i < sizes.dim; ++i) weight_components<T, 1>(sizes, padded, grad, tap, i, o, sums);
    }
}

}  // namespace

#define FASTSHAPE_DEFINE_CONVOLVE_OF(suffix, T)                                             \
  void convolve_row_##suffix(const ConvolveSizes& sizes, const T* padded, const T* weight,  \
                             const T* bias, int y, T* out) {                                \
    convolve_row_loop(sizes, padded, weight, bias, y, out);                                 \
  }                                                                                         \
  void convolve_weight_##suffix(const ConvolveSizes& sizes, const T* padded, const T* grad, \
                                T* sums) {                                                  \
    convolve_weight_loop(sizes, padded, grad, sums);                                        \
  }
#define FASTSHAPE_DEFINE_CONVOLVE(suffix)      \
  namespace cpu {                              \
  FASTSHAPE_DEFINE_CONVOLVE_OF(suffix, float)  \
  FASTSHAPE_DEFINE_CONVOLVE_OF(suffix, double) \
  }

}  // namespace fastshape
