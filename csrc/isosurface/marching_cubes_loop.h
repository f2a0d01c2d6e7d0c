// The CPU's loops, compiled once per instruction set: include it from one .cpp each.
#pragma once

#include "isosurface/marching_cubes.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fastshape {
namespace {

// Bit i: values[i] < level, for 64 values.
#if defined(__AVX512F__)
inline uint64_t sign_word(const float* values, float level) {
  const __m512 threshold = _mm512_set1_ps(level);
  uint64_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const __m512 v = _mm512_loadu_ps(values + 16 * i);
    word |= static_cast<uint64_t>(_mm512_cmp_ps_mask(v, threshold, _CMP_LT_OQ)) << (16 * i);
  }
  return word;
}
inline uint64_t sign_word(const double* values, double level) {
  const __m512d threshold = _mm512_set1_pd(level);
  uint64_t word = 0;
  for (int i = 0; i < 8; ++i) {
    const __m512d v = _mm512_loadu_pd(values + 8 * i);
    word |= static_cast<uint64_t>(_mm512_cmp_pd_mask(v, threshold, _CMP_LT_OQ)) << (8 * i);
  }
  return word;
}
#elif defined(__AVX2__)
inline uint64_t sign_word(const float* values, float level) {
  const __m256 threshold = _mm256_set1_ps(level);
  uint64_t word = 0;
  for (int i = 0; i < 8; ++i) {
    const __m256 below = _mm256_cmp_ps(_mm256_loadu_ps(values + 8 * i), threshold, _CMP_LT_OQ);
    word |= static_cast<uint64_t>(static_cast<unsigned>(_mm256_movemask_ps(below))) << (8 * i);
  }
  return word;
}
inline uint64_t sign_word(const double* values, double level) {
  const __m256d threshold = _mm256_set1_pd(level);
  uint64_t word = 0;
  for (int i = 0; i < 16; ++i) {
    const __m256d below = _mm256_cmp_pd(_mm256_loadu_pd(values + 4 * i), threshold, _CMP_LT_OQ);
    word |= static_cast<uint64_t>(static_cast<unsigned>(_mm256_movemask_pd(below))) << (4 * i);
  }
  return word;
}
#else
template <class T>
inline uint64_t sign_word(const T* values, T level) {
  uint64_t word = 0;
  for (int i = 0; i < 64; ++i) word |= static_cast<uint64_t>(values[i] < level) << i;
  return word;
}
#endif

template <class T>
void sign_rows_loop(const MarchingCubes<T>& task, const SignLattice& l, int64_t begin,
                    int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* values = task.values + row * l.size_z;
    uint64_t* words = l.inside + row * l.row_words;
    const int64_t whole = l.size_z / 64;
    for (int64_t w = 0; w < whole; ++w) words[w] = sign_word(values + 64 * w, task.level);
    if (whole == l.row_words) continue;
    T rest[64];  // the last word's values, and NaN
    for (int64_t i = 0; i < 64; ++i) {
      const int64_t z = 64 * whole + i;
      rest[i] = z < l.size_z ? values[z] : static_cast<T>(__builtin_nan(""));
    }
    words[whole] = sign_word(rest, task.level);
  }
}

inline MarchingCubesTotals count_slab_loop(const SignLattice& l, int64_t x) {
  MarchingCubesTotals totals{0, 0};
  for (int64_t y = 0; y < l.size_y; ++y) {
    for (int64_t w = 0; w < l.row_words; ++w) {
      const int64_t word = word_index(l, x, y, w);
      l.first_vertex[word] = totals.num_vertices;
      l.first_face[word] = totals.num_faces;
      totals.num_vertices += count_vertices(edge_masks(l, x, y, w));
      if (x + 1 == l.size_x || y + 1 == l.size_y) continue;
      const CellRows rows = cell_rows(l, x, y, w);
      for (uint64_t left = rows.crossed; left != 0; left &= left - 1)
        totals.num_faces += num_triangles(cell_case(rows, __builtin_ctzll(left)));
    }
  }
  return totals;
}

// Reads what the vertices of a slab will need of the next one, a value for each cache line or so,
// in a loop so short that many reads are under way at once. (Prefetches were measured to do next to
// nothing: they are dropped where the page's translation is not at hand.)
template <class T>
void touch_next_slab(const MarchingCubes<T>& task, const SignLattice& l, int64_t x) {
  if (x + 1 == l.size_x) return;
  const int64_t words = l.size_y * l.row_words;
  const T* row = task.values + (x + 1) * l.size_y * l.size_z;
  for (int64_t y = 0; y < l.size_y; ++y, row += l.size_z) {
    for (int64_t w = 0; w < l.row_words; ++w) {
      const int64_t word = word_index(l, x + 1, y, w);
      const uint64_t here = l.inside[word];
      uint64_t left = (here ^ inside_above(l, word, w)) & lower_ends(l, w);
      left |= here ^ l.inside[word - words];
      if (y > 0) left |= here ^ l.inside[word - l.row_words];
      if (y + 1 < l.size_y) left |= here ^ l.inside[word + l.row_words];
      for (; left != 0; left &= left - 1) {
        const volatile T* value = row + 64 * w + __builtin_ctzll(left);
        static_cast<void>(*value);
      }
    }
  }
}

template <class T>
void fill_slab_loop(const MarchingCubes<T>& task, const SignLattice& l, int64_t x,
                    const DenseMesh<T>& mesh) {
  touch_next_slab(task, l, x);
  for (int64_t y = 0; y < l.size_y; ++y) {
    for (int64_t w = 0; w < l.row_words; ++w) {
      const int64_t word = word_index(l, x, y, w);
      const EdgeMasks masks = edge_masks(l, x, y, w);
      int64_t vertex = l.first_vertex[word];
      for (uint64_t left = masks.x | masks.y | masks.z; left != 0; left &= left - 1) {
        const int b = __builtin_ctzll(left);
        const int64_t z = 64 * w + b;
        if (masks.x >> b & 1) write_dense_vertex(task, x, y, z, 0, mesh, vertex++);
        if (masks.y >> b & 1) write_dense_vertex(task, x, y, z, 1, mesh, vertex++);
        if (masks.z >> b & 1) write_dense_vertex(task, x, y, z, 2, mesh, vertex++);
      }
      if (x + 1 == l.size_x || y + 1 == l.size_y) continue;
      const CellRows rows = cell_rows(l, x, y, w);
      if (rows.crossed == 0) continue;
      VertexRows vertices;
      load_vertex_rows(l, x, y, w, 0, &vertices);
      if (rows.crossed >> 63) load_vertex_rows(l, x, y, w, 1, &vertices);
      int64_t* faces = mesh.faces + 3 * l.first_face[word];
      for (uint64_t left = rows.crossed; left != 0; left &= left - 1) {
        const int b = __builtin_ctzll(left);
        const unsigned bits = cell_case(rows, b);
        int64_t on_edge[kCellEdges];
        cell_vertices(vertices, b, case_edges(bits), on_edge);
        write_triangles(case_triangles(bits), faces, [&](int edge) { return on_edge[edge]; });
        faces += 3 * num_triangles(bits);
      }
    }
  }
}

}  // namespace

#define FASTSHAPE_DEFINE_FOR(T, suffix)                                                            \
  void sign_rows_##suffix(const MarchingCubes<T>& task, const SignLattice& lattice, int64_t begin, \
                          int64_t end) {                                                           \
    sign_rows_loop(task, lattice, begin, end);                                                     \
  }                                                                                                \
  void fill_slab_##suffix(const MarchingCubes<T>& task, const SignLattice& lattice, int64_t x,     \
                          const DenseMesh<T>& mesh) {                                              \
    fill_slab_loop(task, lattice, x, mesh);                                                        \
  }
#define FASTSHAPE_DEFINE_SLABS(suffix)                                             \
  namespace cpu {                                                                  \
  MarchingCubesTotals count_slab_##suffix(const SignLattice& lattice, int64_t x) { \
    return count_slab_loop(lattice, x);                                            \
  }                                                                                \
  FASTSHAPE_DEFINE_FOR(float, suffix)                                              \
  FASTSHAPE_DEFINE_FOR(double, suffix)                                             \
  }

}  // namespace fastshape
