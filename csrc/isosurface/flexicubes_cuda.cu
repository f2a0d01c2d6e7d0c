#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"
#include "isosurface/flexicubes.h"

namespace fastshape::cuda {
namespace {

template <class T>
__global__ void vertices_kernel(FlexiCubes<T> task, FlexiCubesMesh<T> mesh) {
  const int64_t s = thread_index();
  if (s < task.cubes.num) write_vertices(task, s, mesh);
}

template <class T>
__global__ void faces_kernel(FlexiCubes<T> task, FlexiCubesMesh<T> mesh) {
  const int64_t quad = thread_index();
  if (quad < task.num_quads) write_faces(task, quad, mesh);
}

}  // namespace

template <class T>
void flexicubes(const FlexiCubes<T>& task, const FlexiCubesMesh<T>& mesh, cudaStream_t stream) {
  const char* op = "flexicubes";
  if (task.cubes.num != 0)
    launch(op, vertices_kernel<T>, blocks_for(task.cubes.num), dim3(kBlock), 0, stream, task, mesh);
  if (task.num_quads != 0)
    launch(op, faces_kernel<T>, blocks_for(task.num_quads), dim3(kBlock), 0, stream, task, mesh);
}

template void flexicubes<float>(const FlexiCubes<float>&, const FlexiCubesMesh<float>&,
                                cudaStream_t);
template void flexicubes<double>(const FlexiCubes<double>&, const FlexiCubesMesh<double>&,
                                 cudaStream_t);

}  // namespace fastshape::cuda
