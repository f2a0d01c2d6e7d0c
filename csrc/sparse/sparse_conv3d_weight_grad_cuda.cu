// The gradient of the weight: for every offset a product of the transposed gradient of the result
// and of the rows gathered there.
//
// A block sums a tile of 64 output by 64 input channels of one offset over one piece of the rows;
// the pieces are added in their order, so that no two writers meet. Rows without a neighbor are
// dropped before they are multiplied.
#include "core/block.cuh"
#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"
#include "core/mma.cuh"
#include "core/workspace.h"
#include "sparse/sparse_conv3d.h"

namespace fastshape::cuda {
namespace {

constexpr const char* kOp = "sparse_conv3d_weight_grad";
constexpr int kTile = 64;      // output and input channels
constexpr int kThreads = 256;  // that also list as many rows at a time
constexpr int kListed = 2 * kThreads;

// ---- Pieces of the rows
// --------------------------------------------------------------------------

constexpr int64_t kLeastRows = 2048;             // of a piece
constexpr int64_t kMostSums = int64_t{1} << 25;  // of all pieces together

// Depends on the sizes alone, and so does the order of the sum.
int64_t num_pieces(int64_t num_rows, int64_t in_channels, int64_t out_channels, int num_offsets) {
  const int64_t sums = in_channels * out_channels * num_offsets;
  const int64_t by_memory = kMostSums / (sums < 1 ? 1 : sums);
  const int64_t by_rows = (num_rows + kLeastRows - 1) / kLeastRows;
  const int64_t pieces = by_rows < by_memory ? by_rows : by_memory;
  return pieces < 1 ? 1 : pieces > 64 ? 64 : pieces;
}

struct Pair {
  int32_t out, in;
};

struct ListShared {
  BlockReduceStorage<int> scan;
  Pair pairs[kListed];  // not yet summed
};

// Appends the pairs of kThreads rows from `first` and returns how many there are now.
template <class T>
__device__ int list_more(const SparseConv3dWeightGrad<T>& task, ListShared& s, int k, int64_t first,
                         int64_t end, int count) {
  const int64_t m = first + threadIdx.x;
  const int32_t row = m < end ? task.rows[m * task.num_offsets + k] : -1;
  int listed = 0;
  const int at = block_exclusive_scan(s.scan, row >= 0 ? 1 : 0, listed);
  if (row >= 0) s.pairs[count + at] = {static_cast<int32_t>(m), row};
  __syncthreads();
  return count + listed;
}

// Moves the pairs from `done` to the front.
__device__ __forceinline__ int keep_rest(ListShared& s, int done, int count) {
  const int rest = count - done, thread = static_cast<int>(threadIdx.x);
  Pair moved{};
  if (thread < rest) moved = s.pairs[done + thread];
  __syncthreads();
  if (thread < rest) s.pairs[thread] = moved;
  __syncthreads();
  return rest;
}

struct Piece {
  int64_t begin, end;     // rows
  int64_t output, input;  // first channels of the tile
  int k;
};

// blockIdx: (tiles of input and of output channels, offsets, pieces).
template <class T>
__device__ __forceinline__ Piece piece_of(const SparseConv3dWeightGrad<T>& task) {
  const int64_t input_tiles = (task.in_channels + kTile - 1) / kTile;
  const int64_t rows = (task.num_rows + gridDim.z - 1) / gridDim.z;
  const int64_t begin = rows * blockIdx.z;
  const int64_t end = begin + rows < task.num_rows ? begin + rows : task.num_rows;
  return {begin, end, static_cast<int64_t>(blockIdx.x) / input_tiles * kTile,
          static_cast<int64_t>(blockIdx.x) % input_tiles * kTile, static_cast<int>(blockIdx.y)};
}

template <class T, class W>
__device__ __forceinline__ void write_sum(const SparseConv3dWeightGrad<T>& task, const Piece& piece,
                                          int64_t output, int64_t input, W sum, W* partial) {
  if (output >= task.out_channels || input >= task.in_channels) return;
  const int64_t all = task.out_channels * task.num_offsets * task.in_channels;
  partial[blockIdx.z * all + (output * task.num_offsets + piece.k) * task.in_channels + input] =
      sum;
}

// ---- Plain tiles
// ---------------------------------------------------------------------------------

constexpr int kDepth = 16;  // pairs at a time

template <class W>
struct PlainShared {
  W left[kDepth][kTile + 4];   // of the result's gradient
  W right[kDepth][kTile + 4];  // of the features
  ListShared list;
};

// The sums of up to kDepth pairs from `done`.
template <class T, class W>
__device__ void add_plain(const SparseConv3dWeightGrad<T>& task, PlainShared<W>& s,
                          const Piece& piece, int done, int count, W sums[4][4]) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kDepth * kTile; i += kThreads) {
    const int line = i / kTile, column = i % kTile;
    const bool there = done + line < count;
    const Pair pair = s.list.pairs[there ? done + line : 0];
    const int64_t output = piece.output + column, input = piece.input + column;
    s.left[line][column] = there && output < task.out_channels
                               ? widen(task.grad_out[pair.out * task.out_channels + output])
                               : W(0);
    s.right[line][column] = there && input < task.in_channels
                                ? widen(task.feats[pair.in * task.in_channels + input])
                                : W(0);
  }
  __syncthreads();
  const int row4 = thread / 16 * 4, column4 = thread % 16 * 4;
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    W a[4], b[4];
    for (int i = 0; i < 4; ++i) a[i] = s.left[d][row4 + i];
    for (int j = 0; j < 4; ++j) b[j] = s.right[d][column4 + j];
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) sums[i][j] += a[i] * b[j];
  }
  __syncthreads();
}

template <class T, class W>
__global__ void __launch_bounds__(kThreads)
    plain_kernel(SparseConv3dWeightGrad<T> task, W* partial) {
  auto& s = shared_memory<PlainShared<W>>();
  const Piece piece = piece_of(task);
  W sums[4][4] = {};
  int count = 0;
  for (int64_t first = piece.begin; first < piece.end; first += kThreads) {
    count = list_more(task, s.list, piece.k, first, piece.end, count);
    int done = 0;
    for (; count - done >= kDepth; done += kDepth) add_plain(task, s, piece, done, count, sums);
    count = keep_rest(s.list, done, count);
  }
  if (count > 0) add_plain(task, s, piece, 0, count, sums);
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j)
      write_sum(task, piece, piece.output + thread / 16 * 4 + i, piece.input + thread % 16 * 4 + j,
                sums[i][j], partial);
}

// ---- Tensor cores
// --------------------------------------------------------------------------------

constexpr int kMmaDepth = 32;  // pairs at a time
constexpr int kMmaStride = kTile + 8;

template <class T>
struct MmaShared {
  __align__(16) T left[kMmaDepth * kMmaStride];
  __align__(16) T right[kMmaDepth * kMmaStride];
  ListShared list;
};

// Eight warps: each has 16 output by 32 input channels.
template <class T>
__device__ void add_mma(const SparseConv3dWeightGrad<T>& task, MmaShared<T>& s, const Piece& piece,
                        int done, int count, float sums[4][4]) {
  constexpr int kPieces = kTile / 8;  // of 16 bytes in a row
  const int thread = static_cast<int>(threadIdx.x), warp = static_cast<int>(warp_id());
  const int line = thread / kPieces, at = thread % kPieces * 8;  // 256 threads: 32 lines
  const bool there = done + line < count;
  const Pair pair = s.list.pairs[there ? done + line : 0];
  const bool left = there && piece.output + at < task.out_channels;
  const bool right = there && piece.input + at < task.in_channels;
  async_copy16(s.left + line * kMmaStride + at,
               task.grad_out + (left ? pair.out * task.out_channels + piece.output + at : 0), left);
  async_copy16(s.right + line * kMmaStride + at,
               task.feats + (right ? pair.in * task.in_channels + piece.input + at : 0), right);
  async_commit();
  async_wait<0>();
  __syncthreads();
#pragma unroll
  for (int d = 0; d < kMmaDepth; d += 16) {
    uint32_t a[4];
    load_a_transposed(a, s.left + d * kMmaStride + warp / 2 * 16, kMmaStride);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t b[2];
      load_b(b, s.right + d * kMmaStride + warp % 2 * 32 + 8 * j, kMmaStride);
      mma_m16n8k16<T>(sums[j], a, b);
    }
  }
  __syncthreads();
}

// Channels are multiples of 8, and all arrays start at multiples of 16 bytes.
template <class T>
__global__ void __launch_bounds__(kThreads)
    mma_kernel(SparseConv3dWeightGrad<T> task, float* partial) {
  auto& s = shared_memory<MmaShared<T>>();
  const Piece piece = piece_of(task);
  float sums[4][4] = {};
  int count = 0;
  for (int64_t first = piece.begin; first < piece.end; first += kThreads) {
    count = list_more(task, s.list, piece.k, first, piece.end, count);
    int done = 0;
    for (; count - done >= kMmaDepth; done += kMmaDepth) add_mma(task, s, piece, done, count, sums);
    count = keep_rest(s.list, done, count);
  }
  if (count > 0) add_mma(task, s, piece, 0, count, sums);
  const int lane = static_cast<int>(lane_id()), warp = static_cast<int>(warp_id());
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int c = 0; c < 4; ++c)
      write_sum(task, piece, piece.output + warp / 2 * 16 + lane / 4 + 8 * (c / 2),
                piece.input + warp % 2 * 32 + 8 * j + lane % 4 * 2 + c % 2, sums[j][c], partial);
}

// ---- The sum of the pieces
// -----------------------------------------------------------------------

template <class T, class W>
__global__ void add_pieces_kernel(SparseConv3dWeightGrad<T> task, const W* partial,
                                  int64_t pieces) {
  const int64_t i = thread_index();
  const int64_t all = task.out_channels * task.num_offsets * task.in_channels;
  if (i >= all) return;
  W sum = partial[i];
  for (int64_t p = 1; p < pieces; ++p) sum += partial[p * all + i];
  narrow(sum, task.grad_weight + i);
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

size_t sparse_conv3d_weight_grad_workspace_bytes(int64_t num_rows, int64_t in_channels,
                                                 int64_t out_channels, int num_offsets) {
  return sizeof(double) *
         static_cast<size_t>(num_pieces(num_rows, in_channels, out_channels, num_offsets) *
                             in_channels * out_channels * num_offsets);
}

template <class T>
void sparse_conv3d_weight_grad(const SparseConv3dWeightGrad<T>& task, void* workspace,
                               cudaStream_t stream) {
  using W = typename Wide<T>::type;
  const int64_t all = task.out_channels * task.num_offsets * task.in_channels;
  if (all == 0) return;
  const int64_t pieces =
      num_pieces(task.num_rows, task.in_channels, task.out_channels, task.num_offsets);
  auto* const partial = static_cast<W*>(workspace);
  const int64_t channel_tiles =
      (task.out_channels + kTile - 1) / kTile * ((task.in_channels + kTile - 1) / kTile);
  const dim3 grid(static_cast<unsigned>(channel_tiles), static_cast<unsigned>(task.num_offsets),
                  static_cast<unsigned>(pieces));
  bool on_tensor_cores = false;
  if constexpr (sizeof(T) == 2) {
    on_tensor_cores = task.in_channels % 8 == 0 && task.out_channels % 8 == 0 &&
                      is_aligned(task.feats) && is_aligned(task.grad_out);
    if (on_tensor_cores)
      launch(kOp, mma_kernel<T>, grid, dim3(kThreads), sizeof(MmaShared<T>), stream, task, partial);
  }
  if (!on_tensor_cores)
    launch(kOp, plain_kernel<T, W>, grid, dim3(kThreads), sizeof(PlainShared<W>), stream, task,
           partial);
  launch(kOp, add_pieces_kernel<T, W>, blocks_for(all), dim3(kBlock), 0, stream, task, partial,
         pieces);
}

#define FASTSHAPE_INSTANTIATE(T) \
  template void sparse_conv3d_weight_grad<T>(const SparseConv3dWeightGrad<T>&, void*, cudaStream_t);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
FASTSHAPE_INSTANTIATE(Float16)
FASTSHAPE_INSTANTIATE(BFloat16)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cuda
