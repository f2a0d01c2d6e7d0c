#include "isosurface/marching_cubes_backward.h"

#include <algorithm>

#include "core/parallel.h"

namespace fastshape::cpu {

template <class T>
void marching_cubes_backward(const MarchingCubesBackward<T>& task) {
  parallel_for(task.size_x * task.size_y * task.size_z, 1 << 18, [&](int64_t begin, int64_t end) {
    std::fill(task.grad_values + begin, task.grad_values + end, T(0));
  });
  for (int64_t vertex = 0; vertex < task.num_vertices; ++vertex) {
    const int64_t lower = task.source[vertex] / 3;
    const int64_t step = lattice_step(task, static_cast<int>(task.source[vertex] % 3));
    task.grad_values[lower] += share_of_end(task, vertex, 0);
    task.grad_values[lower + step] += share_of_end(task, vertex, 1);
  }
}

template void marching_cubes_backward<float>(const MarchingCubesBackward<float>&);
template void marching_cubes_backward<double>(const MarchingCubesBackward<double>&);

}  // namespace fastshape::cpu
