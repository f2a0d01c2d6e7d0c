#include "isosurface/marching_cubes_sparse_backward.h"

#include <algorithm>

#include "core/parallel.h"

namespace fastshape::cpu {

template <class T>
void marching_cubes_sparse_backward(const MarchingCubesSparseBackward<T>& task) {
  parallel_for(8 * task.num_cells, 1 << 18, [&](int64_t begin, int64_t end) {
    std::fill(task.grad_values + begin, task.grad_values + end, T(0));
  });
  for (int64_t vertex = 0; vertex < task.num_vertices; ++vertex) {
    const int64_t cell = task.source[vertex] / kCellEdges;
    add_shares(task, vertex, task.values + 8 * cell, task.grad_values + 8 * cell);
  }
}

template void marching_cubes_sparse_backward<float>(const MarchingCubesSparseBackward<float>&);
template void marching_cubes_sparse_backward<double>(const MarchingCubesSparseBackward<double>&);

}  // namespace fastshape::cpu
