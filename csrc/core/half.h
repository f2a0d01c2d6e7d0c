// The two 16-bit floats, as torch has them: stored in 16 bits, calculated with as float.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace fastshape {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

namespace detail {
FASTSHAPE_HOST_DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}
FASTSHAPE_HOST_DEVICE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}
}  // namespace detail

FASTSHAPE_HOST_DEVICE float to_float(BFloat16 value) {
  return detail::float_of(static_cast<uint32_t>(value.bits) << 16);
}

FASTSHAPE_HOST_DEVICE float to_float(Float16 value) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t exponent = value.bits & 0x7c00, rest = value.bits & 0x7fff;
  if (exponent == 0x7c00) return detail::float_of(sign | 0x7f800000 | rest << 13);
  if (exponent == 0) {
    const float tiny = static_cast<float>(rest) * 0x1p-24f;
    return detail::float_of(sign | detail::bits_of(tiny));
  }
  return detail::float_of(sign | ((rest << 13) + (112u << 23)));
#endif
}

// To the nearest, ties to even.
FASTSHAPE_HOST_DEVICE BFloat16 to_bfloat16(float value) {
  const uint32_t bits = detail::bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

FASTSHAPE_HOST_DEVICE Float16 to_float16(float value) {
#if defined(__CUDA_ARCH__)
  Float16 narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
#else
  const uint32_t bits = detail::bits_of(value), sign = bits >> 16 & 0x8000,
                 size = bits & 0x7fffffff;
  uint32_t narrow;
  if (size >= 0x47800000) {  // 2^16 and above, infinity, NaN
    narrow = size > 0x7f800000 ? 0x7e00 : 0x7c00;
  } else if (size < 0x38800000) {  // below 2^-14: the sum has the last place of a subnormal number
    narrow = detail::bits_of(detail::float_of(size) + 0.5f) - 0x3f000000;
  } else {
    narrow = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
  }
  return {static_cast<uint16_t>(sign | narrow)};
#endif
}

// What a type is summed in, and the way there and back: float16 and bfloat16 in float.
template <class T>
struct Wide {
  using type = T;
};
template <>
struct Wide<Float16> {
  using type = float;
};
template <>
struct Wide<BFloat16> {
  using type = float;
};

FASTSHAPE_HOST_DEVICE float widen(float value) { return value; }
FASTSHAPE_HOST_DEVICE double widen(double value) { return value; }
FASTSHAPE_HOST_DEVICE float widen(Float16 value) { return to_float(value); }
FASTSHAPE_HOST_DEVICE float widen(BFloat16 value) { return to_float(value); }

FASTSHAPE_HOST_DEVICE void narrow(float value, float* to) { *to = value; }
FASTSHAPE_HOST_DEVICE void narrow(double value, double* to) { *to = value; }
FASTSHAPE_HOST_DEVICE void narrow(float value, Float16* to) { *to = to_float16(value); }
FASTSHAPE_HOST_DEVICE void narrow(float value, BFloat16* to) { *to = to_bfloat16(value); }

}  // namespace fastshape
