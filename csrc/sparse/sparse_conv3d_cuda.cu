// Tiles of a result, 64 or 128 gathered rows by 64 columns, are summed by one block over the
// offsets that any of its rows has a neighbor at.
//
// float32 and float64 take plain fused multiply-adds in the order of the CPU; 16-bit floats take
// tensor cores where rows start at multiples of 16 bytes.
#include "sparse/sparse_conv3d.h"

#include "core/block.cuh"
#include "core/cuda_utils.cuh"
#include "core/mma.cuh"

namespace fastshape::cuda {
namespace {

constexpr const char* kOp = "sparse_conv3d";

__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return __fma_rn(a, b, c); }

// ---- Plain tiles
// ---------------------------------------------------------------------------------

constexpr int kTile = 64;      // rows and columns
constexpr int kThreads = 256;  // each sums 4 x 4
constexpr int kDepth = 16;     // input channels at a time
static_assert(kDepthPart % kDepth == 0);

template <class W>
struct PlainShared {
  W left[kDepth][kTile + 4];   // of the gathered rows
  W right[kDepth][kTile + 4];  // of the weight
  int64_t out_row[kTile];      // of the tile, -1 beyond the end
  int32_t row[kTile];          // gathered at this offset
};

template <class T>
__global__ void __launch_bounds__(kThreads) plain_kernel(SparseConv3d<T> task) {
  using W = typename Wide<T>::type;
  auto& s = shared_memory<PlainShared<W>>();
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * kTile;
  if (thread < kTile) {
    const int64_t at = first_row + thread;
    s.out_row[thread] = at >= task.num_rows ? -1 : task.order == nullptr ? at : task.order[at];
  }
  __syncthreads();
  const int row4 = thread / 16 * 4, column4 = thread % 16 * 4;
  const int load_line = thread / 4, load_depth = thread % 4 * 4;
  W sums[4][4] = {}, part[4][4] = {};
  for (int k = 0; k < task.num_offsets; ++k) {
    int32_t row = -1;
    if (thread < kTile) {
      if (s.out_row[thread] >= 0) row = task.rows[s.out_row[thread] * task.num_offsets + k];
      s.row[thread] = row;
    }
    if (__syncthreads_or(row >= 0) == 0) continue;
    const int64_t from = s.row[load_line];
    const int64_t column = first_column + load_line;
    const T* const left = task.feats + (from < 0 ? 0 : from) * task.in_channels;
    const T* const right =
        task.weight +
        ((column < task.out_channels ? column : 0) * task.num_offsets + k) * task.in_channels;
    for (int64_t depth = 0; depth < task.in_channels; depth += kDepth) {
      for (int i = 0; i < 4; ++i) {
        const int64_t channel = depth + load_depth + i;
        const bool inside = channel < task.in_channels;
        s.left[load_depth + i][load_line] = inside && from >= 0 ? widen(left[channel]) : W(0);
        s.right[load_depth + i][load_line] =
            inside && column < task.out_channels ? widen(right[channel]) : W(0);
      }
      __syncthreads();
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        W a[4], b[4];
        for (int i = 0; i < 4; ++i) a[i] = s.left[d][row4 + i];
        for (int j = 0; j < 4; ++j) b[j] = s.right[d][column4 + j];
        for (int i = 0; i < 4; ++i)
          for (int j = 0; j < 4; ++j) part[i][j] = fused(a[i], b[j], part[i][j]);
      }
      __syncthreads();
      const int64_t next = depth + kDepth;
      if (next % kDepthPart == 0 || next >= task.in_channels) {
        for (int i = 0; i < 4; ++i)
          for (int j = 0; j < 4; ++j) sums[i][j] += part[i][j], part[i][j] = 0;
      }
    }
  }
  for (int i = 0; i < 4; ++i) {
    const int64_t row = s.out_row[row4 + i];
    if (row < 0) continue;
    for (int j = 0; j < 4; ++j) {
      const int64_t column = first_column + column4 + j;
      if (column >= task.out_channels) continue;
      const W sum = task.bias == nullptr ? sums[i][j] : sums[i][j] + widen(task.bias[column]);
      narrow(sum, task.out + row * task.out_channels + column);
    }
  }
}

// ---- Tensor cores
// --------------------------------------------------------------------------------

constexpr int kMmaRows = 128;     // of a tile
constexpr int kMmaColumns = 64;   // of a tile
constexpr int kMmaThreads = 128;  // each warp sums 32 rows and all columns
constexpr int kMmaDepth = 32;     // input channels at a time
constexpr int kMmaStride = kMmaDepth + 8;
constexpr int kStages = 3;  // of copies under way

template <class T>
struct MmaShared {
  __align__(16) T left[kStages][kMmaRows * kMmaStride];
  __align__(16) T right[kStages][kMmaColumns * kMmaStride];
  int64_t out_row[kMmaRows];
  int32_t rows[kMaxOffsets][kMmaRows];
  int32_t offsets[kMaxOffsets];  // those at which a row of the tile has a neighbor
  int32_t num_offsets;
};

template <class T>
__device__ __forceinline__ void load_stage(const SparseConv3d<T>& task, MmaShared<T>& s, int stage,
                                           int k, int64_t depth, int64_t first_column) {
  constexpr int kPieces = kMmaDepth / 8;  // of 16 bytes in a row
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t channel = depth + thread % kPieces * 8;
  const bool inside = channel < task.in_channels;
  const int at = thread % kPieces * 8;
  for (int line = thread / kPieces; line < kMmaRows; line += kMmaThreads / kPieces) {
    const int64_t row = s.rows[k][line];
    const bool there = inside && row >= 0;
    async_copy16(s.left[stage] + line * kMmaStride + at,
                 task.feats + (there ? row * task.in_channels + channel : 0), there);
  }
  for (int line = thread / kPieces; line < kMmaColumns; line += kMmaThreads / kPieces) {
    const int64_t column = first_column + line;
    const bool there = inside && column < task.out_channels;
    async_copy16(
        s.right[stage] + line * kMmaStride + at,
        task.weight + (there ? (column * task.num_offsets + k) * task.in_channels + channel : 0),
        there);
  }
}

// in_channels is a multiple of 8, and all arrays start at multiples of 16 bytes.
template <class T>
__global__ void __launch_bounds__(kMmaThreads) mma_kernel(SparseConv3d<T> task) {
  auto& s = shared_memory<MmaShared<T>>();
  const int thread = static_cast<int>(threadIdx.x), warp = static_cast<int>(warp_id());
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kMmaRows;
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * kMmaColumns;
  const int64_t mine = first_row + thread;
  s.out_row[thread] = mine >= task.num_rows ? -1 : task.order == nullptr ? mine : task.order[mine];
  __syncthreads();
  // Neighbors of one row lie beside each other: the block reads all of them as they lie.
  for (int i = thread; i < kMmaRows * task.num_offsets; i += kMmaThreads) {
    const int line = i / task.num_offsets, k = i % task.num_offsets;
    const int64_t row = s.out_row[line];
    s.rows[k][line] = row < 0 ? -1 : task.rows[row * task.num_offsets + k];
  }
  if (thread == 0) s.num_offsets = 0;
  __syncthreads();
  for (int k = 0; k < task.num_offsets; ++k) {
    const int any = __syncthreads_or(s.rows[k][thread] >= 0);
    if (thread == 0 && any != 0) s.offsets[s.num_offsets++] = k;
  }
  __syncthreads();

  const int chunks = static_cast<int>((task.in_channels + kMmaDepth - 1) / kMmaDepth);
  const int steps = s.num_offsets * chunks;
  int next_offset = 0, next_chunk = 0;  // of the copies
  const auto load_next = [&](int step) {
    if (step < steps) {
      load_stage(task, s, step % kStages, s.offsets[next_offset],
                 static_cast<int64_t>(next_chunk) * kMmaDepth, first_column);
      if (++next_chunk == chunks) next_chunk = 0, ++next_offset;
    }
    async_commit();  // a group for every step, so that they can be counted
  };
  for (int step = 0; step < kStages - 1; ++step) load_next(step);

  float sums[2][kMmaColumns / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    async_wait<kStages - 2>();
    __syncthreads();
    load_next(step + kStages - 1);  // where the last step read
    const T* const left = s.left[step % kStages] + warp * 32 * kMmaStride;
    const T* const right = s.right[step % kStages];
#pragma unroll
    for (int d = 0; d < kMmaDepth; d += 16) {
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) load_a(a[i], left + 16 * i * kMmaStride + d, kMmaStride);
#pragma unroll
      for (int j = 0; j < kMmaColumns / 8; ++j) {
        uint32_t b[2];
        load_b_transposed(b, right + 8 * j * kMmaStride + d, kMmaStride);
#pragma unroll
        for (int i = 0; i < 2; ++i) mma_m16n8k16<T>(sums[i][j], a[i], b);
      }
    }
  }
  async_wait<0>();

  const int lane = static_cast<int>(lane_id());
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = s.out_row[warp * 32 + 16 * i + 8 * half + lane / 4];
      if (row < 0) continue;
#pragma unroll
      for (int j = 0; j < kMmaColumns / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int64_t column = first_column + 8 * j + lane % 4 * 2 + c;
          if (column >= task.out_channels) continue;
          float sum = sums[i][j][2 * half + c];
          if (task.bias != nullptr) sum += widen(task.bias[column]);
          narrow(sum, task.out + row * task.out_channels + column);
        }
      }
    }
  }
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

dim3 tiles(int64_t rows, int64_t row_tile, int64_t columns, int64_t column_tile) {
  return dim3(static_cast<unsigned>((rows + row_tile - 1) / row_tile),
              static_cast<unsigned>((columns + column_tile - 1) / column_tile));
}

}  // namespace

template <class T>
void sparse_conv3d(const SparseConv3d<T>& task, cudaStream_t stream) {
  if (task.num_rows == 0 || task.out_channels == 0) return;
  if constexpr (sizeof(T) == 2) {
    if (task.in_channels % 8 == 0 && is_aligned(task.feats) && is_aligned(task.weight)) {
      launch(kOp, mma_kernel<T>, tiles(task.num_rows, kMmaRows, task.out_channels, kMmaColumns),
             dim3(kMmaThreads), sizeof(MmaShared<T>), stream, task);
      return;
    }
  }
  launch(kOp, plain_kernel<T>, tiles(task.num_rows, kTile, task.out_channels, kTile),
         dim3(kThreads), sizeof(PlainShared<typename Wide<T>::type>), stream, task);
}

#define FASTSHAPE_INSTANTIATE(T) \
  template void sparse_conv3d<T>(const SparseConv3d<T>&, cudaStream_t);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
FASTSHAPE_INSTANTIATE(Float16)
FASTSHAPE_INSTANTIATE(BFloat16)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cuda
