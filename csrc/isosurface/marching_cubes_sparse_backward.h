// The gradient of marching_cubes_sparse's vertices with respect to the values: all of a vertex's
// goes to the values of the cell that owns it, each summed in the order of the vertices.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "isosurface/marching_cubes_cell.h"

namespace fastshape {

template <class T>
struct MarchingCubesSparseBackward {
  const T* grad_vertices;  // (num_vertices, 3)
  const int64_t* source;   // (num_vertices,): 12 * cell + edge
  int64_t num_vertices;    // fewer than 2^32
  const T* values;         // (num_cells, 8)
  int64_t num_cells;
  T level;
  T* grad_values;  // (num_cells, 8)
};

// Adds what a vertex gives to the eight values of its cell.
template <class T>
FASTSHAPE_HOST_DEVICE void add_shares(const MarchingCubesSparseBackward<T>& task, int64_t vertex,
                                      const T* values, T* grad_values) {
  const int edge = static_cast<int>(task.source[vertex] % kCellEdges);
  const int axis = cell_edge_axis(edge), lower = cell_edge_corner(edge), upper = lower | 1 << axis;
  const T grad = task.grad_vertices[3 * vertex + axis];
  const T a = values[lower], b = values[upper];
  grad_values[lower] += grad * crossing_gradient(a, b, task.level, 0);
  grad_values[upper] += grad * crossing_gradient(a, b, task.level, 1);
}

namespace cpu {
template <class T>
void marching_cubes_sparse_backward(const MarchingCubesSparseBackward<T>& task);
}  // namespace cpu

namespace cuda {
size_t marching_cubes_sparse_backward_workspace_bytes(int64_t num_cells);
template <class T>
void marching_cubes_sparse_backward(const MarchingCubesSparseBackward<T>& task, void* workspace,
                                    size_t workspace_bytes, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
