#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"
#include "isosurface/flexicubes_weights.h"

namespace fastshape::cuda {
namespace {

template <class T>
__global__ void weights_kernel(FlexiCubesWeights<T> task) {
  const int64_t i = thread_index();
  if (i >= task.num_rows * task.width) return;
  const int64_t row = task.rows[i / task.width];
  task.weights[i] = activated(task.raw[task.width * row + i % task.width], task.sigmoid);
}

}  // namespace

template <class T>
void flexicubes_weights(const FlexiCubesWeights<T>& task, cudaStream_t stream) {
  const int64_t count = task.num_rows * task.width;
  if (count == 0) return;
  launch("flexicubes_weights", weights_kernel<T>, blocks_for(count), dim3(kBlock), 0, stream, task);
}

template void flexicubes_weights<float>(const FlexiCubesWeights<float>&, cudaStream_t);
template void flexicubes_weights<double>(const FlexiCubesWeights<double>&, cudaStream_t);

}  // namespace fastshape::cuda
