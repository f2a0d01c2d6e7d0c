// CUDA's keywords, vector types and arithmetic builtins as ordinary C++. Nothing here knows of
// threads.
//
// The overload sets are CUDA's own, so that what compiles here also compiles with nvcc.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// Static shared memory would be one variable for all blocks, and no sanitizer guards it.
#define __shared__ fastshape_kernels_use_shared_memory_of_a_struct_instead_of_static_variables

#define FASTSHAPE_VECTOR(type, name, align2, align4)                          \
  struct name##2 { type x, y; }                                               \
  __attribute__((aligned(align2)));                                           \
  struct name##3 { type x, y, z; };                                           \
  struct name##4 { type x, y, z, w; }                                         \
  __attribute__((aligned(align4)));                                           \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
FASTSHAPE_VECTOR(float, float, 8, 16)
FASTSHAPE_VECTOR(int, int, 8, 16)
FASTSHAPE_VECTOR(unsigned, uint, 8, 16)
FASTSHAPE_VECTOR(double, double, 16, 16)
FASTSHAPE_VECTOR(long long, longlong, 16, 16)
FASTSHAPE_VECTOR(unsigned long long, ulonglong, 16, 16)
#undef FASTSHAPE_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

template <class T>
inline T __ldg(const T* pointer) {
  return *pointer;
}

// ---- Bits --------------------------------------------------------------------------------------
namespace fastshape::emulation {
template <class To, class From>
inline To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}
}  // namespace fastshape::emulation

inline unsigned __float_as_uint(float v) { return fastshape::emulation::bit_cast<unsigned>(v); }
inline int __float_as_int(float v) { return fastshape::emulation::bit_cast<int>(v); }
inline float __uint_as_float(unsigned v) { return fastshape::emulation::bit_cast<float>(v); }
inline float __int_as_float(int v) { return fastshape::emulation::bit_cast<float>(v); }
inline long long __double_as_longlong(double v) {
  return fastshape::emulation::bit_cast<long long>(v);
}
inline double __longlong_as_double(long long v) {
  return fastshape::emulation::bit_cast<double>(v);
}

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline int __clzll(long long v) {
  return v == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(v));
}
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline unsigned __brev(unsigned v) {
  v = ((v >> 1) & 0x55555555u) | ((v & 0x55555555u) << 1);
  v = ((v >> 2) & 0x33333333u) | ((v & 0x33333333u) << 2);
  v = ((v >> 4) & 0x0f0f0f0fu) | ((v & 0x0f0f0f0fu) << 4);
  return __builtin_bswap32(v);
}
inline unsigned long long __brevll(unsigned long long v) {
  return (static_cast<unsigned long long>(__brev(static_cast<unsigned>(v))) << 32) |
         __brev(static_cast<unsigned>(v >> 32));
}

// ---- Arithmetic --------------------------------------------------------------------------------
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
// Approximate on the device (2 ulp): compare by tolerance.
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
inline double rsqrt(double a) { return 1.0 / std::sqrt(a); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using wide = unsigned __int128;
  return static_cast<unsigned long long>((static_cast<wide>(a) * b) >> 64);
}

// Like CUDA's: of a number and a NaN, floating-point min and max give the number.
#define FASTSHAPE_MIN_MAX(type)                             \
  inline type min(type a, type b) { return b < a ? b : a; } \
  inline type max(type a, type b) { return a < b ? b : a; }
FASTSHAPE_MIN_MAX(int)
FASTSHAPE_MIN_MAX(unsigned)
FASTSHAPE_MIN_MAX(long)
FASTSHAPE_MIN_MAX(unsigned long)
FASTSHAPE_MIN_MAX(long long)
FASTSHAPE_MIN_MAX(unsigned long long)
#undef FASTSHAPE_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
inline double min(float a, double b) { return std::fmin(static_cast<double>(a), b); }
inline double max(float a, double b) { return std::fmax(static_cast<double>(a), b); }
inline double min(double a, float b) { return std::fmin(a, static_cast<double>(b)); }
inline double max(double a, float b) { return std::fmax(a, static_cast<double>(b)); }
inline unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
inline unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
inline unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
