// The 16-bit floats as they lie in memory, and their conversion: to nearest, ties to even.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace fastshape {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// What arithmetic on a type is done in.
template <class T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};
template <class T>
using wide = typename Wide<T>::type;

FASTSHAPE_HOST_DEVICE float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
FASTSHAPE_HOST_DEVICE uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

FASTSHAPE_HOST_DEVICE float widen(BFloat16 x) {
  return bits_to_float(static_cast<uint32_t>(x.bits) << 16);
}
FASTSHAPE_HOST_DEVICE float widen(Float16 x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  // The exponent moves by 127 - 15; a product with 2^112 does that for subnormals too.
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const bool special = (x.bits & 0x7c00u) == 0x7c00u;
  const float value = bits_to_float(magnitude) * bits_to_float(0x77800000u);
  return bits_to_float((special ? magnitude | 0x7f800000u : float_to_bits(value)) | sign);
#endif
}
FASTSHAPE_HOST_DEVICE float widen(float x) { return x; }
FASTSHAPE_HOST_DEVICE double widen(double x) { return x; }

FASTSHAPE_HOST_DEVICE void narrow(float x, float* out) { *out = x; }
FASTSHAPE_HOST_DEVICE void narrow(double x, double* out) { *out = x; }
FASTSHAPE_HOST_DEVICE void narrow(float x, BFloat16* out) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out->bits) : "f"(x));
#else
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  out->bits = static_cast<uint16_t>(x != x ? (bits >> 16) | 0x40u : rounded);
#endif
}
FASTSHAPE_HOST_DEVICE void narrow(float x, Float16* out) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out->bits) : "f"(x));
#else
  const uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t rounded;
  if (magnitude > 0x7f800000u) {
    rounded = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520: rounds up to infinity
    rounded = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // 2^-14: a subnormal counts steps of 2^-24, which is what
    rounded = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;  // 0.5f's last bit is
  } else {
    rounded = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | rounded);
#endif
}

}  // namespace fastshape
