// Products of small matrices in tiles of registers, on the lanes of the instruction set that the
// file is compiled for.
#pragma once

#include "attention/attention_lanes.h"

namespace fastshape::cpu {
namespace {

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class W>
constexpr int kPanel = kTileRegisters * kLanes<W>;  // columns of a tile

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

}  // namespace
}  // namespace fastshape::cpu
