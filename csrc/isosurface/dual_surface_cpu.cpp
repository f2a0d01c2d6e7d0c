#include "isosurface/dual_surface_cpu.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/radix_sort.h"
#include "isosurface/dual_surface_loop.h"
#include "isosurface/marching_cubes_cpu.h"

namespace fastshape {
FASTSHAPE_DEFINE_DUAL_SLABS(portable)
}  // namespace fastshape

namespace fastshape::cpu {
namespace {

struct Loops {
  decltype(&mark_cubes_portable) mark_cubes;
  decltype(&count_cubes_portable) count_cubes;
  decltype(&number_cubes_portable) number_cubes;
  decltype(&count_quads_portable) count_quads;
  decltype(&fill_cubes_portable) fill_cubes;
};

Loops loops() {
#if defined(FASTSHAPE_X86)
  switch (instruction_set()) {
    case InstructionSet::avx512:
      return {mark_cubes_avx512, count_cubes_avx512, number_cubes_avx512, count_quads_avx512,
              fill_cubes_avx512};
    case InstructionSet::avx2:
      return {mark_cubes_avx2, count_cubes_avx2, number_cubes_avx2, count_quads_avx2,
              fill_cubes_avx2};
    case InstructionSet::portable:
      break;
  }
#endif
  return {mark_cubes_portable, count_cubes_portable, number_cubes_portable, count_quads_portable,
          fill_cubes_portable};
}

// f(x) for each slab.
template <class F>
void for_slabs(const DualLattice& l, const F& f) {
  parallel_for(l.size_x, 1, [&](int64_t begin, int64_t end) {
    for (int64_t x = begin; x < end; ++x) f(x);
  });
}

constexpr int64_t kPiece = 4096;  // crossed cubes

// f(begin, end, piece) over the pieces of [0, n).
template <class F>
void for_pieces(int64_t n, int64_t size, const F& f) {
  parallel_for((n + size - 1) / size, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece)
      f(piece * size, std::min(n, (piece + 1) * size), piece);
  });
}

std::vector<int64_t> per_piece(int64_t n, int64_t size) {
  return std::vector<int64_t>(static_cast<size_t>((n + size - 1) / size), 0);
}

// What each piece holds becomes what all before it hold, after `before`; returns the sum.
int64_t exclusive_scan(std::vector<int64_t>& sums, int64_t before = 0) {
  int64_t total = before;
  for (int64_t& sum : sums) {
    const int64_t here = sum;
    sum = total;
    total += here;
  }
  return total;
}

template <class T>
void mark_signs(const DualSurface<T>& task, const SignLattice& signs) {
  auto sign_rows =
      static_cast<void (*)(const MarchingCubes<T>&, const SignLattice&, int64_t, int64_t)>(
          sign_rows_portable);
#if defined(FASTSHAPE_X86)
  if (instruction_set() == InstructionSet::avx512) sign_rows = sign_rows_avx512;
  if (instruction_set() == InstructionSet::avx2) sign_rows = sign_rows_avx2;
#endif
  const MarchingCubes<T> field{task.values, signs.size_x, signs.size_y, signs.size_z, task.level};
  const int64_t rows_a_piece = std::max<int64_t>(1, 65536 / signs.size_z);
  parallel_for(signs.size_x * signs.size_y, rows_a_piece,
               [&](int64_t begin, int64_t end) { sign_rows(field, signs, begin, end); });
}

// The crossed cubes of a lattice; returns how many there are.
template <class T>
int64_t mark_lattice(const DualSurface<T>& task, const DualLattice& l) {
  mark_signs(task, signs_of(l));
  const auto mark_cubes = loops().mark_cubes;
  std::vector<int64_t> before(static_cast<size_t>(l.size_x));
  for_slabs(l, [&](int64_t x) { before[x] = mark_cubes(l, x); });
  const int64_t total = exclusive_scan(before);
  const int64_t words = l.corners.size_y * l.row_words;
  parallel_for(l.size_x, 16, [&](int64_t begin, int64_t end) {
    for (int64_t x = begin; x < end; ++x)
      for (int64_t word = x * words; word < (x + 1) * words; ++word) l.first[word] += before[x];
  });
  return total;
}

// The crossed cubes of a list; returns a row with a corner that is not there.
template <class T>
int64_t mark_list(const DualSurface<T>& task, const DualLattice& l) {
  const int64_t n = task.num_cubes, num_points = task.num_points;
  std::vector<int64_t> bad = per_piece(n, kPiece);
  for_pieces(n, kPiece, [&](int64_t begin, int64_t end, int64_t piece) {
    bad[piece] = n;
    for (int64_t i = 8 * begin; i < 8 * end; ++i)
      if (task.cubes[i] < 0 || task.cubes[i] >= num_points)
        bad[piece] = std::min(bad[piece], i / 8);
  });
  int64_t first_bad = n;
  for (const int64_t row : bad) first_bad = std::min(first_bad, row);
  if (first_bad < n) {
    std::memset(l.mixed, 0, static_cast<size_t>(l.num_words) * sizeof(uint64_t));
    return first_bad;
  }
  std::fill(l.cube_at, l.cube_at + num_points, -1);
  for (int64_t i = 0; i < n; ++i) l.cube_at[task.cubes[8 * i]] = static_cast<int32_t>(i);
  parallel_for(l.num_words, 256, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      uint64_t bits = 0;
      const int64_t last = std::min<int64_t>(64, num_points - 64 * w);
      for (int64_t b = 0; b < last; ++b)
        bits |= static_cast<uint64_t>(task.values[64 * w + b] < task.level) << b;
      l.inside[w] = bits;
    }
  });
  parallel_for(l.num_words, 64, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      uint64_t bits = 0;
      const int64_t last = std::min<int64_t>(64, num_points - 64 * w);
      for (int64_t b = 0; b < last; ++b) {
        const int32_t row = l.cube_at[64 * w + b];
        if (row < 0) continue;
        int count = 0;
        for (int k = 0; k < 8; ++k) count += bit_at(l.inside, task.cubes[8 * int64_t{row} + k]);
        bits |= static_cast<uint64_t>(count != 0 && count != 8) << b;
      }
      l.mixed[w] = bits;
    }
  });
  return n;
}

}  // namespace

template <class T>
void dual_surface_mark(const DualSurface<T>& task, const DualLattice& l, int64_t* found) {
  found[0] = 0;
  found[1] = task.num_cubes;
  if (task.cubes != nullptr) {
    found[1] = mark_list(task, l);
    for (int64_t w = 0; w < l.num_words; ++w) {
      l.first[w] = found[0];
      found[0] += count_bits64(l.mixed[w]);
    }
  } else if (l.num_words != 0) {
    found[0] = mark_lattice(task, l);
  }
  l.first[l.num_words] = found[0];
}

namespace {

DualTotals count_lattice(const DualLattice& l, bool manifold, const DualCubes& cubes) {
  if (l.num_words == 0) return {0, 0, 0};
  const Loops loop = loops();
  std::vector<DualSlab> slabs(static_cast<size_t>(l.size_x));
  for_slabs(l, [&](int64_t x) { slabs[x] = loop.count_cubes(l, manifold, x, cubes); });
  DualTotals totals{0, 0, 0};
  for (int c = 0; c < kDualClasses; ++c) {
    for (DualSlab& slab : slabs) {
      const int64_t vertices = slab.vertices[c], pairs = slab.pairs[c];
      slab.vertices[c] = totals.num_vertices;
      slab.pairs[c] = totals.num_pairs;
      totals.num_vertices += vertices;
      totals.num_pairs += pairs;
    }
  }
  for (const DualSlab& slab : slabs) totals.num_quads += slab.quads;
  for_slabs(l, [&](int64_t x) { loop.number_cubes(l, x, cubes, slabs[x]); });
  return totals;
}

void fill_lattice(const DualLattice& l, FaceOrder order, const DualCubes& cubes,
                  const DualMesh& mesh) {
  if (l.num_words == 0) return;
  const Loops loop = loops();
  std::vector<QuadCounts> next(static_cast<size_t>(l.size_x));
  for_slabs(l, [&](int64_t x) { next[x] = loop.count_quads(l, order, x); });
  // What begins outside comes first of all, or both come as they are.
  const bool apart = order == FaceOrder::trellis;
  int64_t total = 0;
  for (QuadCounts& slab : next) {
    const int64_t here = slab.outside + (apart ? 0 : slab.inside);
    slab.outside = total;
    total += here;
  }
  for (QuadCounts& slab : next) {
    const int64_t here = slab.inside;
    slab.inside = total;
    total += here;
  }
  for_slabs(l, [&](int64_t x) { loop.fill_cubes(l, order, x, cubes, next[x], mesh); });
}

}  // namespace

size_t dual_surface_count_workspace_bytes(int64_t num_crossed) {
  return static_cast<size_t>(4 * num_crossed);  // raw cases, and what lies below along each axis
}

void dual_surface_count(const DualLattice& l, bool manifold, const DualCubes& cubes,
                        void* workspace, DualTotals* totals) {
  if (l.corners.cubes == nullptr) {
    *totals = count_lattice(l, manifold, cubes);
    return;
  }
  const int64_t num = cubes.num;
  auto* const raw = static_cast<uint8_t*>(workspace);
  uint8_t* const below = raw + num;
  parallel_for(l.num_words, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      int64_t s = l.first[w];
      for (uint64_t left = l.mixed[w]; left != 0; left &= left - 1, ++s) {
        list_cube(l, 64 * w + __builtin_ctzll(left), cubes, s);
        raw[s] = static_cast<uint8_t>(raw_case(l, cubes, s));
      }
    }
  });
  if (manifold) {
    std::memset(below, 0, static_cast<size_t>(3 * num));
    parallel_for(num, kPiece, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) tell_ambiguous(l, cubes, raw, s, below);
    });
  }

  // By class: how many cubes and pairs each piece has.
  std::vector<int64_t> vertices[kDualClasses], pairs[kDualClasses];
  std::vector<int64_t> quads = per_piece(num, kPiece);
  for (int c = 0; c < kDualClasses; ++c) vertices[c] = pairs[c] = quads;
  for_pieces(num, kPiece, [&](int64_t begin, int64_t end, int64_t piece) {
    for (int64_t s = begin; s < end; ++s) {
      const unsigned bits = manifold ? resolved_case(l, cubes, raw, below, s) : raw[s];
      cubes.cases[s] = static_cast<uint8_t>(bits);
      const int n = num_dual_vertices(bits);
      vertices[n - 1][piece] += n;
      pairs[n - 1][piece] += num_dual_pairs(bits);
      quads[piece] += count_bits(owned_quads(l, cubes, s));
    }
  });
  *totals = {0, 0, exclusive_scan(quads)};
  for (int c = 0; c < kDualClasses; ++c) {
    totals->num_vertices = exclusive_scan(vertices[c], totals->num_vertices);
    totals->num_pairs = exclusive_scan(pairs[c], totals->num_pairs);
  }
  for_pieces(num, kPiece, [&](int64_t begin, int64_t end, int64_t piece) {
    for (int64_t s = begin; s < end; ++s) {
      const unsigned bits = cubes.cases[s];
      const int n = num_dual_vertices(bits);
      cubes.first_vertex[s] = vertices[n - 1][piece];
      if (cubes.first_pair != nullptr) cubes.first_pair[s] = pairs[n - 1][piece];
      vertices[n - 1][piece] += n;
      pairs[n - 1][piece] += num_dual_pairs(bits);
    }
  });
}

void dual_surface_fill(const DualLattice& l, FaceOrder order, const DualCubes& cubes,
                       const DualTotals& totals, const DualMesh& mesh) {
  if (l.corners.cubes == nullptr) {
    fill_lattice(l, order, cubes, mesh);
    return;
  }
  const int64_t num = cubes.num;
  std::vector<int64_t> first = per_piece(num, kPiece);
  for_pieces(num, kPiece, [&](int64_t begin, int64_t end, int64_t piece) {
    for (int64_t s = begin; s < end; ++s) {
      write_cube(cubes, s, mesh);
      first[piece] += count_bits(owned_quads(l, cubes, s));
    }
  });
  exclusive_scan(first);
  const bool sorted = order != FaceOrder::cube;
  std::vector<KeyIndex> keys(sorted ? static_cast<size_t>(totals.num_quads) : 0);
  std::vector<int64_t> owners(keys.size());
  for_pieces(num, kPiece, [&](int64_t begin, int64_t end, int64_t piece) {
    int64_t quad = first[piece];
    for (int64_t s = begin; s < end; ++s) {
      for (unsigned owned = owned_quads(l, cubes, s); owned != 0; owned &= owned - 1, ++quad) {
        const int axis = __builtin_ctz(owned);
        if (!sorted) {
          write_quad(l, cubes, s, axis, mesh, quad);
          continue;
        }
        keys[quad] = {quad_key(l, cubes, s, axis, order), static_cast<uint32_t>(quad)};
        owners[quad] = kQuadAxes * s + axis;
      }
    }
  });
  if (!sorted) return;
  radix_sort(keys, 64);
  parallel_for(totals.num_quads, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t quad = begin; quad < end; ++quad) {
      const int64_t owner = owners[keys[quad].index];
      write_quad(l, cubes, owner / kQuadAxes, static_cast<int>(owner % kQuadAxes), mesh, quad);
    }
  });
}

template void dual_surface_mark<float>(const DualSurface<float>&, const DualLattice&, int64_t*);
template void dual_surface_mark<double>(const DualSurface<double>&, const DualLattice&, int64_t*);

}  // namespace fastshape::cpu
