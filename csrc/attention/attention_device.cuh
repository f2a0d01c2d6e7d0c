// What the attention kernels share: tiles of positions, and rows as they are loaded and written.
#pragma once

#include <cstdint>

#include "attention/attention.h"
#include "core/block.cuh"
#include "core/cuda_utils.cuh"

namespace fastshape::cuda {

__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
__device__ __forceinline__ float root(float x) { return __fsqrt_rn(x); }
__device__ __forceinline__ double root(double x) { return __dsqrt_rn(x); }
template <class W>
__device__ __forceinline__ W infinite() {
  return static_cast<W>(__builtin_huge_val());
}

// ---- Tiles -------------------------------------------------------------------------------------

// Sequences are cut into tiles of `size` positions. That of number `local` of sequence s has slot
// offsets[s] / size + s + local: different ones for different tiles, known without counting tiles;
// some slots stay empty.
inline int64_t tile_slots(const Sequences& s, int64_t num_sequences, int size) {
  return num_sequences == 0 ? 0 : s.total / size + num_sequences;
}

struct Tile {
  int64_t sequence;
  int32_t begin, end;  // positions
};

// Called by whole warps; all lanes get the tile.
__device__ __forceinline__ Tile find_tile(const Sequences& s, int64_t num_sequences, int64_t slot,
                                          int size) {
  int64_t low = 0, count = num_sequences;
  while (count > 1) {  // 32 candidates at a time
    const int64_t step = (count + 31) / 32, ahead = lane_id() * step;
    const bool before = ahead < count && s.offsets[low + ahead] / size + low + ahead <= slot;
    const int last = __popc(__ballot_sync(kAllLanes, before)) - 1;
    low += last * step;
    count = min(step, count - last * step);
  }
  const int64_t local = slot - (s.offsets[low] / size + low), end = s.offsets[low + 1];
  const int64_t begin = min(s.offsets[low] + local * size, end);
  return {low, static_cast<int32_t>(begin), static_cast<int32_t>(min(begin + size, end))};
}

// ---- Rows --------------------------------------------------------------------------------------

// What the norm and the rotation of one side need.
template <class W>
struct Preparation {
  const W* gamma;  // (heads, head_dim) or null
  const int32_t* coords;
  const float* rope;
  int rope_length, rope_pairs, head_dim;
  W factor;
};
template <class T>
__device__ __forceinline__ Preparation<wide<T>> query_preparation(const Attention<T>& in) {
  return {in.q_gamma, in.coords, in.rope, in.rope_length, in.rope_pairs, in.head_dim, in.scale};
}
template <class T>
__device__ __forceinline__ Preparation<wide<T>> key_preparation(const Attention<T>& in) {
  return {in.k_gamma, in.coords, in.rope, in.rope_length, in.rope_pairs, in.head_dim, wide<T>(1)};
}

// Turns features 2 pair and 2 pair + 1 of a row; sign -1 turns back.
template <class W>
__device__ __forceinline__ void turn(const Preparation<W>& how, int64_t row, int pair, W sign,
                                     W& even, W& odd) {
  if (pair >= 3 * how.rope_pairs) return;
  const int axis = pair / how.rope_pairs, frequency = pair - axis * how.rope_pairs;
  const int at = min(max(how.coords[4 * row + 1 + axis], 0), how.rope_length - 1);
  const float* phase = how.rope + 2 * (static_cast<int64_t>(at) * how.rope_pairs + frequency);
  const W cos = static_cast<W>(phase[0]), sin = sign * static_cast<W>(phase[1]);
  const W old = even;
  even = fused(old, cos, -(odd * sin));
  odd = fused(old, sin, odd * cos);
}

// Over lanes 8 i .. 8 i + 7.
template <class W>
__device__ __forceinline__ W sum_of_eight(W x) {
  for (int bit = 1; bit < 8; bit *= 2) x = x + __shfl_xor_sync(kAllLanes, x, bit);
  return x;
}
template <class W>
__device__ __forceinline__ W largest_of_eight(W x) {
  for (int bit = 1; bit < 8; bit *= 2) x = max(x, __shfl_xor_sync(kAllLanes, x, bit));
  return x;
}

// One over the norm, times sqrt(head_dim); `squares` is the sum of the squares.
template <class W>
__device__ __forceinline__ W norm_factor(W squares, int head_dim) {
  return root(static_cast<W>(head_dim)) / max(root(squares), static_cast<W>(1e-12));
}

}  // namespace fastshape::cuda
