// Tiles of a result, 128 gathered rows by 64 columns, are summed by one block over the offsets that
// any of its rows has a neighbor at.
//
// float32 and float64 take plain fused multiply-adds in the order of the CPU; 16-bit floats take
// tensor cores where rows start at multiples of 16 bytes.
#include "sparse/sparse_conv3d.h"

#include "core/cuda_utils.cuh"
#include "core/mma.cuh"

namespace fastshape::cuda {
namespace {

constexpr const char* kOp = "sparse_conv3d";

__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return __fma_rn(a, b, c); }

// ---- The rows of a tile
// --------------------------------------------------------------------------

constexpr int kRows = 128;
constexpr int kColumns = 64;

struct TileRows {
  int64_t out_row[kRows];            // -1 beyond the end
  int32_t rows[kMaxOffsets][kRows];  // gathered at each offset, -1 where there is none
  int32_t offsets[kMaxOffsets];      // those at which any row has a neighbor
  int32_t num_offsets;
};

template <class T>
__device__ void list_rows(const SparseConv3d<T>& task, TileRows& tile) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int line = thread; line < kRows; line += threads) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * kRows + line;
    tile.out_row[line] = at >= task.num_rows ? -1 : task.order == nullptr ? at : task.order[at];
  }
  if (thread == 0) tile.num_offsets = 0;
  __syncthreads();
  // Neighbors of one row lie beside each other: the block reads all of them as they lie.
  for (int i = thread; i < kRows * task.num_offsets; i += threads) {
    const int line = i / task.num_offsets, k = i % task.num_offsets;
    const int64_t row = tile.out_row[line];
    tile.rows[k][line] = row < 0 ? -1 : task.rows[row * task.num_offsets + k];
  }
  __syncthreads();
  for (int k = 0; k < task.num_offsets; ++k) {
    const int any = __syncthreads_or(thread < kRows && tile.rows[k][thread] >= 0);
    if (thread == 0 && any != 0) tile.offsets[tile.num_offsets++] = k;
  }
  __syncthreads();
}

// Goes through the offsets of a tile and the parts of the input channels at each.
struct Steps {
  int chunks;  // of the input channels
  int offset = 0, chunk = 0;

  __device__ void next() {
    if (++chunk == chunks) chunk = 0, ++offset;
  }
};

// ---- Plain tiles
// ---------------------------------------------------------------------------------

constexpr int kThreads = 256;  // each sums 8 x 4
constexpr int kDepth = 16;     // input channels at a time
static_assert(kDepthPart % kDepth == 0);

template <class W>
struct PlainShared {
  __align__(16) W left[kDepth][kRows + 4];      // of the gathered rows
  __align__(16) W right[kDepth][kColumns + 4];  // of the weight
  TileRows tile;
};

// `kCount` channels of a row, zeros beyond the last one and where there is no row. kWhole: the row
// starts at a multiple of 16 bytes and is one long.
template <bool kWhole, int kCount, class T, class W>
__device__ __forceinline__ void read_channels(const T* row, bool there, int64_t channel,
                                              int64_t channels, W* out) {
  constexpr int kPiece = kWhole ? 16 / static_cast<int>(sizeof(T)) : 1;
#pragma unroll
  for (int i = 0; i < kCount; i += kPiece) {
    T piece[kPiece] = {};
    if (there && channel + i < channels) {
      if constexpr (kWhole)
        memcpy(piece, __builtin_assume_aligned(row + channel + i, 16), 16);
      else
        piece[0] = row[channel + i];
    }
#pragma unroll
    for (int j = 0; j < kPiece; ++j) out[i + j] = widen(piece[j]);
  }
}

template <bool kWhole, class T>
__global__ void __launch_bounds__(kThreads) plain_kernel(SparseConv3d<T> task) {
  using W = typename Wide<T>::type;
  auto& s = shared_memory<PlainShared<W>>();
  list_rows(task, s.tile);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * kColumns;
  Steps steps{static_cast<int>((task.in_channels + kDepth - 1) / kDepth)};

  // What the thread reads from global memory, one step before it is multiplied.
  const int left_line = thread / 2, left_depth = thread % 2 * 8;
  const int right_line = thread / 4, right_depth = thread % 4 * 4;
  W left[8], right[4];
  const auto read = [&] {
    const int k = s.tile.offsets[steps.offset];
    const int64_t channel = static_cast<int64_t>(steps.chunk) * kDepth;
    const int64_t row = s.tile.rows[k][left_line];
    read_channels<kWhole, 8>(task.feats + (row < 0 ? 0 : row) * task.in_channels, row >= 0,
                             channel + left_depth, task.in_channels, left);
    const int64_t column = first_column + right_line;
    const bool inside = column < task.out_channels;
    read_channels<kWhole, 4>(
        task.weight + ((inside ? column : 0) * task.num_offsets + k) * task.in_channels, inside,
        channel + right_depth, task.in_channels, right);
  };

  const int row8 = thread / 16 * 8, column4 = thread % 16 * 4;
  W sums[8][4] = {}, part[8][4] = {};
  const int count = steps.chunks * s.tile.num_offsets;
  if (count > 0) read();
  for (int step = 0; step < count; ++step) {
#pragma unroll
    for (int i = 0; i < 8; ++i) s.left[left_depth + i][left_line] = left[i];
#pragma unroll
    for (int i = 0; i < 4; ++i) s.right[right_depth + i][right_line] = right[i];
    __syncthreads();
    const int next_channel = (steps.chunk + 1) * kDepth;
    const bool part_ends = next_channel % kDepthPart == 0 || steps.chunk + 1 == steps.chunks;
    steps.next();
    if (step + 1 < count) read();
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      W a[8], b[4];
#pragma unroll
      for (int i = 0; i < 8; ++i) a[i] = s.left[d][row8 + i];
#pragma unroll
      for (int j = 0; j < 4; ++j) b[j] = s.right[d][column4 + j];
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) part[i][j] = fused(a[i], b[j], part[i][j]);
    }
    if (part_ends) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += part[i][j], part[i][j] = 0;
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int64_t row = s.tile.out_row[row8 + i];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t column = first_column + column4 + j;
      if (row < 0 || column >= task.out_channels) continue;
      const W sum = task.bias == nullptr ? sums[i][j] : sums[i][j] + widen(task.bias[column]);
      narrow(sum, task.out + row * task.out_channels + column);
    }
  }
}

// ---- Tensor cores
// --------------------------------------------------------------------------------

constexpr int kMmaThreads = 128;  // each warp sums 32 rows and all columns
constexpr int kMmaDepth = 32;     // input channels at a time
constexpr int kMmaStride = kMmaDepth + 8;
constexpr int kStages = 3;  // of copies under way

template <class T>
struct MmaShared {
  __align__(16) T left[kStages][kRows * kMmaStride];
  __align__(16) T right[kStages][kColumns * kMmaStride];
  TileRows tile;
};

template <class T>
__device__ __forceinline__ void load_stage(const SparseConv3d<T>& task, MmaShared<T>& s, int stage,
                                           int k, int64_t depth, int64_t first_column) {
  constexpr int kPieces = kMmaDepth / 8;  // of 16 bytes in a row
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t channel = depth + thread % kPieces * 8;
  const bool inside = channel < task.in_channels;
  const int at = thread % kPieces * 8;
  for (int line = thread / kPieces; line < kRows; line += kMmaThreads / kPieces) {
    const int64_t row = s.tile.rows[k][line];
    const bool there = inside && row >= 0;
    async_copy16(s.left[stage] + line * kMmaStride + at,
                 task.feats + (there ? row * task.in_channels + channel : 0), there);
  }
  for (int line = thread / kPieces; line < kColumns; line += kMmaThreads / kPieces) {
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
  list_rows(task, s.tile);
  const int warp = static_cast<int>(warp_id());
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * kColumns;
  Steps steps{static_cast<int>((task.in_channels + kMmaDepth - 1) / kMmaDepth)};  // of the copies
  const int count = steps.chunks * s.tile.num_offsets;
  const auto load_next = [&](int step) {
    if (step < count) {
      load_stage(task, s, step % kStages, s.tile.offsets[steps.offset],
                 static_cast<int64_t>(steps.chunk) * kMmaDepth, first_column);
      steps.next();
    }
    async_commit();  // a group for every step, so that they can be counted
  };
  for (int step = 0; step < kStages - 1; ++step) load_next(step);

  float sums[2][kColumns / 8][4] = {};
  for (int step = 0; step < count; ++step) {
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
      for (int j = 0; j < kColumns / 8; ++j) {
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
      const int64_t row = s.tile.out_row[warp * 32 + 16 * i + 8 * half + lane / 4];
      if (row < 0) continue;
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
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
  const dim3 grid = tiles(task.num_rows, kRows, task.out_channels, kColumns);
  constexpr int64_t kPiece = 16 / static_cast<int64_t>(sizeof(T));
  const bool whole =
      task.in_channels % kPiece == 0 && is_aligned(task.feats) && is_aligned(task.weight);
  if constexpr (sizeof(T) == 2) {
    if (whole) {
      launch(kOp, mma_kernel<T>, grid, dim3(kMmaThreads), sizeof(MmaShared<T>), stream, task);
      return;
    }
  }
  using Shared = PlainShared<typename Wide<T>::type>;
  launch(kOp, whole ? plain_kernel<sizeof(T) != 2, T> : plain_kernel<false, T>, grid,
         dim3(kThreads), sizeof(Shared), stream, task);
}

#define FASTSHAPE_INSTANTIATE(T) \
  template void sparse_conv3d<T>(const SparseConv3d<T>&, cudaStream_t);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
FASTSHAPE_INSTANTIATE(Float16)
FASTSHAPE_INSTANTIATE(BFloat16)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cuda
