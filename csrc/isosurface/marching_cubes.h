// Marching cubes over a dense lattice.
//
// The inside of each row along z is kept as bits, 64 lattice points a word, so that where a word
// and its neighbors along x, y and z are all inside or all outside nothing else is looked at. With
// two numbers a word, how many vertices and how many faces stand before it, the bits also say which
// vertex lies on an edge: nothing is stored for a lattice point, sorted or searched.
//
// Vertices are ordered by (lattice point x, y, z; axis) of their edges, faces by (x, y, z) of their
// cells and then as in the table of cases: as marching_cubes_sparse does for all cells in order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "core/workspace.h"
#include "isosurface/marching_cubes_cell.h"

namespace fastshape {

template <class T>
struct MarchingCubes {
  const T* values;  // (size_x, size_y, size_z)
  int64_t size_x, size_y, size_z;
  T level;
};

struct MarchingCubesTotals {
  int64_t num_vertices;
  int64_t num_faces;
};

// The workspace, filled by the count. Word w of row (x, y) holds z = 64 w ... 64 w + 63; bits
// beyond the row are zero. No words where there are no cells.
struct SignLattice {
  int64_t size_x, size_y, size_z;
  int64_t row_words;
  int64_t num_words;
  uint64_t* inside;       // (num_words,)
  int64_t* first_vertex;  // (num_words + 1,)
  int64_t* first_face;    // (num_words + 1,)
  size_t bytes;
};

inline SignLattice sign_lattice(void* workspace, int64_t size_x, int64_t size_y, int64_t size_z) {
  SignLattice l{};
  l.size_x = size_x;
  l.size_y = size_y;
  l.size_z = size_z;
  const bool has_cells = size_x > 1 && size_y > 1 && size_z > 1;
  l.row_words = has_cells ? (size_z + 63) / 64 : 0;
  l.num_words = size_x * size_y * l.row_words;
  WorkspaceCutter cutter(workspace);
  l.inside = cutter.take<uint64_t>(l.num_words);
  l.first_vertex = cutter.take<int64_t>(l.num_words + 1);
  l.first_face = cutter.take<int64_t>(l.num_words + 1);
  l.bytes = cutter.bytes();
  return l;
}

template <class T>
struct DenseMesh {
  T* vertices;      // (V, 3)
  int64_t* faces;   // (F, 3)
  int64_t* source;  // (V,), ascending: 3 * flat index of the edge's lower end + axis
};

// A word's place.
struct WordPlace {
  int64_t x, y, w;
};

FASTSHAPE_HOST_DEVICE int64_t word_index(const SignLattice& l, int64_t x, int64_t y, int64_t w) {
  return (x * l.size_y + y) * l.row_words + w;
}

FASTSHAPE_HOST_DEVICE WordPlace word_place(const SignLattice& l, int64_t word) {
  const int64_t row = word / l.row_words;
  return {row / l.size_y, row % l.size_y, word % l.row_words};
}

// The points of word w that have a successor along z.
FASTSHAPE_HOST_DEVICE uint64_t lower_ends(const SignLattice& l, int64_t w) {
  const int64_t n = l.size_z - 1 - 64 * w;
  return n >= 64 ? ~uint64_t{0} : n <= 0 ? uint64_t{0} : (uint64_t{1} << n) - 1;
}

// The row's bits one further along z.
FASTSHAPE_HOST_DEVICE uint64_t inside_above(const SignLattice& l, int64_t word, int64_t w) {
  const uint64_t next = w + 1 < l.row_words ? l.inside[word + 1] : uint64_t{0};
  return l.inside[word] >> 1 | next << 63;
}

// Bit b: the edge from the word's point b along this axis is crossed.
struct EdgeMasks {
  uint64_t x, y, z;
};

FASTSHAPE_HOST_DEVICE EdgeMasks edge_masks(const SignLattice& l, int64_t x, int64_t y, int64_t w) {
  const int64_t word = word_index(l, x, y, w);
  const uint64_t here = l.inside[word];
  EdgeMasks m;
  m.x = x + 1 < l.size_x ? here ^ l.inside[word + l.size_y * l.row_words] : uint64_t{0};
  m.y = y + 1 < l.size_y ? here ^ l.inside[word + l.row_words] : uint64_t{0};
  m.z = (here ^ inside_above(l, word, w)) & lower_ends(l, w);
  return m;
}

FASTSHAPE_HOST_DEVICE int count_vertices(const EdgeMasks& m) {
  return count_bits64(m.x) + count_bits64(m.y) + count_bits64(m.z);
}

// How many of the word's vertices come before those of its point b.
FASTSHAPE_HOST_DEVICE int vertices_before(const EdgeMasks& m, int b) {
  const uint64_t below = (uint64_t{1} << b) - 1;
  return count_bits64(m.x & below) + count_bits64(m.y & below) + count_bits64(m.z & below);
}

// The corners of a word's 64 cells: rows (x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1).
struct CellRows {
  uint64_t here[4], above[4];
  uint64_t crossed;
};

// For x and y that have successors.
FASTSHAPE_HOST_DEVICE CellRows cell_rows(const SignLattice& l, int64_t x, int64_t y, int64_t w) {
  CellRows rows;
  uint64_t any = 0, all = ~uint64_t{0};
  for (int k = 0; k < 4; ++k) {
    const int64_t word = word_index(l, x + (k & 1), y + (k >> 1), w);
    rows.here[k] = l.inside[word];
    rows.above[k] = inside_above(l, word, w);
    any |= rows.here[k] | rows.above[k];
    all &= rows.here[k] & rows.above[k];
  }
  rows.crossed = any & ~all & lower_ends(l, w);
  return rows;
}

FASTSHAPE_HOST_DEVICE unsigned cell_case(const CellRows& rows, int b) {
  unsigned bits = 0;
  for (int k = 0; k < 4; ++k) {
    bits |= static_cast<unsigned>(rows.here[k] >> b & 1) << k;
    bits |= static_cast<unsigned>(rows.above[k] >> b & 1) << (k + 4);
  }
  return bits;
}

// Where the vertices of the four rows of a word's cells begin, and of the words behind.
struct VertexRows {
  EdgeMasks masks[8];
  int64_t first[8];
};

FASTSHAPE_HOST_DEVICE void load_vertex_rows(const SignLattice& l, int64_t x, int64_t y, int64_t w,
                                            int half, VertexRows* rows) {
  for (int k = 0; k < 4; ++k) {
    const int64_t rx = x + (k & 1), ry = y + (k >> 1);
    rows->masks[4 * half + k] = edge_masks(l, rx, ry, w + half);
    rows->first[4 * half + k] = l.first_vertex[word_index(l, rx, ry, w + half)];
  }
}

// The vertices on the edges that begin at a lattice point, where those are crossed.
struct PointVertices {
  int64_t x, y, z;
};

// Of a corner of the cell at point b of the word.
FASTSHAPE_HOST_DEVICE PointVertices point_vertices(const VertexRows& rows, int b, int corner) {
  const int z = b + (corner >> 2), bit = z & 63;
  const int row = (corner & 3) + (z >> 6 << 2);
  const EdgeMasks& masks = rows.masks[row];
  PointVertices p;
  p.x = rows.first[row] + vertices_before(masks, bit);
  p.y = p.x + static_cast<int64_t>(masks.x >> bit & 1);
  p.z = p.y + static_cast<int64_t>(masks.y >> bit & 1);
  return p;
}

// Of the cell at point b of the word, whose crossed edges are `edges`: on_edge[e] for each of them.
FASTSHAPE_HOST_DEVICE void cell_vertices(const VertexRows& rows, int b, unsigned edges,
                                         int64_t* on_edge) {
  if (edges & 0x007) {
    const PointVertices p = point_vertices(rows, b, 0);
    on_edge[0] = p.x;
    on_edge[1] = p.y;
    on_edge[2] = p.z;
  }
  if (edges & 0x018) {
    const PointVertices p = point_vertices(rows, b, 4);
    on_edge[3] = p.x;
    on_edge[4] = p.y;
  }
  if (edges & 0x060) {
    const PointVertices p = point_vertices(rows, b, 2);
    on_edge[5] = p.x;
    on_edge[6] = p.z;
  }
  if (edges & 0x080) on_edge[7] = point_vertices(rows, b, 6).x;
  if (edges & 0x300) {
    const PointVertices p = point_vertices(rows, b, 1);
    on_edge[8] = p.y;
    on_edge[9] = p.z;
  }
  if (edges & 0x400) on_edge[10] = point_vertices(rows, b, 5).y;
  if (edges & 0x800) on_edge[11] = point_vertices(rows, b, 3).z;
}

// The vertex on the edge from lattice point (x, y, z) along `axis`.
template <class T>
FASTSHAPE_HOST_DEVICE void write_dense_vertex(const MarchingCubes<T>& task, int64_t x, int64_t y,
                                              int64_t z, int axis, const DenseMesh<T>& mesh,
                                              int64_t vertex) {
  const int64_t flat = (x * task.size_y + y) * task.size_z + z;
  const int64_t step = axis == 0 ? task.size_y * task.size_z : axis == 1 ? task.size_z : 1;
  const T t = crossing(task.values[flat], task.values[flat + step], task.level);
  T* const position = mesh.vertices + 3 * vertex;
  position[0] = static_cast<T>(x);
  position[1] = static_cast<T>(y);
  position[2] = static_cast<T>(z);
  position[axis] += t;
  mesh.source[vertex] = 3 * flat + axis;
}

namespace cpu {
template <class T>
void marching_cubes_count(const MarchingCubes<T>& task, const SignLattice& lattice,
                          MarchingCubesTotals* totals);
template <class T>
void marching_cubes_fill(const MarchingCubes<T>& task, const SignLattice& lattice,
                         const DenseMesh<T>& mesh);
}  // namespace cpu

namespace cuda {
// `scan`: marching_cubes_scan_bytes(lattice) bytes; `totals` on the device.
size_t marching_cubes_scan_bytes(const SignLattice& lattice);
template <class T>
void marching_cubes_count(const MarchingCubes<T>& task, const SignLattice& lattice, void* scan,
                          MarchingCubesTotals* totals, cudaStream_t stream);
template <class T>
void marching_cubes_fill(const MarchingCubes<T>& task, const SignLattice& lattice,
                         const DenseMesh<T>& mesh, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
