// Kernels with one thread for each element.
#pragma once

#include <cstdint>

#include "core/cuda_utils.cuh"

namespace fastshape::cuda {

constexpr unsigned kBlock = 128;

inline dim3 blocks_for(int64_t n) { return dim3(static_cast<unsigned>((n + kBlock - 1) / kBlock)); }

__device__ __forceinline__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace fastshape::cuda
