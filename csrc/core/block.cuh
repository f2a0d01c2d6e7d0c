// Reductions and scans of a warp and of a block, written once on the primitives of cuda_utils.cuh.
//
// All of them are called by every thread of the block (or warp), and blocks are whole warps:
// blockDim is a multiple of 32. The storage is a member of the kernel's Shared struct. The order of
// operations is fixed, so that a sum of floats has the same bits on every device and under the
// emulation.
#pragma once

#include <cstdint>
#include <limits>

#include "core/cuda_utils.cuh"

namespace fastshape::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr unsigned kMaxWarps = 32;

// ---- Operations --------------------------------------------------------------------------------

namespace detail {
template <class T>
constexpr T kLowest = std::numeric_limits<T>::has_infinity ? -std::numeric_limits<T>::infinity()
                                                           : std::numeric_limits<T>::lowest();
template <class T>
constexpr T kHighest = std::numeric_limits<T>::has_infinity ? std::numeric_limits<T>::infinity()
                                                            : std::numeric_limits<T>::max();
}  // namespace detail

// Commutative, with the value that changes nothing. Minimum and Maximum of NaN are left open.
struct Sum {
  template <class T>
  static __device__ __forceinline__ T identity() {
    return T(0);
  }
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Minimum {
  template <class T>
  static __device__ __forceinline__ T identity() {
    return detail::kHighest<T>;
  }
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Maximum {
  template <class T>
  static __device__ __forceinline__ T identity() {
    return detail::kLowest<T>;
  }
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

// ---- Warp --------------------------------------------------------------------------------------

// Every lane gets the result. 32-bit integers take one instruction.
template <class T, class Op>
__device__ __forceinline__ T warp_reduce(T value, Op op) {
  for (int bit = 16; bit > 0; bit /= 2) value = op(value, __shfl_xor_sync(kAllLanes, value, bit));
  return value;
}
__device__ __forceinline__ unsigned warp_reduce(unsigned value, Sum) {
  return __reduce_add_sync(kAllLanes, value);
}
__device__ __forceinline__ int warp_reduce(int value, Sum) {
  return __reduce_add_sync(kAllLanes, value);
}
__device__ __forceinline__ unsigned warp_reduce(unsigned value, Minimum) {
  return __reduce_min_sync(kAllLanes, value);
}
__device__ __forceinline__ int warp_reduce(int value, Minimum) {
  return __reduce_min_sync(kAllLanes, value);
}
__device__ __forceinline__ unsigned warp_reduce(unsigned value, Maximum) {
  return __reduce_max_sync(kAllLanes, value);
}
__device__ __forceinline__ int warp_reduce(int value, Maximum) {
  return __reduce_max_sync(kAllLanes, value);
}

// 64 bits in two instructions instead of ten shuffles: the largest upper half, then the largest
// lower half of those that have it.
__device__ __forceinline__ unsigned long long warp_reduce(unsigned long long value, Maximum) {
  const unsigned upper = static_cast<unsigned>(value >> 32), lower = static_cast<unsigned>(value);
  const unsigned largest = __reduce_max_sync(kAllLanes, upper);
  const unsigned rest = __reduce_max_sync(kAllLanes, upper == largest ? lower : 0u);
  return (static_cast<unsigned long long>(largest) << 32) | rest;
}
__device__ __forceinline__ unsigned long long warp_reduce(unsigned long long value, Minimum) {
  return ~warp_reduce(~value, Maximum());
}

// The sum of the lanes up to this one, itself included.
template <class T>
__device__ __forceinline__ T warp_inclusive_scan(T value) {
  const unsigned lane = lane_id();
  for (unsigned delta = 1; delta < 32; delta *= 2) {
    const T before = __shfl_up_sync(kAllLanes, value, delta);
    if (lane >= delta) value = before + value;
  }
  return value;
}

// ---- Block -------------------------------------------------------------------------------------

__device__ __forceinline__ unsigned block_threads() { return blockDim.x * blockDim.y * blockDim.z; }

template <class T>
struct BlockReduceStorage {
  T partial[kMaxWarps];
};

namespace detail {
// Every warp combines the partial results for itself: cheaper than one warp doing it and a second
// barrier.
template <class T, class Op>
__device__ __forceinline__ T combine_partials(const T* partial, Op op) {
  const unsigned lane = lane_id();
  return warp_reduce(lane < block_threads() / 32 ? partial[lane] : Op::template identity<T>(), op);
}
}  // namespace detail

// Every thread gets op over the block's values. Two barriers; the storage may be used again at
// once.
template <class T, class Op>
__device__ __forceinline__ T block_reduce(BlockReduceStorage<T>& storage, T value, Op op) {
  value = warp_reduce(value, op);
  if (lane_id() == 0) storage.partial[warp_id()] = value;
  __syncthreads();
  value = detail::combine_partials(storage.partial, op);
  __syncthreads();
  return value;
}

// For loops that reduce again and again: one barrier. `turn` counts the calls, 0 or any number for
// the first; a thread that runs ahead then writes where nobody reads any more.
template <class T>
struct BlockReduceTurns {
  BlockReduceStorage<T> storage[2];
};
template <class T, class Op>
__device__ __forceinline__ T block_reduce(BlockReduceTurns<T>& turns, unsigned turn, T value,
                                          Op op) {
  BlockReduceStorage<T>& storage = turns.storage[turn & 1];
  value = warp_reduce(value, op);
  if (lane_id() == 0) storage.partial[warp_id()] = value;
  __syncthreads();
  return detail::combine_partials(storage.partial, op);
}

// The sum of the values of the threads before this one; `total` gets that of all. Two barriers.
template <class T>
__device__ __forceinline__ T block_exclusive_scan(BlockReduceStorage<T>& storage, T value,
                                                  T& total) {
  const T inclusive = warp_inclusive_scan(value);
  const unsigned lane = lane_id(), warp = warp_id(), warps = block_threads() / 32;
  if (lane == 31) storage.partial[warp] = inclusive;
  __syncthreads();
  const T sums = warp_inclusive_scan(lane < warps ? storage.partial[lane] : T(0));
  total = __shfl_sync(kAllLanes, sums, static_cast<int>(warps - 1));
  const T before = __shfl_sync(kAllLanes, sums, static_cast<int>(warp == 0 ? 0 : warp - 1));
  __syncthreads();
  return (warp == 0 ? T(0) : before) + (inclusive - value);
}

// ---- The largest value and where it is ---------------------------------------------------------

// As one number that Maximum reduces: of equal values the lowest index wins. No NaN; -0 is below
// +0.
__device__ __forceinline__ unsigned long long pack_argmax(float value, unsigned index) {
  const unsigned bits = __float_as_uint(value);
  const unsigned ordered = bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
  return (static_cast<unsigned long long>(ordered) << 32) | ~index;
}
__device__ __forceinline__ float argmax_value(unsigned long long packed) {
  const unsigned ordered = static_cast<unsigned>(packed >> 32);
  return __uint_as_float(ordered ^ (ordered >> 31 != 0 ? 0x80000000u : 0xffffffffu));
}
__device__ __forceinline__ unsigned argmax_index(unsigned long long packed) {
  return ~static_cast<unsigned>(packed);
}

}  // namespace fastshape::cuda
