#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"
#include "isosurface/marching_cubes_sparse_backward.h"

namespace fastshape::cuda {
namespace {

constexpr uint32_t kNoVertex = 0xffffffffu;

template <class T>
__global__ void owned_vertices_kernel(MarchingCubesSparseBackward<T> task, uint32_t* vertex_of) {
  const int64_t vertex = thread_index();
  if (vertex < task.num_vertices) vertex_of[task.source[vertex]] = static_cast<uint32_t>(vertex);
}

// A thread for a cell; its edges are numbered in the order of their vertices.
template <class T>
__global__ void cell_gradients_kernel(MarchingCubesSparseBackward<T> task,
                                      const uint32_t* vertex_of) {
  const int64_t cell = thread_index();
  if (cell >= task.num_cells) return;
  T sums[8] = {};
  for (int edge = 0; edge < kCellEdges; ++edge) {
    const uint32_t vertex = vertex_of[kCellEdges * cell + edge];
    if (vertex != kNoVertex) add_shares(task, vertex, task.values + 8 * cell, sums);
  }
  for (int i = 0; i < 8; ++i) task.grad_values[8 * cell + i] = sums[i];
}

}  // namespace

size_t marching_cubes_sparse_backward_workspace_bytes(int64_t num_cells) {
  return static_cast<size_t>(kCellEdges * num_cells) * sizeof(uint32_t);
}

template <class T>
void marching_cubes_sparse_backward(const MarchingCubesSparseBackward<T>& task, void* workspace,
                                    size_t workspace_bytes, cudaStream_t stream) {
  const char* op = "marching_cubes_sparse_backward";
  const size_t bytes = marching_cubes_sparse_backward_workspace_bytes(task.num_cells);
  FASTSHAPE_CHECK_VALUE(workspace_bytes >= bytes, op, ": the workspace has ", workspace_bytes,
                        " bytes, ", bytes, " are needed");
  if (task.num_cells == 0) return;
  auto* const vertex_of = static_cast<uint32_t*>(workspace);
  fill_bytes(op, vertex_of, 0xff, bytes, stream);
  if (task.num_vertices != 0)
    launch(op, owned_vertices_kernel<T>, blocks_for(task.num_vertices), dim3(kBlock), 0, stream,
           task, vertex_of);
  launch(op, cell_gradients_kernel<T>, blocks_for(task.num_cells), dim3(kBlock), 0, stream, task,
         vertex_of);
}

template void marching_cubes_sparse_backward<float>(const MarchingCubesSparseBackward<float>&,
                                                    void*, size_t, cudaStream_t);
template void marching_cubes_sparse_backward<double>(const MarchingCubesSparseBackward<double>&,
                                                     void*, size_t, cudaStream_t);

}  // namespace fastshape::cuda
