// The gradient of marching_cubes' vertices with respect to the values: each moves along its edge
// with the values at both ends. A lattice point's share is summed over its edges in the order of
// their vertices, on every backend.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "isosurface/marching_cubes_cell.h"

namespace fastshape {

template <class T>
struct MarchingCubesBackward {
  const T* grad_vertices;  // (num_vertices, 3)
  const int64_t* source;   // (num_vertices,), ascending: 3 * flat index of the lower end + axis
  int64_t num_vertices;
  const T* values;  // (size_x, size_y, size_z)
  int64_t size_x, size_y, size_z;
  T level;
  T* grad_values;  // as values
};

// From an edge's lower end to its upper one.
template <class T>
FASTSHAPE_HOST_DEVICE int64_t lattice_step(const MarchingCubesBackward<T>& task, int axis) {
  return axis == 0 ? task.size_y * task.size_z : axis == 1 ? task.size_z : 1;
}

// What a vertex gives to the value at one end of its edge.
template <class T>
FASTSHAPE_HOST_DEVICE T share_of_end(const MarchingCubesBackward<T>& task, int64_t vertex,
                                     int end) {
  const int64_t source = task.source[vertex], lower = source / 3;
  const int axis = static_cast<int>(source % 3);
  const T a = task.values[lower], b = task.values[lower + lattice_step(task, axis)];
  return task.grad_vertices[3 * vertex + axis] * crossing_gradient(a, b, task.level, end);
}

namespace cpu {
template <class T>
void marching_cubes_backward(const MarchingCubesBackward<T>& task);
}  // namespace cpu

namespace cuda {
template <class T>
void marching_cubes_backward(const MarchingCubesBackward<T>& task, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
