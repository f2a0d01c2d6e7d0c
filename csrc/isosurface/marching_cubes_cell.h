// What every form of marching cubes shares: one cell, one vertex and its derivative.
//
// A corner is inside where its value is below the level, so a value equal to the level and NaN are
// outside. An edge is crossed where one end is inside and the other is not, and has one vertex.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "isosurface/marching_cubes_table.h"

namespace fastshape {

constexpr int kCellEdges = 12;

FASTSHAPE_HOST_DEVICE int count_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __popc(bits);
#else
  return __builtin_popcount(bits);
#endif
}

FASTSHAPE_HOST_DEVICE int count_bits64(uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __popcll(bits);
#else
  return __builtin_popcountll(bits);
#endif
}

// `corners`: eight values.
template <class T>
FASTSHAPE_HOST_DEVICE unsigned cell_case(const T* corners, T level) {
  unsigned bits = 0;
  for (unsigned i = 0; i < 8; ++i) bits |= static_cast<unsigned>(corners[i] < level) << i;
  return bits;
}

FASTSHAPE_HOST_DEVICE int num_triangles(unsigned bits) {
  return static_cast<int>(case_triangles(bits) >> 60);
}

// How far along a crossed edge from its lower end, with value a, the level lies: in [0, 1], as
// rounding is monotone. The middle where infinities or NaN leave the quotient undefined.
template <class T>
FASTSHAPE_HOST_DEVICE T crossing(T a, T b, T level) {
  const T t = (level - a) / (b - a);
  return t == t ? t : T(0.5);
}

// The derivative of crossing() with respect to the lower end's value (end = 0) or the upper one's
// (end = 1).
template <class T>
FASTSHAPE_HOST_DEVICE T crossing_gradient(T a, T b, T level, int end) {
  const T t = (level - a) / (b - a);
  if (!(t == t)) return T(0);
  return (end == 0 ? t - T(1) : -t) / (b - a);
}

// The triangles of a case; vertex_of(edge) is asked for crossed edges only.
template <class VertexOf>
FASTSHAPE_HOST_DEVICE void write_triangles(uint64_t triangles, int64_t* faces,
                                           const VertexOf& vertex_of) {
  const int corners = 3 * static_cast<int>(triangles >> 60);
  for (int i = 0; i < corners; ++i) faces[i] = vertex_of(static_cast<int>(triangles >> 4 * i & 15));
}

}  // namespace fastshape
