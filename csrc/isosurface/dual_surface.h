// The connectivity of dual surfaces (dual marching cubes, FlexiCubes): which cubes the surface
// crosses, their cases, and the quads between their dual vertices.
//
// Three calls, as each needs sizes that the one before found: mark, count, fill. Cubes are those of
// a lattice, or a list that gives for each its eight corners (voxel_corners). Both become bits, one
// for each place, in the order of the cubes' lowest corners: which corners are inside, which cubes
// are crossed; and with the number of crossed cubes before each word the bits also say which one a
// cube is. The cube on the other side of a face, an edge or a corner is the one whose lowest corner
// a corner of this cube is: nothing is hashed, sorted or searched.
//
// Dual vertices are ordered by how many their cube has, then by the cube, then as in the table.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "core/workspace.h"
#include "isosurface/flexicubes_table.h"
#include "isosurface/marching_cubes.h"

namespace fastshape {

constexpr int kDualEdges = 12;
constexpr int kQuadAxes = 3;
constexpr int kDualClasses = 4;  // a crossed cube has one to four dual vertices

enum class FaceOrder : int32_t {
  cube = 0,    // by the lowest of a quad's four cubes, then by the axis of its edge
  nv = 1,      // by the ends of its edge (begin, end), as nv-tlabs' and kaolin's
  trellis = 2  // so, but first all quads whose edge begins outside, as TRELLIS' and TripoSF's
};

// Where the corners of a cube are.
struct CubeCorners {
  const int64_t* cubes;    // (N, 8), or null: all cubes of a lattice
  int64_t size_y, size_z;  // the lattice's points
};

// `lowest`: the cube's lowest corner; `row`: the cube's.
FASTSHAPE_HOST_DEVICE int64_t cube_corner(const CubeCorners& c, int64_t lowest, int64_t row,
                                          int k) {
  if (c.cubes != nullptr) return c.cubes[8 * row + k];
  return lowest + ((k & 1) * c.size_y + (k >> 1 & 1)) * c.size_z + (k >> 2);
}

template <class T>
struct DualSurface {
  const T* values;                 // (num_points,)
  int64_t num_points;              // size_x * size_y * size_z for a lattice
  int64_t size_x, size_y, size_z;  // of a lattice
  const int64_t* cubes;            // (num_cubes, 8), each in [0, num_points); null for a lattice
  int64_t num_cubes;               // fewer than 2^31 in a list
  T level;
};

// The bits, filled by mark. A place is a corner of the list, or in a lattice as in SignLattice.
struct DualLattice {
  CubeCorners corners;
  int64_t size_x;
  int64_t row_words;  // of a lattice
  int64_t num_words;
  uint64_t* inside;  // (num_words,)
  uint64_t* mixed;   // (num_words,) the place is the lowest corner of a crossed cube
  int64_t* first;    // (num_words + 1,) crossed cubes before a word
  int32_t* cube_at;  // (num_points,) of a list: the row whose lowest corner a corner is, or -1
  size_t bytes;
};

template <class T>
DualLattice dual_lattice(void* workspace, const DualSurface<T>& task) {
  DualLattice l{};
  l.corners = {task.cubes, task.size_y, task.size_z};
  l.size_x = task.size_x;
  const bool has_cubes = task.size_x > 1 && task.size_y > 1 && task.size_z > 1;
  l.row_words = task.cubes == nullptr && has_cubes ? (task.size_z + 63) / 64 : 0;
  l.num_words =
      task.cubes == nullptr ? task.size_x * task.size_y * l.row_words : (task.num_points + 63) / 64;
  WorkspaceCutter cutter(workspace);
  l.inside = cutter.take<uint64_t>(l.num_words);
  l.mixed = cutter.take<uint64_t>(l.num_words);
  l.first = cutter.take<int64_t>(l.num_words + 1);
  l.cube_at = cutter.take<int32_t>(task.cubes == nullptr ? 0 : task.num_points);
  l.bytes = cutter.bytes();
  return l;
}

// The same bits for marching cubes' functions.
FASTSHAPE_HOST_DEVICE SignLattice signs_of(const DualLattice& l) {
  SignLattice s{};
  s.size_x = l.size_x;
  s.size_y = l.corners.size_y;
  s.size_z = l.corners.size_z;
  s.row_words = l.row_words;
  s.num_words = l.num_words;
  s.inside = l.inside;
  return s;
}

FASTSHAPE_HOST_DEVICE bool bit_at(const uint64_t* words, int64_t place) {
  return words[place >> 6] >> (place & 63) & 1;
}

// The crossed cubes, filled by count.
struct DualCubes {
  int64_t num;            // S
  int64_t* lowest;        // (S,) ascending: lowest corners
  int64_t* rows;          // (S,) the cubes' rows; of a lattice flat indices, or null
  uint8_t* cases;         // (S,) resolved
  int64_t* first_vertex;  // (S,) the first of a cube's dual vertices
  int64_t* first_pair;    // (S,) the first of its pairs of a dual vertex and an edge, or null
};

struct DualTotals {
  int64_t num_vertices;
  int64_t num_pairs;
  int64_t num_quads;
};

// Either all but the faces, or the faces alone, where all else is null.
struct DualMesh {
  int64_t* vertex_cubes;  // (V,) the crossed cube of each dual vertex
  uint8_t* pair_edges;    // (E,) each pair's edge | vertex among its cube's << 4
  int64_t* quads;         // (Q, 4) counterclockwise seen from outside
  uint8_t* quad_kinds;    // (Q,) axis of the edge | 4 where the edge begins outside
  int64_t* faces;         // (2 Q, 3) of quads that are all split along the odd diagonal
};

// ---- Places ------------------------------------------------------------------------------------

// Of a cube's corners.
struct CubePlaces {
  const int64_t* list;  // of a list: the eight
  int64_t lowest, step_x, step_y;
};

FASTSHAPE_HOST_DEVICE CubePlaces cube_places(const DualLattice& l, const DualCubes& cubes,
                                             int64_t s) {
  CubePlaces p{};
  if (l.corners.cubes != nullptr) {
    p.list = l.corners.cubes + 8 * cubes.rows[s];
    return p;
  }
  p.step_y = 64 * l.row_words;
  p.step_x = p.step_y * l.corners.size_y;
  p.lowest = cubes.lowest[s] / l.corners.size_z * p.step_y + cubes.lowest[s] % l.corners.size_z;
  return p;
}

FASTSHAPE_HOST_DEVICE int64_t place_of(const CubePlaces& p, int k) {
  if (p.list != nullptr) return p.list[k];
  return p.lowest + (k & 1) * p.step_x + (k >> 1 & 1) * p.step_y + (k >> 2);
}

// Which crossed cube has its lowest corner at a place, -1 if there is none.
FASTSHAPE_HOST_DEVICE int64_t crossed_cube(const DualLattice& l, int64_t place) {
  const uint64_t word = l.mixed[place >> 6];
  if ((word >> (place & 63) & 1) == 0) return -1;
  const uint64_t below = (uint64_t{1} << (place & 63)) - 1;
  return l.first[place >> 6] + count_bits64(word & below);
}

// Lists crossed cube s, at a place.
FASTSHAPE_HOST_DEVICE void list_cube(const DualLattice& l, int64_t place, const DualCubes& cubes,
                                     int64_t s) {
  if (l.corners.cubes != nullptr) {
    cubes.lowest[s] = place;
    cubes.rows[s] = l.cube_at[place];
    return;
  }
  const int64_t row = place / (64 * l.row_words), z = place % (64 * l.row_words);
  const int64_t x = row / l.corners.size_y, y = row % l.corners.size_y;
  cubes.lowest[s] = row * l.corners.size_z + z;
  if (cubes.rows != nullptr)
    cubes.rows[s] = (x * (l.corners.size_y - 1) + y) * (l.corners.size_z - 1) + z;
}

// ---- Cases -------------------------------------------------------------------------------------

FASTSHAPE_HOST_DEVICE int num_dual_vertices(unsigned cube_case) {
  return static_cast<int>(dual_vertices(cube_case) >> 24 & 7);
}
FASTSHAPE_HOST_DEVICE int num_dual_pairs(unsigned cube_case) {
  return static_cast<int>(dual_vertices(cube_case) >> 28);
}
// The dual vertex of an edge, among its cube's.
FASTSHAPE_HOST_DEVICE int dual_vertex_of_edge(unsigned cube_case, int edge) {
  return static_cast<int>(dual_vertices(cube_case) >> 2 * edge & 3);
}
FASTSHAPE_HOST_DEVICE bool is_ambiguous(unsigned cube_case) {
  return dual_ambiguity(cube_case) >> 15 != 0;
}

// From the signs of its corners alone.
FASTSHAPE_HOST_DEVICE unsigned raw_case(const DualLattice& l, const DualCubes& cubes, int64_t s) {
  const CubePlaces places = cube_places(l, cubes, s);
  unsigned bits = 0;
  for (int k = 0; k < 8; ++k)
    bits |= static_cast<unsigned>(bit_at(l.inside, place_of(places, k))) << k;
  return bits;
}

// An ambiguous cube tells the ambiguous cubes above it along each axis that it is there:
// below[3 * s + axis].
FASTSHAPE_HOST_DEVICE void tell_ambiguous(const DualLattice& l, const DualCubes& cubes,
                                          const uint8_t* raw, int64_t s, uint8_t* below) {
  if (!is_ambiguous(raw[s])) return;
  const CubePlaces places = cube_places(l, cubes, s);
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t above = crossed_cube(l, place_of(places, 1 << axis));
    if (above >= 0) below[3 * above + axis] = 1;
  }
}

// Two ambiguous cubes that share an ambiguous face would have an edge of four faces there: both
// take the other case.
FASTSHAPE_HOST_DEVICE unsigned resolved_case(const DualLattice& l, const DualCubes& cubes,
                                             const uint8_t* raw, const uint8_t* below, int64_t s) {
  const unsigned ambiguity = dual_ambiguity(raw[s]);
  if (ambiguity >> 15 == 0) return raw[s];
  const int axis = static_cast<int>(ambiguity >> 8 & 3);
  bool both = false;
  if (ambiguity >> 10 & 1) {
    both = below[3 * s + axis] != 0;
  } else {
    const int64_t above = crossed_cube(l, place_of(cube_places(l, cubes, s), 1 << axis));
    both = above >= 0 && is_ambiguous(raw[above]);
  }
  return both ? ambiguity & 255u : raw[s];
}

// ---- Quads -------------------------------------------------------------------------------------
//
// A quad belongs to the lowest of the four cubes around its edge: the edge is one of the three at
// that cube's corner 7. The four cubes in their order, as corners of the lowest, and what the edge
// is to each.

FASTSHAPE_HOST_DEVICE int quad_cube_corner(int axis, int i) {
  return static_cast<int>((axis == 0 ? 0x6240u : axis == 1 ? 0x5140u : 0x3120u) >> 4 * i & 15);
}
FASTSHAPE_HOST_DEVICE int quad_edge(int axis, int i) {
  return static_cast<int>((axis == 0 ? 0x0246u : axis == 1 ? 0x8b9au : 0x3715u) >> 4 * i & 15);
}
// Corner i of the quad is the dual vertex of this one of the four.
FASTSHAPE_HOST_DEVICE int quad_turn(bool begins_outside, int i) {
  return static_cast<int>((begins_outside ? 0x2310u : 0x0132u) >> 4 * i & 15);
}

// Bit `axis`: cube s owns a quad around that edge at its corner 7.
FASTSHAPE_HOST_DEVICE unsigned owned_quads(const DualLattice& l, const DualCubes& cubes,
                                           int64_t s) {
  const CubePlaces places = cube_places(l, cubes, s);
  const bool here = bit_at(l.inside, place_of(places, 7));
  unsigned owned = 0;
  for (int axis = 0; axis < kQuadAxes; ++axis) {
    if (bit_at(l.inside, place_of(places, 7 ^ 1 << axis)) == here) continue;
    bool all = true;
    for (int i = 1; i < 4; ++i)
      all = all && bit_at(l.mixed, place_of(places, quad_cube_corner(axis, i)));
    owned |= static_cast<unsigned>(all) << axis;
  }
  return owned;
}

FASTSHAPE_HOST_DEVICE bool quad_begins_outside(const DualLattice& l, const CubePlaces& places,
                                               int axis) {
  return !bit_at(l.inside, place_of(places, dual_edge_begin(quad_edge(axis, 0))));
}

// What the orders nv and trellis sort by: (begin, end) of the edge; from one beginning the edge
// along y, which runs down, ends first, then the one along z.
FASTSHAPE_HOST_DEVICE uint64_t quad_key(const DualLattice& l, const DualCubes& cubes, int64_t s,
                                        int axis, FaceOrder order) {
  const int64_t begin =
      cube_corner(l.corners, cubes.lowest[s], cubes.rows[s], dual_edge_begin(quad_edge(axis, 0)));
  const uint64_t key = static_cast<uint64_t>(begin) << 2 | (axis == 0 ? 2u : axis == 1 ? 0u : 1u);
  const bool later =
      order == FaceOrder::trellis && !quad_begins_outside(l, cube_places(l, cubes, s), axis);
  return key | static_cast<uint64_t>(later) << 63;
}

// Corners q of a quad as two triangles along the diagonal between corners 0 and 2, or 1 and 3.
FASTSHAPE_HOST_DEVICE void split_quad(const int64_t* q, bool even, int64_t* faces) {
  faces[0] = q[0];
  faces[1] = q[1];
  faces[2] = even ? q[2] : q[3];
  faces[3] = even ? q[0] : q[3];
  faces[4] = even ? q[2] : q[1];
  faces[5] = even ? q[3] : q[2];
}

// `around`: the dual vertices of the four cubes in their order.
FASTSHAPE_HOST_DEVICE void write_corners(const DualMesh& mesh, int64_t quad, const int64_t* around,
                                         int axis, bool outside) {
  int64_t turned[4];
  for (int i = 0; i < 4; ++i) turned[i] = around[quad_turn(outside, i)];
  if (mesh.faces != nullptr) {
    split_quad(turned, false, mesh.faces + 6 * quad);
    return;
  }
  for (int i = 0; i < 4; ++i) mesh.quads[4 * quad + i] = turned[i];
  mesh.quad_kinds[quad] = static_cast<uint8_t>(axis | (outside ? 4 : 0));
}

// Quad number `quad`, owned by cube s around its edge along `axis`.
FASTSHAPE_HOST_DEVICE void write_quad(const DualLattice& l, const DualCubes& cubes, int64_t s,
                                      int axis, const DualMesh& mesh, int64_t quad) {
  const CubePlaces places = cube_places(l, cubes, s);
  const bool outside = quad_begins_outside(l, places, axis);
  int64_t around[4];
  for (int i = 0; i < 4; ++i) {
    const int64_t cube = i == 0 ? s : crossed_cube(l, place_of(places, quad_cube_corner(axis, i)));
    around[i] =
        cubes.first_vertex[cube] + dual_vertex_of_edge(cubes.cases[cube], quad_edge(axis, i));
  }
  write_corners(mesh, quad, around, axis, outside);
}

// The dual vertices and pairs of cube s.
FASTSHAPE_HOST_DEVICE void write_cube(const DualCubes& cubes, int64_t s, const DualMesh& mesh) {
  if (mesh.vertex_cubes == nullptr) return;
  const unsigned bits = cubes.cases[s];
  for (int i = 0; i < num_dual_vertices(bits); ++i)
    mesh.vertex_cubes[cubes.first_vertex[s] + i] = s;
  for (int i = 0; i < num_dual_pairs(bits); ++i) {
    const int edge = static_cast<int>(dual_edges(bits) >> 4 * i & 15);
    mesh.pair_edges[cubes.first_pair[s] + i] =
        static_cast<uint8_t>(edge | dual_vertex_of_edge(bits, edge) << 4);
  }
}

namespace cpu {
// `found`: the number of crossed cubes; a row of `cubes` with a corner that is not there, num_cubes
// if there is none.
template <class T>
void dual_surface_mark(const DualSurface<T>& task, const DualLattice& lattice, int64_t* found);
size_t dual_surface_count_workspace_bytes(int64_t num_crossed);
void dual_surface_count(const DualLattice& lattice, bool manifold, const DualCubes& cubes,
                        void* workspace, DualTotals* totals);
void dual_surface_fill(const DualLattice& lattice, FaceOrder order, const DualCubes& cubes,
                       const DualTotals& totals, const DualMesh& mesh);
}  // namespace cpu

namespace cuda {
// `found` and `totals` lie on the device, those of fill on the host.
size_t dual_surface_scan_bytes(int64_t num_words);
template <class T>
void dual_surface_mark(const DualSurface<T>& task, const DualLattice& lattice, void* scan,
                       int64_t* found, cudaStream_t stream);
size_t dual_surface_count_workspace_bytes(int64_t num_crossed);
void dual_surface_count(const DualLattice& lattice, bool manifold, const DualCubes& cubes,
                        void* workspace, DualTotals* totals, cudaStream_t stream);
size_t dual_surface_fill_workspace_bytes(int64_t num_quads);
// `count_workspace` as the count left it.
void dual_surface_fill(const DualLattice& lattice, FaceOrder order, const DualCubes& cubes,
                       const void* count_workspace, const DualTotals& totals, void* workspace,
                       const DualMesh& mesh, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
