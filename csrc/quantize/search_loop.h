// The CPU's search, compiled once per instruction set: include it from one .cpp each.
//
// A tile is a few rows against two vectors of codes: its scores stand in registers while the
// components go by. Every lane keeps the best of the codes that passed it, so that the winner is
// only looked for across the lanes when all codes are through. Codes go by in blocks that stay in
// the first cache for all rows. Written with the compiler's vector types: each lane rounds as the
// scalar does.
#pragma once

#include <cstdint>
#include <limits>

#include "quantize/lanes.h"
#include "quantize/search_cpu.h"

namespace fastshape {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 2;
constexpr int kCodeBlockBytes = 16 * 1024;

// Vectors of codes are numbered through: so many to a panel.
template <class T>
constexpr int kVectorsOfPanel = kPanel / kLanes<T>;

// Scores of the tile's rows, components at x[component * kTileRows + row], for the vectors of codes
// from `first` on.
template <class T>
FASTSHAPE_INLINE void tile_scores(const PackedCodebook<T>& book, const T* x, int64_t first,
                                  typename Lanes<T>::Vector (&score)[kTileRows][kTileVectors]) {
  const T* code[kTileVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kTileVectors; ++v) {
    const int64_t panel = (first + v) / kVectorsOfPanel<T>;
    const int64_t lane = (first + v) % kVectorsOfPanel<T> * kLanes<T>;
    code[v] = book.panels + panel * kPanel * book.dim + lane;
    const auto half = load(book.half + panel * kPanel + lane);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) score[r][v] = half;
  }
  for (int i = 0; i < book.dim; ++i) {
    typename Lanes<T>::Vector e[kTileVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) e[v] = load(code[v] + i * kPanel);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const typename Lanes<T>::Vector value = x[i * kTileRows + r] - typename Lanes<T>::Vector{};
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) score[r][v] = score[r][v] - value * e[v];
    }
  }
}

// The rows, shifted and scaled, in tiles of (dim, kTileRows); zeros fill the last.
template <class T>
inline void shift_rows(const PackedCodebook<T>& book, const T* rows, int num_rows, T* tiles) {
  const int dim = book.dim;
  const T scale = *book.scale;
  const int padded = (num_rows + kTileRows - 1) / kTileRows * kTileRows;
  for (int r = 0; r < padded; ++r) {
    T* const out = tiles + r / kTileRows * kTileRows * dim + r % kTileRows;
    for (int i = 0; i < dim; ++i)
      out[i * kTileRows] = r < num_rows ? (rows[r * dim + i] - book.center[i]) * scale : T(0);
  }
}

constexpr int kMaxTiles = (cpu::kMaxBlockRows + kTileRows - 1) / kTileRows;
constexpr int kTileElements = cpu::kBlockElements + kTileRows * kMaxCodeDim;

template <class T>
inline void search_rows_loop(const PackedCodebook<T>& book, const T* rows, int num_rows,
                             int32_t* index) {
  using Vector = typename Lanes<T>::Vector;
  using Index = typename Lanes<T>::Index;
  using Integer = typename Lanes<T>::Integer;
  alignas(64) T tiles[kTileElements];
  Vector best[kMaxTiles][kTileRows];
  Index where[kMaxTiles][kTileRows];  // the number of the vector of codes
  shift_rows(book, rows, num_rows, tiles);
  const int num_tiles = (num_rows + kTileRows - 1) / kTileRows;
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  for (int t = 0; t < num_tiles; ++t)
    for (int r = 0; r < kTileRows; ++r) {
      best[t][r] = kInfinity - Vector{};
      where[t][r] = Index{};
    }
  const int64_t num_vectors = book.num_panels * kVectorsOfPanel<T>;  // even, as panels are
  int64_t block = kCodeBlockBytes / (kVectorBytes * (book.dim + 1)) / kTileVectors * kTileVectors;
  if (block < kTileVectors) block = kTileVectors;
  for (int64_t begin = 0; begin < num_vectors; begin += block) {
    const int64_t end = begin + block < num_vectors ? begin + block : num_vectors;
    for (int t = 0; t < num_tiles; ++t) {
      const T* const x = tiles + static_cast<int64_t>(t) * kTileRows * book.dim;
      Vector tile_best[kTileRows];
      Index tile_where[kTileRows];
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) {
        tile_best[r] = best[t][r];
        tile_where[r] = where[t][r];
      }
      for (int64_t first = begin; first < end; first += kTileVectors) {
        Vector score[kTileRows][kTileVectors];
        tile_scores(book, x, first, score);
#pragma GCC unroll 8
        for (int v = 0; v < kTileVectors; ++v) {
          const Index number = static_cast<Integer>(first + v) - Index{};
#pragma GCC unroll 8
          for (int r = 0; r < kTileRows; ++r) {
            const Index below = score[r][v] < tile_best[r];
            tile_best[r] = below ? score[r][v] : tile_best[r];
            tile_where[r] = below ? number : tile_where[r];
          }
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) {
        best[t][r] = tile_best[r];
        where[t][r] = tile_where[r];
      }
    }
  }
  for (int row = 0; row < num_rows; ++row) {
    const Vector& lanes = best[row / kTileRows][row % kTileRows];
    const Index& numbers = where[row / kTileRows][row % kTileRows];
    T lowest = kInfinity;
    int64_t winner = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      const int64_t code = static_cast<int64_t>(numbers[lane]) * kLanes<T> + lane;
      if (lanes[lane] < lowest || (lanes[lane] == lowest && lowest < kInfinity && code < winner)) {
        lowest = lanes[lane];
        winner = code;
      }
    }
    index[row] = static_cast<int32_t>(winner);
  }
}

// The same tiles, with a sorted list for each row: what is below its last goes in behind its
// equals.
template <class T>
inline void search_top_loop(const PackedCodebook<T>& book, const T* rows, int num_rows, int top,
                            int32_t* index) {
  using Vector = typename Lanes<T>::Vector;
  using Index = typename Lanes<T>::Index;
  alignas(64) T tiles[kTileElements];
  shift_rows(book, rows, num_rows, tiles);
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  const int64_t num_vectors = book.num_panels * kVectorsOfPanel<T>;
  for (int begin = 0; begin < num_rows; begin += kTileRows) {
    T list[kTileRows][kMaxTop];
    int32_t codes[kTileRows][kMaxTop];
    for (int r = 0; r < kTileRows; ++r)
      for (int k = 0; k < top; ++k) {
        list[r][k] = kInfinity;
        codes[r][k] = 0;
      }
    for (int64_t first = 0; first < num_vectors; first += kTileVectors) {
      Vector score[kTileRows][kTileVectors];
      tile_scores(book, tiles + static_cast<int64_t>(begin) * book.dim, first, score);
      for (int r = 0; r < kTileRows; ++r)
        for (int v = 0; v < kTileVectors; ++v) {
          const Index below = score[r][v] < list[r][top - 1] - Vector{};
          for (int lane = 0; lane < kLanes<T>; ++lane) {
            const T value = score[r][v][lane];
            if (below[lane] == 0 || !(value < list[r][top - 1])) continue;
            int k = top - 1;
            for (; k > 0 && value < list[r][k - 1]; --k) {
              list[r][k] = list[r][k - 1];
              codes[r][k] = codes[r][k - 1];
            }
            list[r][k] = value;
            codes[r][k] = static_cast<int32_t>((first + v) * kLanes<T> + lane);
          }
        }
    }
    for (int r = 0; r < kTileRows && begin + r < num_rows; ++r)
      for (int k = 0; k < top; ++k) index[(begin + r) * top + k] = codes[r][k];
  }
}

}  // namespace

#define FASTSHAPE_DEFINE_SEARCH_OF(suffix, T)                                                   \
  void search_rows_##suffix(const PackedCodebook<T>& book, const T* rows, int num_rows,         \
                            int32_t* index) {                                                   \
    search_rows_loop(book, rows, num_rows, index);                                              \
  }                                                                                             \
  void search_top_##suffix(const PackedCodebook<T>& book, const T* rows, int num_rows, int top, \
                           int32_t* index) {                                                    \
    search_top_loop(book, rows, num_rows, top, index);                                          \
  }
#define FASTSHAPE_DEFINE_SEARCH(suffix)      \
  namespace cpu {                            \
  FASTSHAPE_DEFINE_SEARCH_OF(suffix, float)  \
  FASTSHAPE_DEFINE_SEARCH_OF(suffix, double) \
  }

}  // namespace fastshape
