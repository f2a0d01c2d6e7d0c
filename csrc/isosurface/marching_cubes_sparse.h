// Marching cubes over a list of cells.
//
// Vertices are ordered by (lattice point x, y, z; axis) of their edges, faces by their cells in the
// input and then as in the table of cases. An edge that several cells of the list share is owned by
// the last of them in the order of (x, y, z), which is the cell whose lowest corner is the edge's
// lower end wherever that one is in the list; of several copies of a cell it is the first.
//
// The sizes of the outputs are only known after counting: marching_cubes_sparse_count leaves what
// it found in its workspace, and with it marching_cubes_sparse_fill writes the outputs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "isosurface/marching_cubes_cell.h"

namespace fastshape {

constexpr int kLatticeBits = 20;                            // an axis
constexpr int32_t kMaxCellCoord = (1 << kLatticeBits) - 2;  // its upper corner still fits
constexpr int64_t kMaxSparseCells = ((int64_t{1} << 32) - 1) / kCellEdges;  // slots are 32-bit

template <class T>
struct MarchingCubesSparse {
  const T* values;        // (num_cells, 8)
  const int32_t* coords;  // (num_cells, 3), each in [0, kMaxCellCoord]
  int64_t num_cells;      // at most kMaxSparseCells
  T level;
};

struct MarchingCubesCounts {
  int64_t num_vertices;
  int64_t num_faces;
  int64_t num_crossed;  // cells that the surface crosses
  int64_t bad_cell;     // a cell with coordinates out of range; num_cells if there is none
};

template <class T>
struct MarchingCubesMesh {
  T* vertices;      // (V, 3)
  int64_t* faces;   // (F, 3)
  int64_t* source;  // (V,): 12 * cell + edge of the cell that owns the vertex
};

FASTSHAPE_HOST_DEVICE bool is_lattice_cell(const int32_t* coords) {
  for (int k = 0; k < 3; ++k)
    if (coords[k] < 0 || coords[k] > kMaxCellCoord) return false;
  return true;
}

FASTSHAPE_HOST_DEVICE uint64_t lattice_key(uint64_t x, uint64_t y, uint64_t z) {
  return (x << kLatticeBits | y) << kLatticeBits | z;
}

// What to add to a cell's key for the lattice point at its corner `corner`.
FASTSHAPE_HOST_DEVICE uint64_t corner_key(int corner) {
  return lattice_key(corner & 1, corner >> 1 & 1, corner >> 2 & 1);
}

// Of a cell's edge, with the cell's lattice key.
FASTSHAPE_HOST_DEVICE uint64_t edge_key(uint64_t cell, int edge) {
  return (cell + corner_key(cell_edge_corner(edge))) << 2 |
         static_cast<unsigned>(cell_edge_axis(edge));
}

// The vertex on edge `slot % 12` of cell `slot / 12`.
template <class T>
FASTSHAPE_HOST_DEVICE void write_sparse_vertex(const MarchingCubesSparse<T>& task, int64_t slot,
                                               const MarchingCubesMesh<T>& mesh, int64_t vertex) {
  const int64_t cell = slot / kCellEdges;
  const int edge = static_cast<int>(slot % kCellEdges);
  const int corner = cell_edge_corner(edge), axis = cell_edge_axis(edge);
  const T* values = task.values + 8 * cell;
  const T t = crossing(values[corner], values[corner | 1 << axis], task.level);
  for (int k = 0; k < 3; ++k) {
    const T lower = static_cast<T>(task.coords[3 * cell + k] + (corner >> k & 1));
    mesh.vertices[3 * vertex + k] = k == axis ? lower + t : lower;
  }
  mesh.source[vertex] = slot;
}

namespace cpu {
size_t marching_cubes_sparse_workspace_bytes(int64_t num_cells);
template <class T>
void marching_cubes_sparse_count(const MarchingCubesSparse<T>& task, void* workspace,
                                 MarchingCubesCounts* counts);
template <class T>
void marching_cubes_sparse_fill(const MarchingCubesSparse<T>& task, const void* workspace,
                                const MarchingCubesCounts& counts,
                                const MarchingCubesMesh<T>& mesh);
}  // namespace cpu

namespace cuda {
size_t marching_cubes_sparse_workspace_bytes(int64_t num_cells);
// `counts` lies on the device.
template <class T>
void marching_cubes_sparse_count(const MarchingCubesSparse<T>& task, void* workspace,
                                 MarchingCubesCounts* counts, cudaStream_t stream);
size_t marching_cubes_sparse_fill_workspace_bytes(int64_t num_vertices);
// `counts` on the host; `workspace` as the count left it, `fill_workspace` for this call only.
template <class T>
void marching_cubes_sparse_fill(const MarchingCubesSparse<T>& task, const void* workspace,
                                void* fill_workspace, const MarchingCubesCounts& counts,
                                const MarchingCubesMesh<T>& mesh, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
