#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"
#include "isosurface/sharp_vertices.h"

namespace fastshape::cuda {
namespace {

template <class T>
__global__ void sharp_vertices_kernel(SharpVertices<T> task) {
  const int64_t vertex = thread_index();
  if (vertex < task.num_vertices) write_sharp_vertex(task, vertex);
}

}  // namespace

template <class T>
void sharp_vertices(const SharpVertices<T>& task, cudaStream_t stream) {
  if (task.num_vertices == 0) return;
  launch("sharp_vertices", sharp_vertices_kernel<T>, blocks_for(task.num_vertices), dim3(kBlock), 0,
         stream, task);
}

template void sharp_vertices<float>(const SharpVertices<float>&, cudaStream_t);
template void sharp_vertices<double>(const SharpVertices<double>&, cudaStream_t);

}  // namespace fastshape::cuda
