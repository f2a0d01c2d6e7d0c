// Attention with ordinary arithmetic, for every type: float and double, and what has no tensor-core
// kernel. A block of 128 threads has a tile of 32 positions; eight threads share a row.
#pragma once

#include "attention/attention_device.cuh"

namespace fastshape::cuda {
namespace {

constexpr int kTile = 32;
constexpr int kThreads = 128;
constexpr int kMaxHeadDim = 128;

// Threads in rows of eight: `tx` runs over features or columns, `ty` over pairs of rows.
struct Place {
  int tx, ty;
};
__device__ __forceinline__ Place place() {
  return {static_cast<int>(threadIdx.x % 8), static_cast<int>(threadIdx.x / 8)};
}

// Rows of a tile in shared memory, one float apart from a power of two.
__host__ __device__ __forceinline__ int pitch(int head_dim) { return head_dim + 1; }

// Positions [begin, begin + kTile) of one side to `to`, and their rows to `rows` (-1 behind the
// end). Rows behind the end are zero.
template <class T>
__device__ __forceinline__ void load_tile(const HeadRows<const T>& from, const Sequences& side,
                                          const Tile& tile, int head,
                                          const Preparation<wide<T>>* how, int head_dim,
                                          wide<T>* to, int64_t* rows) {
  using W = wide<T>;
  const Place at = place();
  for (int r = at.ty; r < kTile; r += kThreads / 8) {
    const int32_t position = tile.begin + r;
    const bool there = position < tile.end;
    const int64_t row = there ? row_of(side, tile.sequence, position) : 0;
    if (at.tx == 0 && rows != nullptr) rows[r] = there ? row : -1;
    const T* x = head_row(from, row, head);
    W* y = to + r * pitch(head_dim);
    W squares = 0;
    for (int i = 2 * at.tx; i < head_dim; i += 16) {
      y[i] = there ? widen(x[i]) : W(0);
      y[i + 1] = there ? widen(x[i + 1]) : W(0);
      squares = fused(y[i], y[i], fused(y[i + 1], y[i + 1], squares));
    }
    if (how == nullptr) continue;
    W factor = how->factor;
    if (how->gamma != nullptr) factor = factor * norm_factor(sum_of_eight(squares), head_dim);
    for (int i = 2 * at.tx; i < head_dim; i += 16) {
      W even = y[i] * factor, odd = y[i + 1] * factor;
      if (how->gamma != nullptr) {
        even = even * how->gamma[head * head_dim + i];
        odd = odd * how->gamma[head * head_dim + i + 1];
      }
      if (how->rope != nullptr && there) turn(*how, row, i / 2, W(1), even, odd);
      y[i] = even;
      y[i + 1] = odd;
    }
  }
}

// The gradient of what load_tile did, for rows of `grad` in shared memory: to memory, and the
// gamma's to the same rows of `gamma_rows` (which may be `grad`).
template <class T>
__device__ __forceinline__ void write_gradient(const HeadRows<const T>& from, const HeadRows<T>& to,
                                               const int64_t* rows, int head,
                                               const Preparation<wide<T>>& how, wide<T>* grad) {
  using W = wide<T>;
  const Place at = place();
  const int n = how.head_dim;
  for (int r = at.ty; r < kTile; r += kThreads / 8) {
    const int64_t row = rows[r];
    const bool there = row >= 0;
    const T* x = head_row(from, there ? row : 0, head);
    T* out = head_row(to, there ? row : 0, head);
    W* g = grad + r * pitch(n);
    W squares = 0, along = 0;
    for (int i = 2 * at.tx; i < n && there; i += 16) {
      W even = g[i] * how.factor, odd = g[i + 1] * how.factor;
      if (how.rope != nullptr) turn(how, row, i / 2, W(-1), even, odd);
      g[i] = even;
      g[i + 1] = odd;
      if (how.gamma == nullptr) continue;
      for (int j = i; j < i + 2; ++j) {
        const W value = widen(x[j]);
        squares = fused(value, value, squares);
        along = fused(g[j] * how.gamma[head * n + j], value, along);
      }
    }
    if (how.gamma != nullptr) {  // y = x * root / norm * gamma
      squares = sum_of_eight(squares);
      along = sum_of_eight(along);
    }
    const W norm = max(root(squares), static_cast<W>(1e-12));
    const W factor = root(static_cast<W>(n)) / norm;
    const W back = root(squares) > static_cast<W>(1e-12) ? along / norm / norm : W(0);
    for (int i = 2 * at.tx; i < n; i += 16) {
      for (int j = i; j < i + 2; ++j) {
        if (!there) {
          g[j] = 0;
        } else if (how.gamma == nullptr) {
          narrow(g[j], out + j);
        } else {
          const W value = widen(x[j]), grad_y = g[j];
          narrow(fused(grad_y, how.gamma[head * n + j], -(value * back)) * factor, out + j);
          g[j] = grad_y * value * factor;  // gamma's
        }
      }
    }
  }
}

// What one thread sums of a tile of kTile rows: rows 2 ty and 2 ty + 1, features tx + 8 j.
template <class W, int kSteps>
struct RowSums {
  W sum[2][kSteps];
  __device__ __forceinline__ void clear() {
    for (int r = 0; r < 2; ++r)
      for (int j = 0; j < kSteps; ++j) sum[r][j] = 0;
  }
  // += factors (kTile rows of kTile + 1) times the tile.
  __device__ __forceinline__ void add(const W* factors, const W* tile, int head_dim, int count) {
    const Place at = place();
    for (int t = 0; t < count; ++t) {
      const W first = factors[(2 * at.ty) * (kTile + 1) + t];
      const W second = factors[(2 * at.ty + 1) * (kTile + 1) + t];
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        if (at.tx + 8 * j >= head_dim) break;
        const W value = tile[t * pitch(head_dim) + at.tx + 8 * j];
        sum[0][j] = fused(first, value, sum[0][j]);
        sum[1][j] = fused(second, value, sum[1][j]);
      }
    }
  }
  __device__ __forceinline__ void store(W* tile, int head_dim) const {
    const Place at = place();
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int j = 0; j < kSteps; ++j)
        if (at.tx + 8 * j < head_dim)
          tile[(2 * at.ty + r) * pitch(head_dim) + at.tx + 8 * j] = sum[r][j];
  }
};

// Products of rows 2 ty + r of `a` with rows tx + 8 c of `b`.
template <class W>
__device__ __forceinline__ void row_products(const W* a, const W* b, int head_dim, W (&s)[2][4]) {
  const Place at = place();
  for (int r = 0; r < 2; ++r)
    for (int c = 0; c < 4; ++c) s[r][c] = 0;
  for (int d = 0; d < head_dim; ++d) {
    W left[2], right[4];
#pragma unroll
    for (int r = 0; r < 2; ++r) left[r] = a[(2 * at.ty + r) * pitch(head_dim) + d];
#pragma unroll
    for (int c = 0; c < 4; ++c) right[c] = b[(at.tx + 8 * c) * pitch(head_dim) + d];
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int c = 0; c < 4; ++c) s[r][c] = fused(left[r], right[c], s[r][c]);
  }
}

inline size_t plain_shared_bytes(size_t wide_bytes, int head_dim, int tiles, int squares) {
  const auto floats = static_cast<size_t>(tiles * kTile * pitch(head_dim) +
                                          squares * kTile * (kTile + 1) + 2 * kTile);
  return 2 * kTile * sizeof(int64_t) + floats * wide_bytes;
}

// Shared memory: two lists of rows, tiles of rows, squares of scores, two numbers for each row.
template <class W>
struct PlainShared {
  int64_t* rows[2];
  W* tile[4];
  W* square[2];
  W* number[2];
};
template <class W>
__device__ __forceinline__ PlainShared<W> plain_shared(int head_dim, int tiles, int squares) {
  PlainShared<W> s{};
  auto* rows = shared_tail<int64_t>(0);
  s.rows[0] = rows;
  s.rows[1] = rows + kTile;
  W* at = shared_tail<W>(2 * kTile * sizeof(int64_t));
  for (int i = 0; i < tiles; ++i, at += kTile * pitch(head_dim)) s.tile[i] = at;
  for (int i = 0; i < squares; ++i, at += kTile * (kTile + 1)) s.square[i] = at;
  for (int i = 0; i < 2; ++i, at += kTile) s.number[i] = at;
  return s;
}

}  // namespace
}  // namespace fastshape::cuda
