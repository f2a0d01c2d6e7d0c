#include "sparse/neighbor_table.h"

#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"

namespace fastshape::cuda {
namespace {

template <class Index, int kSize>
__global__ void neighbors_kernel(NeighborTable<Index> task) {
  constexpr int kWidth = kSize * kSize * kSize;
  const int64_t i = thread_index();
  if (i >= task.num_queries * kWidth) return;
  task.kernel_size = kSize;  // a constant for the divisions below
  task.rows[i] =
      neighbor_row(task, voxel_at(task.queries, i / kWidth), static_cast<int>(i % kWidth));
}

template <class Index, int kSize>
void launch_neighbors(const NeighborTable<Index>& task, cudaStream_t stream) {
  launch("neighbor_table", neighbors_kernel<Index, kSize>,
         blocks_for(task.num_queries * kSize * kSize * kSize), dim3(kBlock), 0, stream, task);
}

__global__ void invert_kernel(InvertTable task) {
  const int64_t i = thread_index();
  if (i >= task.num_rows * task.width) return;
  const int64_t row = task.rows[i];
  if (row >= 0 && row < task.num_inverse)
    task.inverse[task.width * row + i % task.width] = static_cast<int32_t>(i / task.width);
}

}  // namespace

template <class Index>
void neighbor_table(const NeighborTable<Index>& task, cudaStream_t stream) {
  if (task.num_queries == 0) return;
  switch (task.kernel_size) {
    case 1:
      return launch_neighbors<Index, 1>(task, stream);
    case 2:
      return launch_neighbors<Index, 2>(task, stream);
    default:
      return launch_neighbors<Index, 3>(task, stream);
  }
}

template void neighbor_table<int32_t>(const NeighborTable<int32_t>&, cudaStream_t);
template void neighbor_table<int64_t>(const NeighborTable<int64_t>&, cudaStream_t);

void invert_table(const InvertTable& task, cudaStream_t stream) {
  const char* op = "invert_table";
  fill_bytes(op, task.inverse, 0xff,
             static_cast<size_t>(task.num_inverse * task.width) * sizeof(int32_t), stream);
  if (task.num_rows == 0) return;
  launch(op, invert_kernel, blocks_for(task.num_rows * task.width), dim3(kBlock), 0, stream, task);
}

}  // namespace fastshape::cuda
