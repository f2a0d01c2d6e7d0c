#include "sparse/neighbor_table.h"

#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"
#include "core/elementwise.cuh"
#include "core/workspace.h"

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

struct OrderWorkspace {
  uint32_t *keys, *sorted_keys;  // (M,)
  uint32_t* rows;                // (M,)
  unsigned char* sort;
  size_t sort_bytes;
  size_t bytes;
};

OrderWorkspace workspace_of(void* begin, int64_t num_rows) {
  WorkspaceCutter cutter(begin);
  OrderWorkspace w{};
  w.keys = cutter.take<uint32_t>(num_rows);
  w.sorted_keys = cutter.take<uint32_t>(num_rows);
  w.rows = cutter.take<uint32_t>(num_rows);
  w.sort_bytes = device_sort_pairs_workspace_bytes<uint32_t>("order_rows", num_rows);
  w.sort = cutter.take<unsigned char>(static_cast<int64_t>(w.sort_bytes));
  w.bytes = cutter.bytes();
  return w;
}

__global__ void offset_bits_kernel(OrderRows task, OrderWorkspace w) {
  const int64_t m = thread_index();
  if (m >= task.num_rows) return;
  w.keys[m] = offset_bits(task, m);
  w.rows[m] = static_cast<uint32_t>(m);
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

size_t order_rows_workspace_bytes(int64_t num_rows) {
  return workspace_of(nullptr, num_rows).bytes;
}

void order_rows(const OrderRows& task, void* workspace, cudaStream_t stream) {
  if (task.num_rows == 0) return;
  const char* op = "order_rows";
  const OrderWorkspace w = workspace_of(workspace, task.num_rows);
  launch(op, offset_bits_kernel, blocks_for(task.num_rows), dim3(kBlock), 0, stream, task, w);
  device_sort_pairs<uint32_t>(op, w.sort, w.sort_bytes, w.keys, w.sorted_keys, w.rows,
                              reinterpret_cast<uint32_t*>(task.order), task.num_rows, stream, 0,
                              task.width);
}

}  // namespace fastshape::cuda
