// Lanes of a CPU vector register, with the compiler's vector types: one source for SSE2 (or NEON),
// AVX2 and AVX-512 by the flags of the translation unit, and each lane rounds as the scalar does.
// The unnamed namespace keeps the copies apart.
#pragma once

#include <cstdint>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // nothing here crosses a translation unit
#endif

namespace fastshape {
namespace {

#define FASTSHAPE_INLINE __attribute__((always_inline)) inline

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Index __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Integer;
};
template <>
struct Lanes<double> {
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Index __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Integer;
};
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
FASTSHAPE_INLINE typename Lanes<T>::Vector load(const T* p) {
  typename Lanes<T>::Vector v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <class T>
FASTSHAPE_INLINE void store(T* p, const typename Lanes<T>::Vector& v) {
  __builtin_memcpy(p, &v, sizeof(v));
}
template <class T>
FASTSHAPE_INLINE typename Lanes<T>::Vector all(T value) {
  return value - typename Lanes<T>::Vector{};
}

}  // namespace
}  // namespace fastshape
