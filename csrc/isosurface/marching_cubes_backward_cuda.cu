#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"
#include "isosurface/marching_cubes_backward.h"

namespace fastshape::cuda {
namespace {

// The vertex on the edge `source`, -1 if it is not crossed.
template <class T>
__device__ int64_t find_vertex(const MarchingCubesBackward<T>& task, int64_t source) {
  int64_t begin = 0, end = task.num_vertices;
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (task.source[middle] < source)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin < task.num_vertices && task.source[begin] == source ? begin : -1;
}

// A thread for each end of each vertex's edge: the one with the lowest vertex of a lattice point
// sums its share. Edges that would leave the lattice are crossed by nothing, so nobody finds them.
template <class T>
__global__ void marching_cubes_backward_kernel(MarchingCubesBackward<T> task) {
  const int64_t i = thread_index();
  if (i >= 2 * task.num_vertices) return;
  const int64_t vertex = i / 2, source = task.source[vertex];
  const int end = static_cast<int>(i % 2);
  const int64_t point = source / 3 + end * lattice_step(task, static_cast<int>(source % 3));
  T sum = T(0);
  for (int k = 0; k < 6; ++k) {  // the edges that end in the point, then those that begin there
    const int axis = k % 3;
    const int64_t edge = 3 * (k < 3 ? point - lattice_step(task, axis) : point) + axis;
    const int64_t there = edge == source ? vertex : find_vertex(task, edge);
    if (there < 0) continue;
    if (there < vertex) return;
    sum += share_of_end(task, there, k < 3 ? 1 : 0);
  }
  task.grad_values[point] = sum;
}

}  // namespace

template <class T>
void marching_cubes_backward(const MarchingCubesBackward<T>& task, cudaStream_t stream) {
  const char* op = "marching_cubes_backward";
  const int64_t n = task.size_x * task.size_y * task.size_z;
  fill_bytes(op, task.grad_values, 0, static_cast<size_t>(n) * sizeof(T), stream);
  if (task.num_vertices == 0) return;
  launch(op, marching_cubes_backward_kernel<T>, blocks_for(2 * task.num_vertices), dim3(kBlock), 0,
         stream, task);
}

template void marching_cubes_backward<float>(const MarchingCubesBackward<float>&, cudaStream_t);
template void marching_cubes_backward<double>(const MarchingCubesBackward<double>&, cudaStream_t);

}  // namespace fastshape::cuda
