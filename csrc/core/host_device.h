// Functions whose arithmetic stands once and runs on the host and on the device.
#pragma once

#include <cstdint>

// `static` on the host: the same header is compiled into translation units with different
// instruction-set flags, and the linker must never pick the AVX-512 copy of an inline function for
// everybody.
#if defined(__CUDACC__)
#define FASTSHAPE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTSHAPE_HOST_DEVICE static inline
#endif

// The stream type that headers name without needing CUDA's own; an identical redeclaration is legal
// beside it.
struct CUstream_st;
using cudaStream_t = CUstream_st*;
