// Products of small matrices on tensor cores: D (16, 8) += A (16, 16) B (16, 8), 16-bit floats
// summed in float.
//
// Called by all 32 lanes of a warp, from one line. A matrix is loaded from shared memory, where its
// rows lie `stride` elements apart: rows start at multiples of 16 bytes, so `stride` is a multiple
// of 8, and an odd multiple avoids bank conflicts. A `_transposed` load takes the transpose of what
// lies there.
//
// A lane holds of D: rows lane / 4 and lane / 4 + 8, columns 2 (lane % 4) and the next one:
//   d[0], d[1]: the upper row;  d[2], d[3]: the lower row.
// Of A: a[0], a[1] the same rows in the columns of the left half, a[2], a[3] of the right half; two
// neighbors in one register, the left one low. Of B: column lane / 4, rows 2 (lane % 4) and the
// next one, b[0] in the upper half, b[1] in the lower. So a D narrowed to 16 bits is an A: see
// pack.
//
// The emulated twin sums in the order of the columns of A and rounds after each; the device rounds
// less often and truncates, and so differs from it in the last bits.
#pragma once

#include <cstdint>

#include "core/cuda_utils.cuh"
#include "core/half.h"

namespace fastshape::cuda {

// Two neighbors as one register of a fragment.
template <class T>
__device__ __forceinline__ uint32_t pack(T low, T high) {
  static_assert(sizeof(T) == 2, "16-bit floats");
  return static_cast<uint32_t>(low.bits) | static_cast<uint32_t>(high.bits) << 16;
}
// The same of floats, rounded to T.
template <class T>
__device__ __forceinline__ uint32_t pack_narrow(float low, float high) {
  T l, h;
  narrow(low, &l);
  narrow(high, &h);
  return pack(l, h);
}

#if defined(__CUDACC__)

namespace detail {
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
// Lanes 0 to 7 give the rows of the first 8 x 8 matrix, the next eight those of the second, ...
#define FASTSHAPE_LDMATRIX4(suffix, r, row)                                                 \
  asm volatile("ldmatrix.sync.aligned.m8n8.x4" suffix ".shared.b16 {%0, %1, %2, %3}, [%4];" \
               : "=r"((r)[0]), "=r"((r)[1]), "=r"((r)[2]), "=r"((r)[3])                     \
               : "r"(detail::shared_address(row))                                           \
               : "memory")
#define FASTSHAPE_LDMATRIX2(suffix, r, row)                                         \
  asm volatile("ldmatrix.sync.aligned.m8n8.x2" suffix ".shared.b16 {%0, %1}, [%2];" \
               : "=r"((r)[0]), "=r"((r)[1])                                         \
               : "r"(detail::shared_address(row))                                   \
               : "memory")
}  // namespace detail

// A from its 16 rows of 16.
template <class T>
__device__ __forceinline__ void load_a(uint32_t a[4], const T* tile, int stride) {
  const int lane = static_cast<int>(lane_id());
  FASTSHAPE_LDMATRIX4("", a, tile + (lane & 15) * stride + 8 * (lane >> 4));
}
// A from its 16 columns of 16.
template <class T>
__device__ __forceinline__ void load_a_transposed(uint32_t a[4], const T* tile, int stride) {
  const int lane = static_cast<int>(lane_id());
  const int k = (lane & 7) + 8 * (lane >> 4);
  FASTSHAPE_LDMATRIX4(".trans", a, tile + k * stride + (lane & 8));
}
// B from its 16 rows of 8.
template <class T>
__device__ __forceinline__ void load_b(uint32_t b[2], const T* tile, int stride) {
  const int lane = static_cast<int>(lane_id());
  FASTSHAPE_LDMATRIX2(".trans", b, tile + (lane & 15) * stride);
}
// B from its 8 columns of 16.
template <class T>
__device__ __forceinline__ void load_b_transposed(uint32_t b[2], const T* tile, int stride) {
  const int lane = static_cast<int>(lane_id());
  FASTSHAPE_LDMATRIX2("", b, tile + (lane & 7) * stride + (lane & 8));
}
#undef FASTSHAPE_LDMATRIX4
#undef FASTSHAPE_LDMATRIX2

#define FASTSHAPE_MMA(types)                                                      \
  asm volatile("mma.sync.aligned.m16n8k16.row.col." types                         \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// d += a b. T is BFloat16 or Float16.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]);
template <>
__device__ __forceinline__ void mma_m16n8k16<BFloat16>(float d[4], const uint32_t a[4],
                                                       const uint32_t b[2]) {
  FASTSHAPE_MMA("f32.bf16.bf16.f32");
}
template <>
__device__ __forceinline__ void mma_m16n8k16<Float16>(float d[4], const uint32_t a[4],
                                                      const uint32_t b[2]) {
  FASTSHAPE_MMA("f32.f16.f16.f32");
}
#undef FASTSHAPE_MMA

// ---- Copies from global to shared memory that the thread does not wait for ----------------------

// 16 bytes, both ends aligned to 16; zeros where `there` is false (then `from` is not read, but
// must be a pointer into some allocation).
__device__ __forceinline__ void async_copy16(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(detail::shared_address(to)),
               "l"(from), "r"(there ? 16 : 0)
               : "memory");
}
// Closes a group of the copies since the last one.
__device__ __forceinline__ void async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until all but the last `Pending` groups of this thread are there; a barrier tells the others.
template <int Pending>
__device__ __forceinline__ void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

#else

template <class T>
inline void load_a(uint32_t a[4], const T* tile, int stride) {
  const int row = static_cast<int>(lane_id()) / 4, column = static_cast<int>(lane_id()) % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    const T* pair = tile + (row + 8 * (i & 1)) * stride + column + 8 * (i >> 1);
    a[i] = pack(pair[0], pair[1]);
  }
}
template <class T>
inline void load_a_transposed(uint32_t a[4], const T* tile, int stride) {
  const int row = static_cast<int>(lane_id()) / 4, column = static_cast<int>(lane_id()) % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    const T* pair = tile + (column + 8 * (i >> 1)) * stride + row + 8 * (i & 1);
    a[i] = pack(pair[0], pair[stride]);
  }
}
template <class T>
inline void load_b(uint32_t b[2], const T* tile, int stride) {
  const int column = static_cast<int>(lane_id()) / 4, row = static_cast<int>(lane_id()) % 4 * 2;
  for (int i = 0; i < 2; ++i) {
    const T* pair = tile + (row + 8 * i) * stride + column;
    b[i] = pack(pair[0], pair[stride]);
  }
}
template <class T>
inline void load_b_transposed(uint32_t b[2], const T* tile, int stride) {
  const int column = static_cast<int>(lane_id()) / 4, row = static_cast<int>(lane_id()) % 4 * 2;
  for (int i = 0; i < 2; ++i) {
    const T* pair = tile + column * stride + row + 8 * i;
    b[i] = pack(pair[0], pair[1]);
  }
}

// The lanes show each other where their fragments lie.
template <class T>
inline void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  struct Fragments {
    const uint32_t *a, *b;
  };
  constexpr unsigned kLanes = 0xffffffffu;
  Fragments table[32];  // the first lane's is used
  auto* const all = reinterpret_cast<Fragments*>(
      __shfl_sync(kLanes, static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(table)), 0));
  const int lane = static_cast<int>(lane_id());
  all[lane] = {a, b};
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, column = lane % 4 * 2 + (i & 1);
    for (int k = 0; k < 16; ++k) {
      const int pair = k % 8 / 2, half = k / 8, shift = 16 * (k & 1);
      const uint32_t left = all[4 * row + pair].a[i / 2 + 2 * half] >> shift;
      const uint32_t right = all[4 * column + pair].b[half] >> shift;
      d[i] += to_float(T{static_cast<uint16_t>(left)}) * to_float(T{static_cast<uint16_t>(right)});
    }
  }
  __syncwarp();  // before the fragments change, and the table ends
}

inline void async_copy16(void* to, const void* from, bool there) {
  if (there)
    std::memcpy(to, from, 16);
  else
    std::memset(to, 0, 16);
}
inline void async_commit() {}
template <int Pending>
inline void async_wait() {}

#endif

}  // namespace fastshape::cuda
