// A grid of vectors as the sum of what codes on coarser and finer grids give: multi-scale residual
// quantization.
//
// r_0 = z; for each scale s: x = Down_s(r_s), a code for each of its tokens, u = Up_s(codes),
// h = (1 - ratio) u + ratio (phi * u + bias), fhat += h, r_s+1 = r_s - h. phi is a convolution of
// 3 x 3 with zeros around the grid; without it h = u.
//
// Down and Up are products of one matrix along each axis, first along x: any linear resampling of a
// grid, or with a height of one any matrix at all. Sums run from left to right over the nonzero
// part of a row, and the codes are the same on every device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "quantize/codebook.h"

namespace fastshape {

constexpr int kMaxScales = 32;
constexpr int kTaps = 9;

// One scale: its matrices, and where in each of their rows what is not zero begins and ends.
template <class T>
struct Scale {
  int height, width;
  int64_t first_token;  // of the scale, in a shape's list of tokens
  int phi;
  const T *down_y, *down_x;                                          // (height, H), (width, W)
  const T *up_y, *up_x;                                              // (H, height), (W, width)
  const int32_t *down_y_band, *down_x_band, *up_y_band, *up_x_band;  // (rows, 2)
  const int32_t *up_y_columns, *up_x_columns;  // (height, 2), (width, 2): of the columns of Up
};

template <class T>
struct Multiscale {
  int64_t batch;
  int height, width, dim;  // of the whole grid
  int num_scales;
  int64_t num_tokens;  // of a shape, over all scales
  Scale<T> scales[kMaxScales];
  const T* codebook;  // (num_codes, dim)
  int64_t num_codes;
  bool cosine;
  const T* phi_weight;  // (phis, 3, 3, dim of u, dim of h), or null
  const T* phi_bias;    // (phis, dim)
  int num_phis;
  T ratio;

  int64_t cells;  // height * width
};

template <class T>
struct MultiscaleForward {
  const T* z;       // (batch, H * W, dim); null: the codes are given, and only fhat is made
  int64_t* codes;   // (batch, num_tokens)
  T* quantized;     // (batch, H * W, dim): fhat
  T* square_error;  // (scales, batch, H * W): |r_s+1|^2; null where z is
  T* residuals;     // (scales, batch, H * W, dim): r_s+1; or null
  T* inputs;  // (batch, num_tokens - tokens of scale 0, dim): Down_s+1(fhat) after scale s; or null
  int64_t* counts;  // (scales, num_codes), or null
};

// Gradients of sum_s (code_weights[s] * |fhat_s - z|^2, z held fast, and residual_weights[s] *
// |z - fhat_s|^2, fhat held fast), each halved.
template <class T>
struct MultiscaleBackward {
  const int64_t* codes;       // (batch, num_tokens)
  const T* residuals;         // (scales, batch, H * W, dim)
  const T* residual_weights;  // (scales,)
  const T* code_weights;      // (scales,)
  T* grad_z;                  // (batch, H * W, dim)
  T* grad_codes;              // (batch, num_tokens, dim): what each token gives to its code
  T* grad_phi_weight;         // as phi_weight, or null
  T* grad_phi_bias;           // as phi_bias, or null
};

// What a token of the coarse grid sees of a row of the fine one.
template <class T>
FASTSHAPE_HOST_DEVICE T down_row(const Multiscale<T>& task, const Scale<T>& scale, const T* grid,
                                 int y, int j, int component) {
  T row = T(0);
  for (int x = scale.down_x_band[2 * j]; x < scale.down_x_band[2 * j + 1]; ++x)
    row = row + scale.down_x[j * task.width + x] *
                    grid[(int64_t{1} * y * task.width + x) * task.dim + component];
  return row;
}

// And of all of it.
template <class T>
FASTSHAPE_HOST_DEVICE T down_component(const Multiscale<T>& task, const Scale<T>& scale,
                                       const T* grid, int i, int j, int component) {
  T sum = T(0);
  for (int y = scale.down_y_band[2 * i]; y < scale.down_y_band[2 * i + 1]; ++y) {
    const T row = down_row(task, scale, grid, y, j, component);
    sum = sum + scale.down_y[i * task.height + y] * row;
  }
  return sum;
}

// A code that is not there counts as zero.
template <class T>
FASTSHAPE_HOST_DEVICE T code_component(const Multiscale<T>& task, int64_t code, int component) {
  return code >= 0 && code < task.num_codes ? task.codebook[code * task.dim + component] : T(0);
}

// What a cell of the fine grid gets from the codes of the coarse one, `tokens` (height, width,
// dim).
template <class T>
FASTSHAPE_HOST_DEVICE T up_component(const Multiscale<T>& task, const Scale<T>& scale,
                                     const T* tokens, int y, int x, int component) {
  T sum = T(0);
  for (int i = scale.up_y_band[2 * y]; i < scale.up_y_band[2 * y + 1]; ++i) {
    T row = T(0);
    for (int j = scale.up_x_band[2 * x]; j < scale.up_x_band[2 * x + 1]; ++j)
      row = row + scale.up_x[x * scale.width + j] *
                      tokens[(int64_t{1} * i * scale.width + j) * task.dim + component];
    sum = sum + scale.up_y[y * scale.height + i] * row;
  }
  return sum;
}

// Its transpose: what a token of the coarse grid gets of a gradient on a column of the fine one.
template <class T>
FASTSHAPE_HOST_DEVICE T up_transposed_column(const Multiscale<T>& task, const Scale<T>& scale,
                                             const T* grid, int i, int x, int component) {
  T column = T(0);
  for (int y = scale.up_y_columns[2 * i]; y < scale.up_y_columns[2 * i + 1]; ++y)
    column = column + scale.up_y[y * scale.height + i] *
                          grid[(int64_t{1} * y * task.width + x) * task.dim + component];
  return column;
}

// And on all of it.
template <class T>
FASTSHAPE_HOST_DEVICE T up_transposed_component(const Multiscale<T>& task, const Scale<T>& scale,
                                                const T* grid, int i, int j, int component) {
  T sum = T(0);
  for (int x = scale.up_x_columns[2 * j]; x < scale.up_x_columns[2 * j + 1]; ++x) {
    const T column = up_transposed_column(task, scale, grid, i, x, component);
    sum = sum + scale.up_x[x * scale.width + j] * column;
  }
  return sum;
}

namespace cpu {
template <class T>
size_t multiscale_workspace_bytes(int64_t num_codes, int dim);
template <class T>
void multiscale_quantize(const Multiscale<T>& task, const MultiscaleForward<T>& out,
                         void* workspace);
template <class T>
void multiscale_backward(const Multiscale<T>& task, const MultiscaleBackward<T>& out);
}  // namespace cpu

namespace cuda {
template <class T>
size_t multiscale_workspace_bytes(int64_t num_codes, int dim, int64_t max_rows, int64_t all_rows,
                                  int64_t grid_rows);
template <class T>
void multiscale_quantize(const Multiscale<T>& task, const MultiscaleForward<T>& out,
                         void* workspace, cudaStream_t stream);
template <class T>
size_t multiscale_backward_workspace_bytes(int dim, int64_t all_rows, int64_t grid_rows,
                                           int num_scales);
template <class T>
void multiscale_backward(const Multiscale<T>& task, const MultiscaleBackward<T>& out,
                         void* workspace, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
