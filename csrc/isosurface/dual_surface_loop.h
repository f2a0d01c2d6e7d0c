// The CPU's loops over the words of a lattice, compiled once per instruction set: include it from
// one .cpp each.
//
// In a lattice all cubes around an edge inside of it are there, so that masks of crossed edges are
// masks of quads, and quads come in the order of their edges without being sorted. Two cubes that
// follow each other along z and are both crossed have numbers that follow each other.
#pragma once

#include <initializer_list>

#include "isosurface/dual_surface_cpu.h"

namespace fastshape {
namespace {

// ---- Cubes -------------------------------------------------------------------------------------

inline int64_t mark_cubes_loop(const DualLattice& l, int64_t x) {
  const SignLattice signs = signs_of(l);
  int64_t count = 0;
  for (int64_t y = 0; y < signs.size_y; ++y) {
    for (int64_t w = 0; w < l.row_words; ++w) {
      const int64_t word = word_index(signs, x, y, w);
      const bool has_cubes = x + 1 < signs.size_x && y + 1 < signs.size_y;
      l.mixed[word] = has_cubes ? cell_rows(signs, x, y, w).crossed : uint64_t{0};
      l.first[word] = count;
      count += count_bits64(l.mixed[word]);
    }
  }
  return count;
}

// The case of the cube at (x, y, z), which is `raw` by its own corners alone: resolved_case for a
// lattice, where the neighbor's case is read off its corners.
inline unsigned lattice_case(const SignLattice& l, int64_t x, int64_t y, int64_t z, unsigned raw) {
  const unsigned ambiguity = dual_ambiguity(raw);
  if (ambiguity >> 15 == 0) return raw;
  int64_t at[3] = {x, y, z};
  at[ambiguity >> 8 & 3] += ambiguity >> 10 & 1 ? -1 : 1;
  const bool there = at[0] >= 0 && at[1] >= 0 && at[2] >= 0 && at[0] + 1 < l.size_x &&
                     at[1] + 1 < l.size_y && at[2] + 1 < l.size_z;
  if (!there) return raw;
  const CellRows rows = cell_rows(l, at[0], at[1], at[2] >> 6);
  const unsigned neighbor = cell_case(rows, static_cast<int>(at[2] & 63));
  return is_ambiguous(neighbor) ? ambiguity & 255u : raw;
}

// The edges in the middle of four cubes, as the bits of a word: along each axis, and of those which
// begin outside.
struct QuadMasks {
  uint64_t axis[3];
  uint64_t outside[3];
};

// By their lowest cube, which lies at the word's bit.
inline QuadMasks quads_of_cubes(const SignLattice& l, int64_t x, int64_t y, int64_t w) {
  const int64_t word = word_index(l, x + 1, y + 1, w);
  const uint64_t here = l.inside[word], above = inside_above(l, word, w);
  const uint64_t along_x = above ^ inside_above(l, word - l.size_y * l.row_words, w);
  const uint64_t along_y = above ^ inside_above(l, word - l.row_words, w);
  const int64_t n = l.size_z - 2 - 64 * w;  // cubes that have another one above
  const uint64_t low = n >= 64 ? ~uint64_t{0} : n <= 0 ? uint64_t{0} : (uint64_t{1} << n) - 1;
  const uint64_t has_x = x + 2 < l.size_x ? ~uint64_t{0} : 0;
  const uint64_t has_y = y + 2 < l.size_y ? ~uint64_t{0} : 0;
  QuadMasks m;
  m.axis[0] = along_x & has_y & low;
  m.axis[1] = along_y & has_x & low;
  m.axis[2] = (here ^ above) & has_x & has_y & lower_ends(l, w);
  m.outside[0] = ~above ^ along_x;  // it begins at the corner along x before
  m.outside[1] = ~above;
  m.outside[2] = ~here;
  return m;
}

// By the point where they begin.
inline QuadMasks quads_of_points(const SignLattice& l, int64_t x, int64_t y, int64_t w) {
  const int64_t word = word_index(l, x, y, w);
  const uint64_t here = l.inside[word];
  const bool in_x = x > 0 && x + 1 < l.size_x, in_y = y > 0 && y + 1 < l.size_y;
  const uint64_t in_z = lower_ends(l, w) & (w == 0 ? ~uint64_t{1} : ~uint64_t{0});
  QuadMasks m;
  m.axis[0] =
      x + 1 < l.size_x && in_y ? (here ^ l.inside[word + l.size_y * l.row_words]) & in_z : 0;
  m.axis[1] = in_x && y > 0 ? (here ^ l.inside[word - l.row_words]) & in_z : 0;
  m.axis[2] = in_x && in_y ? (here ^ inside_above(l, word, w)) & lower_ends(l, w) : 0;
  m.outside[0] = m.outside[1] = m.outside[2] = ~here;
  return m;
}

inline cpu::DualSlab count_cubes_loop(const DualLattice& l, bool manifold, int64_t x,
                                      const DualCubes& cubes) {
  const SignLattice signs = signs_of(l);
  cpu::DualSlab slab{};
  if (x + 1 == signs.size_x) return slab;
  for (int64_t y = 0; y + 1 < signs.size_y; ++y) {
    const int64_t lowest = (x * signs.size_y + y) * signs.size_z;
    const int64_t row = (x * (signs.size_y - 1) + y) * (signs.size_z - 1);
    for (int64_t w = 0; w < l.row_words; ++w) {
      const int64_t word = word_index(signs, x, y, w);
      if (l.mixed[word] == 0) continue;
      const CellRows rows = cell_rows(signs, x, y, w);
      int64_t s = l.first[word];
      for (uint64_t left = l.mixed[word]; left != 0; left &= left - 1, ++s) {
        const int b = __builtin_ctzll(left);
        const int64_t z = 64 * w + b;
        unsigned bits = cell_case(rows, b);
        if (manifold) bits = lattice_case(signs, x, y, z, bits);
        cubes.lowest[s] = lowest + z;
        if (cubes.rows != nullptr) cubes.rows[s] = row + z;
        cubes.cases[s] = static_cast<uint8_t>(bits);
        const int n = num_dual_vertices(bits);
        slab.vertices[n - 1] += n;
        slab.pairs[n - 1] += num_dual_pairs(bits);
      }
      const QuadMasks quads = quads_of_cubes(signs, x, y, w);
      for (int axis = 0; axis < kQuadAxes; ++axis) slab.quads += count_bits64(quads.axis[axis]);
    }
  }
  return slab;
}

// The crossed cubes of a slab.
struct CubeRange {
  int64_t begin, end;
};
inline CubeRange cubes_of_slab(const DualLattice& l, int64_t x) {
  const int64_t words = l.corners.size_y * l.row_words;
  return {l.first[x * words], l.first[(x + 1) * words]};
}

inline void number_cubes_loop(const DualLattice& l, int64_t x, const DualCubes& cubes,
                              cpu::DualSlab next) {
  const CubeRange range = cubes_of_slab(l, x);
  for (int64_t s = range.begin; s < range.end; ++s) {
    const unsigned bits = cubes.cases[s];
    const int n = num_dual_vertices(bits);
    cubes.first_vertex[s] = next.vertices[n - 1];
    next.vertices[n - 1] += n;
    if (cubes.first_pair == nullptr) continue;
    cubes.first_pair[s] = next.pairs[n - 1];
    next.pairs[n - 1] += num_dual_pairs(bits);
  }
}

// ---- Quads -------------------------------------------------------------------------------------

// f(axis, bit, begins outside) for the quads of a word, in an order of their axes.
template <class F>
inline void for_each_quad(const QuadMasks& m, int first, int second, int third, const F& f) {
  for (uint64_t left = m.axis[0] | m.axis[1] | m.axis[2]; left != 0; left &= left - 1) {
    const int b = __builtin_ctzll(left);
    for (const int axis : {first, second, third})
      if (m.axis[axis] >> b & 1) f(axis, b, (m.outside[axis] >> b & 1) != 0);
  }
}

// Which crossed cube is at z of the row whose words begin at `words`.
inline int64_t crossed_in_row(const DualLattice& l, int64_t words, int64_t z) {
  const int64_t word = words + (z >> 6);
  return l.first[word] + count_bits64(l.mixed[word] & ((uint64_t{1} << (z & 63)) - 1));
}

// A quad whose lowest cube is at z of the row whose words begin at `words`.
inline void write_lattice_quad(const DualLattice& l, const DualCubes& cubes, int64_t words,
                               int64_t z, int axis, bool outside, const DualMesh& mesh,
                               int64_t quad) {
  const int64_t along_y = l.row_words, along_x = l.corners.size_y * l.row_words;
  int64_t cube[4];
  cube[0] = crossed_in_row(l, words, z);
  if (axis == 2) {
    cube[1] = crossed_in_row(l, words + along_y, z);
    cube[2] = crossed_in_row(l, words + along_x, z);
    cube[3] = crossed_in_row(l, words + along_x + along_y, z);
  } else {
    cube[1] = cube[0] + 1;
    cube[2] = crossed_in_row(l, words + (axis == 0 ? along_y : along_x), z);
    cube[3] = cube[2] + 1;
  }
  int64_t around[4];
  for (int i = 0; i < 4; ++i)
    around[i] =
        cubes.first_vertex[cube[i]] + dual_vertex_of_edge(cubes.cases[cube[i]], quad_edge(axis, i));
  write_corners(mesh, quad, around, axis, outside);
}

// f(words, z, axis, begins outside) for the quads of a slab in their order: `words` and z are those
// of the lowest cube, the slab is that of this cube or of the point where the edge begins.
template <class F>
inline void for_quads_of_slab(const DualLattice& l, FaceOrder order, int64_t x, const F& f) {
  const SignLattice signs = signs_of(l);
  if (order == FaceOrder::cube) {
    for (int64_t y = 0; x + 1 < signs.size_x && y + 1 < signs.size_y; ++y) {
      const int64_t words = word_index(signs, x, y, 0);
      for (int64_t w = 0; w < l.row_words; ++w) {
        if (l.mixed[words + w] == 0) continue;
        for_each_quad(quads_of_cubes(signs, x, y, w), 0, 1, 2,
                      [&](int axis, int b, bool outside) { f(words, 64 * w + b, axis, outside); });
      }
    }
    return;
  }
  for (int64_t y = 0; y < signs.size_y; ++y) {
    const int64_t words = word_index(signs, x, y, 0);
    for (int64_t w = 0; w < l.row_words; ++w) {
      for_each_quad(quads_of_points(signs, x, y, w), 1, 2, 0, [&](int axis, int b, bool outside) {
        const int64_t before_x = axis == 0 ? 0 : signs.size_y * l.row_words;
        f(words - l.row_words - before_x, 64 * w + b - (axis == 2 ? 0 : 1), axis, outside);
      });
    }
  }
}

inline cpu::QuadCounts count_quads_loop(const DualLattice& l, FaceOrder order, int64_t x) {
  const SignLattice signs = signs_of(l);
  cpu::QuadCounts counts{0, 0};
  const bool by_cubes = order == FaceOrder::cube;
  if (by_cubes && x + 1 == signs.size_x) return counts;
  for (int64_t y = 0; y < signs.size_y - (by_cubes ? 1 : 0); ++y) {
    for (int64_t w = 0; w < l.row_words; ++w) {
      const QuadMasks m =
          by_cubes ? quads_of_cubes(signs, x, y, w) : quads_of_points(signs, x, y, w);
      for (int axis = 0; axis < kQuadAxes; ++axis) {
        const int outside = count_bits64(m.axis[axis] & m.outside[axis]);
        counts.outside += outside;
        counts.inside += count_bits64(m.axis[axis]) - outside;
      }
    }
  }
  return counts;
}

inline void fill_cubes_loop(const DualLattice& l, FaceOrder order, int64_t x,
                            const DualCubes& cubes, cpu::QuadCounts next, const DualMesh& mesh) {
  if (mesh.vertex_cubes != nullptr) {
    const CubeRange range = cubes_of_slab(l, x);
    for (int64_t s = range.begin; s < range.end; ++s) write_cube(cubes, s, mesh);
  }
  for_quads_of_slab(l, order, x, [&](int64_t words, int64_t z, int axis, bool outside) {
    const bool apart = order == FaceOrder::trellis && !outside;
    write_lattice_quad(l, cubes, words, z, axis, outside, mesh,
                       apart ? next.inside++ : next.outside++);
  });
}

}  // namespace

#define FASTSHAPE_DEFINE_DUAL_SLABS(suffix)                                                 \
  namespace cpu {                                                                           \
  int64_t mark_cubes_##suffix(const DualLattice& lattice, int64_t x) {                      \
    return mark_cubes_loop(lattice, x);                                                     \
  }                                                                                         \
  DualSlab count_cubes_##suffix(const DualLattice& lattice, bool manifold, int64_t x,       \
                                const DualCubes& cubes) {                                   \
    return count_cubes_loop(lattice, manifold, x, cubes);                                   \
  }                                                                                         \
  void number_cubes_##suffix(const DualLattice& lattice, int64_t x, const DualCubes& cubes, \
                             DualSlab next) {                                               \
    number_cubes_loop(lattice, x, cubes, next);                                             \
  }                                                                                         \
  QuadCounts count_quads_##suffix(const DualLattice& lattice, FaceOrder order, int64_t x) { \
    return count_quads_loop(lattice, order, x);                                             \
  }                                                                                         \
  void fill_cubes_##suffix(const DualLattice& lattice, FaceOrder order, int64_t x,          \
                           const DualCubes& cubes, QuadCounts next, const DualMesh& mesh) { \
    fill_cubes_loop(lattice, order, x, cubes, next, mesh);                                  \
  }                                                                                         \
  }

}  // namespace fastshape
