// The GPU's search: 128 threads hold a tile of rows against 128 codes, its scores in registers, the
// operands in shared memory. The codes are split over blocks where the rows alone would not fill
// the device; each split leaves its best of every row, and a warp picks among them.
#pragma once

#include "core/block.cuh"
#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"
#include "quantize/nearest_code.h"

namespace fastshape::cuda {
namespace {

constexpr int kSearchThreads = 128;
constexpr int kRowGroups = 8;    // threads along the rows
constexpr int kCodeGroups = 16;  // threads along the codes
constexpr int kThreadCodes = 8;  // codes of a thread
constexpr int kTileCodes = kCodeGroups * kThreadCodes;
constexpr int kChunk = 16;  // components of the codes in shared memory at a time
constexpr int64_t kWantedBlocks = 528;
constexpr int64_t kFewRows = 512;  // up to here a tile has kRowGroups rows

template <class T>
constexpr int kThreadRows = sizeof(T) == 4 ? 8 : 4;

// What every split found: (splits, num_rows).
template <class T>
struct SearchParts {
  T* score;
  int32_t* index;
  int64_t splits, split_tiles, tile_rows;
};

template <class T>
SearchParts<T> take_search_parts(WorkspaceCutter& cutter, int64_t num_codes, int64_t num_rows) {
  SearchParts<T> parts{};
  parts.tile_rows = num_rows <= kFewRows ? kRowGroups : kRowGroups * kThreadRows<T>;
  const int64_t row_tiles = (num_rows + parts.tile_rows - 1) / parts.tile_rows;
  const int64_t code_tiles = (num_codes + kTileCodes - 1) / kTileCodes;
  int64_t splits = row_tiles == 0 ? 1 : (kWantedBlocks + row_tiles - 1) / row_tiles;
  splits = splits < code_tiles ? splits : code_tiles;
  parts.split_tiles = splits < 1 ? 1 : (code_tiles + splits - 1) / splits;
  parts.splits = (code_tiles + parts.split_tiles - 1) / parts.split_tiles;
  parts.score = cutter.take<T>(parts.splits * num_rows);
  parts.index = cutter.take<int32_t>(parts.splits * num_rows);
  return parts;
}

template <class T>
__device__ __forceinline__ bool is_better(T score, int32_t index, T than_score,
                                          int32_t than_index) {
  return score < than_score || (score == than_score && index < than_index);
}

template <class T>
struct alignas(16) Quad {
  T v[4];
};

template <class T>
struct SearchShared {
  alignas(16) T codes[kChunk][kTileCodes];
};

// Shared memory: the codes, then the rows, (dim, tile rows).
template <class T, int rows>
__global__ void __launch_bounds__(kSearchThreads)
    search_kernel(PackedCodebook<T> book, const T* x, int64_t num_rows, SearchParts<T> parts) {
  constexpr int kRows = rows * kRowGroups;
  auto& shared = shared_memory<SearchShared<T>>();
  T* const tile = shared_tail<T>(sizeof(SearchShared<T>));
  const int thread = static_cast<int>(threadIdx.x);
  const int code_group = thread % kCodeGroups, row_group = thread / kCodeGroups;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t split = blockIdx.y;
  const int dim = book.dim;
  for (int i = thread; i < kRows * dim; i += kSearchThreads) {
    const int row = i / dim, component = i % dim;
    tile[component * kRows + row] =
        first_row + row < num_rows
            ? shifted(book, x[(first_row + row) * dim + component], component)
            : T(0);
  }
  const T infinity = static_cast<T>(HUGE_VAL);
  T best[rows];
  int32_t where[rows];
  for (int r = 0; r < rows; ++r) {
    best[r] = infinity;
    where[r] = 0;
  }
  const int64_t num_places = book.num_panels * kPanel;
  for (int64_t t = split * parts.split_tiles; t < (split + 1) * parts.split_tiles; ++t) {
    const int64_t first_code = t * kTileCodes;
    if (first_code >= num_places) break;
    T score[rows][kThreadCodes];
#pragma unroll
    for (int c = 0; c < kThreadCodes; ++c) {
      // Of every 64 codes a thread has four neighbors, read as one.
      const int64_t code = first_code + c / 4 * 64 + code_group * 4 + c % 4;
      const T half = code < num_places ? book.half[code] : infinity;
#pragma unroll
      for (int r = 0; r < rows; ++r) score[r][c] = half;
    }
    for (int begin = 0; begin < dim; begin += kChunk) {
      const int count = dim - begin < kChunk ? dim - begin : kChunk;
      __syncthreads();  // nobody reads the former chunk any more
      for (int i = thread; i < count * kTileCodes; i += kSearchThreads) {
        const int component = i / kTileCodes, code = i % kTileCodes;
        const int64_t place = first_code + code;
        shared.codes[component][code] =
            place < num_places
                ? book.panels[(place / kPanel * dim + begin + component) * kPanel + place % kPanel]
                : T(0);
      }
      __syncthreads();
      for (int i = 0; i < count; ++i) {
        T e[kThreadCodes], value[rows];
#pragma unroll
        for (int c = 0; c < kThreadCodes; c += 4) {
          const auto quad =
              *reinterpret_cast<const Quad<T>*>(&shared.codes[i][c / 4 * 64 + code_group * 4]);
#pragma unroll
          for (int k = 0; k < 4; ++k) e[c + k] = quad.v[k];
        }
        const T* const mine = tile + (begin + i) * kRows + row_group * rows;
        if constexpr (rows % 4 == 0) {
#pragma unroll
          for (int r = 0; r < rows; r += 4) {
            const auto quad = *reinterpret_cast<const Quad<T>*>(mine + r);
#pragma unroll
            for (int k = 0; k < 4; ++k) value[r + k] = quad.v[k];
          }
        } else {
#pragma unroll
          for (int r = 0; r < rows; ++r) value[r] = mine[r];
        }
#pragma unroll
        for (int r = 0; r < rows; ++r)
#pragma unroll
          for (int c = 0; c < kThreadCodes; ++c) score[r][c] = score[r][c] - value[r] * e[c];
      }
    }
#pragma unroll
    for (int c = 0; c < kThreadCodes; ++c) {
      const auto code = static_cast<int32_t>(first_code + c / 4 * 64 + code_group * 4 + c % 4);
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        if (score[r][c] < best[r]) {  // a thread's codes ascend
          best[r] = score[r][c];
          where[r] = code;
        }
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int bit = kCodeGroups / 2; bit > 0; bit /= 2) {
      const T other = __shfl_xor_sync(kAllLanes, best[r], bit);
      const int32_t other_where = __shfl_xor_sync(kAllLanes, where[r], bit);
      if (is_better(other, other_where, best[r], where[r])) {
        best[r] = other;
        where[r] = other_where;
      }
    }
    const int64_t row = first_row + row_group * rows + r;
    if (code_group == 0 && row < num_rows) {
      parts.score[split * num_rows + row] = best[r];
      parts.index[split * num_rows + row] = where[r];
    }
  }
}

template <class T>
void search(const char* op, const PackedCodebook<T>& book, const T* x, int64_t num_rows,
            const SearchParts<T>& parts, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((num_rows + parts.tile_rows - 1) / parts.tile_rows),
                  static_cast<unsigned>(parts.splits));
  const size_t bytes =
      sizeof(SearchShared<T>) + static_cast<size_t>(parts.tile_rows) * book.dim * sizeof(T);
  if (parts.tile_rows == kRowGroups)
    launch(op, search_kernel<T, 1>, grid, dim3(kSearchThreads), bytes, stream, book, x, num_rows,
           parts);
  else
    launch(op, search_kernel<T, kThreadRows<T>>, grid, dim3(kSearchThreads), bytes, stream, book, x,
           num_rows, parts);
}

// The whole warp asks for one row, and every lane learns its code.
template <class T>
__device__ __forceinline__ int32_t best_of_parts(const SearchParts<T>& parts, int64_t num_rows,
                                                 int64_t row) {
  const T infinity = static_cast<T>(HUGE_VAL);
  T best = infinity;
  int32_t where = 0;
  for (int64_t split = lane_id(); split < parts.splits; split += 32) {
    const T score = parts.score[split * num_rows + row];
    if (score < best) {  // the splits ascend, and so do their codes
      best = score;
      where = parts.index[split * num_rows + row];
    }
  }
  for (int bit = 16; bit > 0; bit /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, best, bit);
    const int32_t other_where = __shfl_xor_sync(kAllLanes, where, bit);
    if (is_better(other, other_where, best, where)) {
      best = other;
      where = other_where;
    }
  }
  return best < infinity ? where : 0;
}

__device__ __forceinline__ void count_code(int64_t* counts, int32_t code) {
  static_assert(sizeof(unsigned long long) == sizeof(int64_t));
  atomicAdd(reinterpret_cast<unsigned long long*>(counts + code), 1ull);
}

}  // namespace
}  // namespace fastshape::cuda
