// What the tensor-core kernels share. A block of four warps; a warp has 16 rows of a tile of 64.
//
// A warp's sums lie in fragments of 16 rows and 8 columns (core/mma.cuh): a lane holds columns
// 2 (lane % 4) and the next one of rows lane / 4 and lane / 4 + 8.
#pragma once

#include "attention/attention_device.cuh"
#include "core/mma.cuh"

namespace fastshape::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 64;         // of a tile
constexpr int kCachedRows = 512;  // of a sequence's keys: where they lie is looked up once
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// Elements from row to row in shared memory: an odd multiple of 16 bytes.
template <int kDim>
constexpr int kStride = kDim + 8;

__device__ __forceinline__ float power_of_two(float x) { return exp2f(x); }

template <class T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t pair;
  if constexpr (std::is_same<T, BFloat16>::value)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return pack_narrow<T>(low, high);
#endif
}
template <class T>
__device__ __forceinline__ float low_of(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair)});
}
template <class T>
__device__ __forceinline__ float high_of(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair >> 16)});
}

// ---- Loading -----------------------------------------------------------------------------------

// Eight threads share a row, in pieces of 16 bytes; the block loads 16 rows at a time.
constexpr int kRowsAtOnce = kThreads / 8;
__device__ __forceinline__ int loader_row() { return static_cast<int>(threadIdx.x) / 8; }
__device__ __forceinline__ int loader_piece() { return static_cast<int>(threadIdx.x) % 8; }

// Starts copying rows to a tile; `row_at(r)` is -1 where there is none: zeros. So are the features
// behind head_dim.
template <int kDim, int kTileRows, class T, class RowAt>
__device__ __forceinline__ void copy_rows(T* tile, const HeadRows<const T>& from, int head,
                                          int head_dim, RowAt&& row_at) {
#pragma unroll
  for (int r = loader_row(); r < kTileRows; r += kRowsAtOnce) {
    const int64_t row = row_at(r);
    const T* const source = head_row(from, row < 0 ? 0 : row, head);
#pragma unroll
    for (int d = 8 * loader_piece(); d < kDim; d += 64) {
      const bool there = row >= 0 && d < head_dim;
      async_copy16(tile + r * kStride<kDim> + d, there ? source + d : source, there);
    }
  }
}

struct Piece {
  uint32_t pair[4];
};
__device__ __forceinline__ Piece load_piece(const void* from) {
  const uint4 bits = *static_cast<const uint4*>(from);
  return {{bits.x, bits.y, bits.z, bits.w}};
}
__device__ __forceinline__ void store_piece(void* to, const Piece& piece) {
  *static_cast<uint4*>(to) = make_uint4(piece.pair[0], piece.pair[1], piece.pair[2], piece.pair[3]);
}

// The norm and the rotation of a tile's rows, in place; each thread changes what it copied.
template <int kDim, int kTileRows, class T, class RowAt>
__device__ __forceinline__ void prepare_rows(T* tile, const Preparation<float>& how, int head,
                                             RowAt&& row_at) {
  if (how.gamma == nullptr && how.rope == nullptr) return;
  for (int r = loader_row(); r < kTileRows; r += kRowsAtOnce) {
    const int64_t row = row_at(r);
    T* const here = tile + r * kStride<kDim>;
    float squares = 0;
    if (how.gamma != nullptr) {
      for (int d = 8 * loader_piece(); d < how.head_dim; d += 64) {
        const Piece piece = load_piece(here + d);
        for (int i = 0; i < 4; ++i) {
          const float low = low_of<T>(piece.pair[i]), high = high_of<T>(piece.pair[i]);
          squares = fused(low, low, fused(high, high, squares));
        }
      }
      squares = norm_factor(sum_of_eight(squares), how.head_dim);
    }
    for (int d = 8 * loader_piece(); d < how.head_dim; d += 64) {
      Piece piece = load_piece(here + d);
      for (int i = 0; i < 4; ++i) {
        float low = low_of<T>(piece.pair[i]), high = high_of<T>(piece.pair[i]);
        if (how.gamma != nullptr) {
          const float* const gamma = how.gamma + head * how.head_dim + d + 2 * i;
          low = low * squares * gamma[0];
          high = high * squares * gamma[1];
        }
        if (how.rope != nullptr && row >= 0) turn(how, row, d / 2 + i, 1.0f, low, high);
        piece.pair[i] = pack_pair<T>(low, high);
      }
      store_piece(here + d, piece);
    }
  }
}

// ---- Products ----------------------------------------------------------------------------------

// sums (16 rows, 8 columns each) += 16 rows of `a` times the rows of `b`: both have their features
// side by side. Only the first `count` columns are wanted.
template <int kDim, int kFragments, class T>
__device__ __forceinline__ void multiply_rows(float (&sums)[kFragments][4], const T* a, const T* b,
                                              int count) {
#pragma unroll
  for (int d = 0; d < kDim; d += 16) {
    uint32_t left[4];
    load_a(left, a + d, kStride<kDim>);
#pragma unroll
    for (int j = 0; j < kFragments; ++j) {
      if (8 * j >= count) break;
      uint32_t right[2];
      load_b_transposed(right, b + 8 * j * kStride<kDim> + d, kStride<kDim>);
      mma_m16n8k16<T>(sums[j], left, right);
    }
  }
}

// The fragments of 16 columns of numbers as the left side of a product.
template <class T>
__device__ __forceinline__ void as_left(uint32_t (&left)[4], const float (&first)[4],
                                        const float (&second)[4]) {
  left[0] = pack_pair<T>(first[0], first[1]);
  left[1] = pack_pair<T>(first[2], first[3]);
  left[2] = pack_pair<T>(second[0], second[1]);
  left[3] = pack_pair<T>(second[2], second[3]);
}

// sums (16 rows, kDim) += factors (16 rows, `count` columns) times the rows of `tile`.
template <int kDim, int kFragments, class T>
__device__ __forceinline__ void add_weighted_rows(float (&sums)[kDim / 8][4],
                                                  const float (&factors)[kFragments][4],
                                                  const T* tile, int count) {
#pragma unroll
  for (int k = 0; k < kFragments / 2; ++k) {
    if (16 * k >= count) break;
    uint32_t left[4];
    as_left<T>(left, factors[2 * k], factors[2 * k + 1]);
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      uint32_t right[2];
      load_b(right, tile + 16 * k * kStride<kDim> + 8 * d, kStride<kDim>);
      mma_m16n8k16<T>(sums[d], left, right);
    }
  }
}

template <int kFragments>
__device__ __forceinline__ void clear(float (&sums)[kFragments][4]) {
#pragma unroll
  for (int j = 0; j < kFragments; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[j][i] = 0;
}

// Over the four lanes that share a row.
__device__ __forceinline__ float sum_of_four(float x) {
  x = x + __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}
__device__ __forceinline__ float largest_of_four(float x) {
  x = max(x, __shfl_xor_sync(kAllLanes, x, 1));
  return max(x, __shfl_xor_sync(kAllLanes, x, 2));
}

__device__ __forceinline__ int fragment_row() { return static_cast<int>(lane_id()) / 4; }
__device__ __forceinline__ int fragment_column() { return static_cast<int>(lane_id()) % 4 * 2; }

}  // namespace
}  // namespace fastshape::cuda
