#include "quantize/multiscale.h"

#include "quantize/search.cuh"

// Five launches a scale: down, search, pick, up, and one that folds with phi and takes the result
// from what is left. Backward needs no order of scales but for one sum over them.

namespace fastshape::cuda {
namespace {

// ---- Down, pick, up ------------------------------------------------------------------------

// One component of one token; `in` (batch, cells, dim).
template <class T>
__global__ void down_kernel(Multiscale<T> task, int s, const T* in, T* out, int64_t out_stride) {
  const Scale<T>& scale = task.scales[s];
  const int64_t i = thread_index();
  const int64_t tokens = int64_t{1} * scale.height * scale.width;
  if (i >= task.batch * tokens * task.dim) return;
  const int component = static_cast<int>(i % task.dim);
  const int64_t token = i / task.dim % tokens, b = i / task.dim / tokens;
  out[b * out_stride + token * task.dim + component] = down_component(
      task, scale, in + b * task.cells * task.dim, static_cast<int>(token / scale.width),
      static_cast<int>(token % scale.width), component);
}

// The same with a block for each token, for tokens that see much of the grid: its rows side by
// side, then their sum. Shared memory: (rows of the grid, dim).
template <class T>
__global__ void down_wide_kernel(Multiscale<T> task, int s, const T* in, T* out,
                                 int64_t out_stride) {
  const Scale<T>& scale = task.scales[s];
  T* const rows = shared_tail<T>(0);
  const int64_t tokens = int64_t{1} * scale.height * scale.width;
  const int64_t token = blockIdx.x % tokens, b = blockIdx.x / tokens;
  const int i = static_cast<int>(token / scale.width), j = static_cast<int>(token % scale.width);
  const int begin = scale.down_y_band[2 * i], count = scale.down_y_band[2 * i + 1] - begin;
  const T* const grid = in + b * task.cells * task.dim;
  for (int k = static_cast<int>(threadIdx.x); k < count * task.dim; k += kBlock)
    rows[k] = down_row(task, scale, grid, begin + k / task.dim, j, k % task.dim);
  __syncthreads();
  for (int component = static_cast<int>(threadIdx.x); component < task.dim; component += kBlock) {
    T sum = T(0);
    for (int k = 0; k < count; ++k)
      sum = sum + scale.down_y[i * task.height + begin + k] * rows[k * task.dim + component];
    out[b * out_stride + token * task.dim + component] = sum;
  }
}

constexpr size_t kWideBytes = 48 * 1024;

template <class T>
void down(const char* op, const Multiscale<T>& task, int s, const T* in, T* out, int64_t out_stride,
          cudaStream_t stream) {
  const int64_t tokens = int64_t{1} * task.scales[s].height * task.scales[s].width;
  const size_t bytes = static_cast<size_t>(task.height) * task.dim * sizeof(T);
  if (8 * tokens < task.cells && bytes <= kWideBytes)
    launch(op, down_wide_kernel<T>, dim3(static_cast<unsigned>(task.batch * tokens)), dim3(kBlock),
           bytes, stream, task, s, in, out, out_stride);
  else
    launch(op, down_kernel<T>, blocks_for(task.batch * tokens * task.dim), dim3(kBlock), 0, stream,
           task, s, in, out, out_stride);
}

// A warp for each token of a scale: its code, and the code's vector, (batch, num_tokens, dim).
template <class T>
__global__ void pick_kernel(Multiscale<T> task, int s, SearchParts<T> parts, int64_t* codes,
                            int64_t* counts, T* vectors) {
  const Scale<T>& scale = task.scales[s];
  const int64_t tokens = int64_t{1} * scale.height * scale.width;
  const int64_t row = thread_index() / 32;
  if (row >= task.batch * tokens) return;
  const int32_t code = best_of_parts(parts, task.batch * tokens, row);
  const int64_t place = row / tokens * task.num_tokens + scale.first_token + row % tokens;
  for (int i = static_cast<int>(lane_id()); i < task.dim; i += 32)
    vectors[place * task.dim + i] = code_component(task, code, i);
  if (lane_id() != 0) return;
  codes[place] = code;
  if (counts != nullptr) count_code(counts + s * task.num_codes, code);
}

// The vectors of codes that are given.
template <class T>
__global__ void vectors_kernel(Multiscale<T> task, const int64_t* codes, T* vectors) {
  const int64_t i = thread_index();
  if (i < task.batch * task.num_tokens * task.dim)
    vectors[i] = code_component(task, codes[i / task.dim], static_cast<int>(i % task.dim));
}

// u of the scales from `first` on, a plane of blocks each: (scales, batch, cells, dim).
template <class T>
__global__ void up_kernel(Multiscale<T> task, int first, const T* vectors, T* up) {
  const int64_t i = thread_index(), values = task.batch * task.cells * task.dim;
  if (i >= values) return;
  const Scale<T>& scale = task.scales[first + static_cast<int>(blockIdx.y)];
  const int component = static_cast<int>(i % task.dim);
  const int64_t cell = i / task.dim % task.cells, b = i / task.dim / task.cells;
  up[blockIdx.y * values + i] = up_component(
      task, scale, vectors + (b * task.num_tokens + scale.first_token) * task.dim,
      static_cast<int>(cell / task.width), static_cast<int>(cell % task.width), component);
}

// ---- Phi, subtract -------------------------------------------------------------------------

constexpr int kApplyThreads = 256;
constexpr size_t kTileBytes = 64 * 1024;

// Cells along x that a block takes: with a border, on three rows, they stay in shared memory.
template <class T>
int tile_width(int width, int dim) {
  const auto row_bytes = 3 * static_cast<size_t>(dim) * sizeof(T);
  const int most = static_cast<int>(kTileBytes / row_bytes) - 2;
  const int tile = most < 1 ? 1 : most > 32 ? 32 : most;
  return tile < width ? tile : width;
}

template <class T>
size_t tile_bytes(int tile, int dim) {
  return 3 * static_cast<size_t>(tile + 2) * static_cast<size_t>(dim) * sizeof(T);
}

// Which cells a block has: `tile` of them from x on, in row y of sample b.
struct Tile {
  int64_t b;
  int y, x, cells;
};

template <class T>
__device__ __forceinline__ Tile tile_of(const Multiscale<T>& task, int tile) {
  const int tiles = (task.width + tile - 1) / tile;
  const int64_t block = blockIdx.x;
  Tile t;
  t.x = static_cast<int>(block % tiles) * tile;
  t.y = static_cast<int>(block / tiles % task.height);
  t.b = block / tiles / task.height;
  t.cells = task.width - t.x < tile ? task.width - t.x : tile;
  return t;
}

// Fills (3, cells + 2, dim) around the tile with value(y, x, component), zero outside of the grid.
template <class T, class F>
__device__ __forceinline__ void fill_tile(const Multiscale<T>& task, const Tile& t, T* shared,
                                          F&& value) {
  const int wide = t.cells + 2;
  for (int i = static_cast<int>(threadIdx.x); i < 3 * wide * task.dim; i += kApplyThreads) {
    const int component = i % task.dim;
    const int y = t.y - 1 + i / task.dim / wide, x = t.x - 1 + i / task.dim % wide;
    const bool inside = y >= 0 && y < task.height && x >= 0 && x < task.width;
    shared[i] = inside ? value(y, x, component) : T(0);
  }
}

template <class T>
__global__ void __launch_bounds__(kApplyThreads)
    apply_kernel(Multiscale<T> task, int s, int tile, MultiscaleForward<T> out, const T* up,
                 const T* before, T* residual) {
  const Scale<T>& scale = task.scales[s];
  T* const u = shared_tail<T>(0);
  const Tile t = tile_of(task, tile);
  const int dim = task.dim, wide = t.cells + 2;
  const T* const of_sample = up + t.b * task.cells * dim;
  fill_tile(task, t, u, [&](int y, int x, int component) {
    return of_sample[(int64_t{1} * y * task.width + x) * dim + component];
  });
  __syncthreads();
  const T* const weight = task.phi_weight == nullptr
                              ? nullptr
                              : task.phi_weight + int64_t{1} * scale.phi * kTaps * dim * dim;
  const int64_t first = (t.b * task.height + t.y) * task.width + t.x;
  for (int i = static_cast<int>(threadIdx.x); i < t.cells * dim; i += kApplyThreads) {
    const int cell = i / dim, component = i % dim;
    T h = u[(wide + cell + 1) * dim + component];
    if (weight != nullptr) {
      T sum = task.phi_bias[scale.phi * dim + component];
      for (int tap = 0; tap < kTaps; ++tap) {
        const T* const from = u + (tap / 3 * wide + cell + tap % 3) * dim;
        const T* const w = weight + tap * dim * dim + component;
        for (int k = 0; k < dim; ++k) sum = sum + w[k * dim] * from[k];
      }
      h = (T(1) - task.ratio) * h + task.ratio * sum;
    }
    const int64_t at = first * dim + i;
    out.quantized[at] = (s == 0 ? T(0) : out.quantized[at]) + h;
    if (out.z != nullptr) residual[at] = before[at] - h;
  }
  if (out.z == nullptr) return;
  __syncthreads();
  for (int cell = static_cast<int>(threadIdx.x); cell < t.cells; cell += kApplyThreads) {
    const T* const left = residual + (first + cell) * dim;
    T error = T(0);
    for (int k = 0; k < dim; ++k) error = error + left[k] * left[k];
    out.square_error[s * task.batch * task.cells + first + cell] = error;
  }
}

// ---- Backward ----------------------------------------------------------------------------------

// One component of one cell, over the scales from the last to the first.
template <class T>
__global__ void grad_kernel(Multiscale<T> task, MultiscaleBackward<T> out, T* grad) {
  const int64_t i = thread_index(), values = task.batch * task.cells * task.dim;
  if (i >= values) return;
  T sum = T(0), grad_z = T(0);
  for (int s = task.num_scales - 1; s >= 0; --s) {
    const T residual = out.residuals[s * values + i];
    sum = sum - out.code_weights[s] * residual;
    grad_z = grad_z + out.residual_weights[s] * residual;
    grad[s * values + i] = sum;
  }
  out.grad_z[i] = grad_z;
}

// Through phi: the gradient of u. Blocks of all scales, (tiles, scales).
template <class T>
__global__ void __launch_bounds__(kApplyThreads)
    grad_up_kernel(Multiscale<T> task, int tile, const T* grad, T* grad_up) {
  const int s = static_cast<int>(blockIdx.y);
  const Scale<T>& scale = task.scales[s];
  T* const g = shared_tail<T>(0);
  const Tile t = tile_of(task, tile);
  const int dim = task.dim, wide = t.cells + 2;
  const T* const of_sample = grad + (s * task.batch + t.b) * task.cells * dim;
  fill_tile(task, t, g, [&](int y, int x, int component) {
    return of_sample[(int64_t{1} * y * task.width + x) * dim + component];
  });
  __syncthreads();
  const T* const weight = task.phi_weight + int64_t{1} * scale.phi * kTaps * dim * dim;
  const int64_t first = ((s * task.batch + t.b) * task.height + t.y) * task.width + t.x;
  for (int i = static_cast<int>(threadIdx.x); i < t.cells * dim; i += kApplyThreads) {
    const int cell = i / dim, component = i % dim;
    T sum = T(0);
    for (int tap = 0; tap < kTaps; ++tap) {
      const T* const from = g + (tap / 3 * wide + cell + tap % 3) * dim;
      const T* const w = weight + ((kTaps - 1 - tap) * dim + component) * dim;
      for (int k = 0; k < dim; ++k) sum = sum + w[k] * from[k];
    }
    grad_up[first * dim + i] =
        (T(1) - task.ratio) * g[(wide + cell + 1) * dim + component] + task.ratio * sum;
  }
}

// Rows of the grids are summed in groups: as many as their sums need no more memory than a few
// grids.
constexpr int64_t kMostGroups = 32;
inline int64_t sum_groups(int64_t grid_rows, int dim) {
  const int64_t groups = int64_t{32} * 1024 / (int64_t{1} * dim * dim);
  const int64_t most = groups < 1 ? 1 : groups > kMostGroups ? kMostGroups : groups;
  return grid_rows < most ? grid_rows : most;
}

// What the rows of a group give to a tap's weights, (scales, groups, 9, dim, dim), and to the bias,
// (scales, groups, dim). Blocks: x over pairs of components, y over taps, z over scales and groups.
template <class T>
__global__ void weight_kernel(Multiscale<T> task, const T* up, const T* grad, int64_t groups,
                              T* sums, T* bias_sums) {
  const int dim = task.dim, tap = static_cast<int>(blockIdx.y);
  const int64_t pair = thread_index();
  if (pair >= int64_t{1} * dim * dim) return;
  const int from = static_cast<int>(pair / dim), to = static_cast<int>(pair % dim);
  const int64_t s = blockIdx.z / groups, group = blockIdx.z % groups;
  const int dy = tap / 3 - 1, dx = tap % 3 - 1;
  const int begin = dx < 0 ? 1 : 0, end = task.width - (dx > 0 ? 1 : 0);
  T sum = T(0), bias = T(0);
  for (int64_t row = group; row < task.batch * task.height; row += groups) {
    const int64_t first = (s * task.batch * task.height + row) * task.width;
    const T* const g = grad + first * dim + to;
    if (tap == 0 && from == 0)
      for (int x = 0; x < task.width; ++x) bias = bias + g[int64_t{1} * x * dim];
    const int64_t y = row % task.height + dy;
    if (y < 0 || y >= task.height) continue;
    const T* const u = up + (first + int64_t{1} * dy * task.width + dx) * dim + from;
#pragma unroll 8
    for (int x = begin; x < end; ++x) sum = sum + u[int64_t{1} * x * dim] * g[int64_t{1} * x * dim];
  }
  sums[((s * groups + group) * kTaps + tap) * dim * dim + pair] = sum;
  if (tap == 0 && from == 0) bias_sums[(s * groups + group) * dim + to] = bias;
}

template <class T>
__global__ void weight_total_kernel(Multiscale<T> task, MultiscaleBackward<T> out, int64_t groups,
                                    const T* sums, const T* bias_sums) {
  const int64_t i = thread_index();
  const int64_t size = int64_t{1} * kTaps * task.dim * task.dim;
  const int64_t weights = task.num_phis * size;
  if (i >= weights + int64_t{1} * task.num_phis * task.dim) return;
  const bool is_weight = i < weights;
  const int64_t count = is_weight ? size : task.dim, at = is_weight ? i : i - weights;
  const int64_t phi = at / count;
  const T* const from = (is_weight ? sums : bias_sums) + at % count;
  double total = 0.0;
  for (int64_t s = 0; s < task.num_scales; ++s)
    if (task.scales[s].phi == phi)
      for (int64_t group = 0; group < groups; ++group)
        total += static_cast<double>(from[(s * groups + group) * count]);
  (is_weight ? out.grad_phi_weight : out.grad_phi_bias)[at] = task.ratio * static_cast<T>(total);
}

// Which scale a token is of.
template <class T>
__device__ __forceinline__ int scale_of_token(const Multiscale<T>& task, int64_t token) {
  int s = 0;
  while (s + 1 < task.num_scales && task.scales[s + 1].first_token <= token) ++s;
  return s;
}

template <class T>
__global__ void grad_codes_kernel(Multiscale<T> task, const T* grad_up, T* grad_codes) {
  const int64_t i = thread_index();
  if (i >= task.batch * task.num_tokens * task.dim) return;
  const int component = static_cast<int>(i % task.dim);
  const int64_t token = i / task.dim % task.num_tokens, b = i / task.dim / task.num_tokens;
  const int s = scale_of_token(task, token);
  const Scale<T>& scale = task.scales[s];
  const auto place = static_cast<int>(token - scale.first_token);
  grad_codes[i] =
      up_transposed_component(task, scale, grad_up + (s * task.batch + b) * task.cells * task.dim,
                              place / scale.width, place % scale.width, component);
}

// The same with a block for each token: its columns side by side, then their sum. Shared memory:
// (columns of the grid, dim).
template <class T>
__global__ void grad_codes_wide_kernel(Multiscale<T> task, const T* grad_up, T* grad_codes) {
  T* const columns = shared_tail<T>(0);
  const int64_t token = blockIdx.x % task.num_tokens, b = blockIdx.x / task.num_tokens;
  const int s = scale_of_token(task, token), dim = task.dim;
  const Scale<T>& scale = task.scales[s];
  const auto place = static_cast<int>(token - scale.first_token);
  const int i = place / scale.width, j = place % scale.width;
  const int begin = scale.up_x_columns[2 * j], count = scale.up_x_columns[2 * j + 1] - begin;
  const T* const grid = grad_up + (s * task.batch + b) * task.cells * dim;
  for (int k = static_cast<int>(threadIdx.x); k < count * dim; k += kBlock)
    columns[k] = up_transposed_column(task, scale, grid, i, begin + k / dim, k % dim);
  __syncthreads();
  for (int component = static_cast<int>(threadIdx.x); component < dim; component += kBlock) {
    T sum = T(0);
    for (int k = 0; k < count; ++k)
      sum = sum + scale.up_x[(begin + k) * scale.width + j] * columns[k * dim + component];
    grad_codes[(b * task.num_tokens + token) * dim + component] = sum;
  }
}

// ---- Workspaces --------------------------------------------------------------------------------

template <class T>
struct ForwardWorkspace {
  PackedCodebook<T> packed;
  T* tokens;         // of one scale, to be searched
  T* vectors;        // (batch, num_tokens, dim)
  T *up, *residual;  // (batch, cells, dim)
  unsigned char* parts;
  size_t bytes;
};

// Room for the parts of any number of rows up to `rows`: few rows have more splits.
template <class T>
size_t most_parts_bytes(int64_t num_codes, int64_t rows) {
  size_t most = 0;
  for (const int64_t count : {rows, rows < kFewRows ? rows : kFewRows}) {
    const int64_t tile = count <= kFewRows ? kRowGroups : kRowGroups * kThreadRows<T>;
    const int64_t splits = (num_codes + kTileCodes - 1) / kTileCodes;
    // splits * rows <= (wanted / row tiles + 1) * rows <= wanted * tile + rows
    const int64_t places = splits * count < kWantedBlocks * tile + count
                               ? splits * count
                               : kWantedBlocks * tile + count;
    const auto bytes = static_cast<size_t>(places) * (sizeof(T) + sizeof(int32_t)) + 512;
    most = bytes > most ? bytes : most;
  }
  return most;
}

template <class T>
ForwardWorkspace<T> forward_workspace(void* begin, int64_t num_codes, int dim, int64_t max_rows,
                                      int64_t all_rows, int64_t grid_rows) {
  WorkspaceCutter cutter(begin);
  ForwardWorkspace<T> w{};
  w.packed = take_packed_codebook<T>(cutter, num_codes, dim);
  w.tokens = cutter.take<T>(max_rows * dim);
  w.vectors = cutter.take<T>(all_rows * dim);
  w.up = cutter.take<T>(grid_rows * dim);
  w.residual = cutter.take<T>(grid_rows * dim);
  w.parts =
      cutter.take<unsigned char>(static_cast<int64_t>(most_parts_bytes<T>(num_codes, max_rows)));
  w.bytes = cutter.bytes();
  return w;
}

template <class T>
struct BackwardWorkspace {
  T *grad, *grad_up, *up;  // (scales, batch, cells, dim)
  T* vectors;              // (batch, num_tokens, dim)
  T *sums, *bias_sums;     // of weight_kernel
  size_t bytes;
};

template <class T>
BackwardWorkspace<T> backward_workspace(void* begin, int dim, int64_t all_rows, int64_t grid_rows,
                                        int num_scales) {
  WorkspaceCutter cutter(begin);
  BackwardWorkspace<T> w{};
  const int64_t values = num_scales * grid_rows * dim;
  w.grad = cutter.take<T>(values);
  w.grad_up = cutter.take<T>(values);
  w.up = cutter.take<T>(values);
  w.vectors = cutter.take<T>(all_rows * dim);
  const int64_t sums = num_scales * sum_groups(kMostGroups, dim) * dim;
  w.sums = cutter.take<T>(sums * kTaps * dim);
  w.bias_sums = cutter.take<T>(sums);
  w.bytes = cutter.bytes();
  return w;
}

}  // namespace

// ---- The two calls -----------------------------------------------------------------------------

template <class T>
size_t multiscale_workspace_bytes(int64_t num_codes, int dim, int64_t max_rows, int64_t all_rows,
                                  int64_t grid_rows) {
  return forward_workspace<T>(nullptr, num_codes, dim, max_rows, all_rows, grid_rows).bytes;
}

template <class T>
void multiscale_quantize(const Multiscale<T>& task, const MultiscaleForward<T>& out,
                         void* workspace, cudaStream_t stream) {
  const char* op = "multiscale_quantize";
  const int dim = task.dim;
  if (out.counts != nullptr)
    fill_bytes(op, out.counts, 0,
               static_cast<size_t>(task.num_scales * task.num_codes) * sizeof(int64_t), stream);
  if (task.batch == 0) return;
  int64_t max_tokens = 0;
  for (int s = 0; s < task.num_scales; ++s) {
    const int64_t tokens = int64_t{1} * task.scales[s].height * task.scales[s].width;
    max_tokens = tokens > max_tokens ? tokens : max_tokens;
  }
  const auto w = forward_workspace<T>(workspace, task.num_codes, dim, task.batch * max_tokens,
                                      task.batch * task.num_tokens, task.batch * task.cells);
  const int64_t values = task.batch * task.cells * dim;
  if (out.z != nullptr)
    pack_codebook(op, Codebook<T>{task.codebook, task.num_codes, dim, task.cosine}, w.packed,
                  stream);
  else
    launch(op, vectors_kernel<T>, blocks_for(task.batch * task.num_tokens * dim), dim3(kBlock), 0,
           stream, task, out.codes, w.vectors);
  const int tile = tile_width<T>(task.width, dim);
  const int64_t tiles = task.batch * task.height * ((task.width + tile - 1) / tile);
  const T* residual = out.z;
  for (int s = 0; s < task.num_scales; ++s) {
    const int64_t tokens = int64_t{1} * task.scales[s].height * task.scales[s].width;
    const int64_t rows = task.batch * tokens;
    if (out.z != nullptr) {
      down(op, task, s, residual, w.tokens, tokens * dim, stream);
      WorkspaceCutter cutter(w.parts);
      const auto parts = take_search_parts<T>(cutter, task.num_codes, rows);
      search(op, w.packed, w.tokens, rows, parts, stream);
      launch(op, pick_kernel<T>, blocks_for(rows * 32), dim3(kBlock), 0, stream, task, s, parts,
             out.codes, out.counts, w.vectors);
    }
    launch(op, up_kernel<T>, blocks_for(values), dim3(kBlock), 0, stream, task, s, w.vectors, w.up);
    T* const after =
        out.residuals == nullptr ? w.residual : out.residuals + s * task.batch * task.cells * dim;
    launch(op, apply_kernel<T>, dim3(static_cast<unsigned>(tiles)), dim3(kApplyThreads),
           tile_bytes<T>(tile, dim), stream, task, s, tile, out, w.up, residual, after);
    if (out.z != nullptr) residual = after;
    if (out.inputs != nullptr && s + 1 < task.num_scales) {
      const Scale<T>& next = task.scales[s + 1];
      const int64_t first = task.scales[1].first_token;
      down(op, task, s + 1, static_cast<const T*>(out.quantized),
           out.inputs + (next.first_token - first) * dim, (task.num_tokens - first) * dim, stream);
    }
  }
}

template <class T>
size_t multiscale_backward_workspace_bytes(int dim, int64_t all_rows, int64_t grid_rows,
                                           int num_scales) {
  return backward_workspace<T>(nullptr, dim, all_rows, grid_rows, num_scales).bytes;
}

template <class T>
void multiscale_backward(const Multiscale<T>& task, const MultiscaleBackward<T>& out,
                         void* workspace, cudaStream_t stream) {
  const char* op = "multiscale_backward";
  const int dim = task.dim;
  const int64_t values = task.batch * task.cells * dim;
  const auto w = backward_workspace<T>(workspace, dim, task.batch * task.num_tokens,
                                       task.batch * task.cells, task.num_scales);
  const int64_t groups = sum_groups(task.batch * task.height, dim);
  const auto scales = static_cast<unsigned>(task.num_scales);
  if (values > 0)
    launch(op, grad_kernel<T>, blocks_for(values), dim3(kBlock), 0, stream, task, out, w.grad);
  const T* grad_up = w.grad;
  if (task.phi_weight != nullptr && values > 0) {
    const int tile = tile_width<T>(task.width, dim);
    const int64_t tiles = task.batch * task.height * ((task.width + tile - 1) / tile);
    launch(op, grad_up_kernel<T>, dim3(static_cast<unsigned>(tiles), scales), dim3(kApplyThreads),
           tile_bytes<T>(tile, dim), stream, task, tile, w.grad, w.grad_up);
    grad_up = w.grad_up;
    launch(op, vectors_kernel<T>, blocks_for(task.batch * task.num_tokens * dim), dim3(kBlock), 0,
           stream, task, out.codes, w.vectors);
    launch(op, up_kernel<T>, dim3(blocks_for(values).x, scales), dim3(kBlock), 0, stream, task, 0,
           w.vectors, w.up);
    launch(
        op, weight_kernel<T>,
        dim3(blocks_for(int64_t{1} * dim * dim).x, kTaps, scales * static_cast<unsigned>(groups)),
        dim3(kBlock), 0, stream, task, w.up, w.grad, groups, w.sums, w.bias_sums);
  }
  if (task.phi_weight != nullptr)
    launch(op, weight_total_kernel<T>,
           blocks_for(int64_t{1} * task.num_phis * dim * (kTaps * dim + 1)), dim3(kBlock), 0,
           stream, task, out, values > 0 ? groups : 0, w.sums, w.bias_sums);
  const int64_t tokens = task.batch * task.num_tokens;
  const size_t bytes = static_cast<size_t>(task.width) * dim * sizeof(T);
  if (tokens == 0) return;
  if (bytes <= kWideBytes)
    launch(op, grad_codes_wide_kernel<T>, dim3(static_cast<unsigned>(tokens)), dim3(kBlock), bytes,
           stream, task, grad_up, out.grad_codes);
  else
    launch(op, grad_codes_kernel<T>, blocks_for(tokens * dim), dim3(kBlock), 0, stream, task,
           grad_up, out.grad_codes);
}

#define FASTSHAPE_INSTANTIATE(T)                                                                  \
  template size_t multiscale_workspace_bytes<T>(int64_t, int, int64_t, int64_t, int64_t);         \
  template void multiscale_quantize<T>(const Multiscale<T>&, const MultiscaleForward<T>&, void*,  \
                                       cudaStream_t);                                             \
  template size_t multiscale_backward_workspace_bytes<T>(int, int64_t, int64_t, int);             \
  template void multiscale_backward<T>(const Multiscale<T>&, const MultiscaleBackward<T>&, void*, \
                                       cudaStream_t);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cuda
