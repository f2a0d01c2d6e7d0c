// Places along a Hilbert curve: the order in which the GPU's builder lays faces, and every query
// its points. Unlike Morton's, the curve never jumps, so a run of it is always compact.
#pragma once

#include <cstdint>

#include "geometry/vec3.h"

namespace fastshape {

// Spreads 21 bits to every third of 63.
FASTSHAPE_HOST_DEVICE uint64_t spread_bits(uint64_t v) {
  v &= 0x1fffff;
  v = (v | v << 32) & 0x1f00000000ffffull;
  v = (v | v << 16) & 0x1f0000ff0000ffull;
  v = (v | v << 8) & 0x100f00f00f00f00full;
  v = (v | v << 4) & 0x10c30c30c30c30c3ull;
  v = (v | v << 2) & 0x1249249249249249ull;
  return v;
}

// The cell of v in [low, low + cells / scale), clamped; NaN is cell 0.
template <class T>
FASTSHAPE_HOST_DEVICE uint32_t grid_cell(T v, T low, T scale, uint32_t cells) {
  const T t = (v - low) * scale;
  if (!(t > T(0))) return 0;
  return t < static_cast<T>(cells) ? static_cast<uint32_t>(t) : cells - 1;
}

// `bits` <= 21 an axis; scale = 2^bits / longest side. Skilling 2004, "Programming the Hilbert
// curve": from the coarsest bit on, undo the reflection and the exchange of axes that the curve's
// octant brings; what is left is a Gray code.
template <class T>
FASTSHAPE_HOST_DEVICE uint64_t hilbert_code(const Vec3<T>& p, const Vec3<T>& low, T scale,
                                            int bits) {
  const uint32_t cells = 1u << bits;
  uint32_t x = grid_cell(p.x, low.x, scale, cells);
  uint32_t y = grid_cell(p.y, low.y, scale, cells);
  uint32_t z = grid_cell(p.z, low.z, scale, cells);
  for (uint32_t bit = cells >> 1; bit > 1; bit >>= 1) {
    const uint32_t below = bit - 1;
    if (x & bit) x ^= below;
    uint32_t exchanged = (y & bit) ? 0 : (x ^ y) & below;
    x ^= (y & bit) ? below : exchanged;
    y ^= exchanged;
    exchanged = (z & bit) ? 0 : (x ^ z) & below;
    x ^= (z & bit) ? below : exchanged;
    z ^= exchanged;
  }
  y ^= x;
  z ^= y;
  uint32_t flips = 0;
  for (uint32_t bit = cells >> 1; bit > 1; bit >>= 1)
    if (z & bit) flips ^= bit - 1;
  return spread_bits(x ^ flips) << 2 | spread_bits(y ^ flips) << 1 | spread_bits(z ^ flips);
}

template <class T>
FASTSHAPE_HOST_DEVICE T grid_scale(const Vec3<T>& low, const Vec3<T>& high, int bits) {
  const Vec3<T> side = high - low;
  const T longest = larger(larger(side.x, side.y), side.z);
  const T scale = static_cast<T>(1u << bits) / longest;
  return is_finite(scale) ? scale : T(0);  // a single point, or nothing finite
}

}  // namespace fastshape
