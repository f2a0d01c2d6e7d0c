// On CUDA: two stable sorts, by the coordinates and then by the number in the batch.
#include "attention/voxel_order.h"
#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"
#include "core/elementwise.cuh"
#include "core/workspace.h"

namespace fastshape::cuda {
namespace {

struct OrderWorkspace {
  uint64_t *keys, *sorted_keys;        // (N,)
  uint32_t *batches, *sorted_batches;  // (N,)
  uint32_t *rows, *sorted_rows;        // (N,)
  unsigned char* sort;
  size_t sort_bytes;
  size_t bytes;
};

OrderWorkspace order_workspace(void* begin, int64_t n) {
  const char* op = "voxel_order";
  WorkspaceCutter cutter(begin);
  OrderWorkspace w{};
  w.keys = cutter.take<uint64_t>(n);
  w.sorted_keys = cutter.take<uint64_t>(n);
  w.batches = cutter.take<uint32_t>(n);
  w.sorted_batches = cutter.take<uint32_t>(n);
  w.rows = cutter.take<uint32_t>(n);
  w.sorted_rows = cutter.take<uint32_t>(n);
  const size_t by_key = device_sort_pairs_workspace_bytes<uint64_t>(op, n, 0, 3 * kVoxelBits);
  const size_t by_batch = device_sort_pairs_workspace_bytes<uint32_t>(op, n);
  w.sort_bytes = by_key > by_batch ? by_key : by_batch;
  w.sort = cutter.take<unsigned char>(static_cast<int64_t>(w.sort_bytes));
  w.bytes = cutter.bytes();
  return w;
}

template <class Integer>
__global__ void keys_kernel(VoxelOrder<Integer> task, OrderWorkspace w) {
  const int64_t i = thread_index();
  if (i >= task.count) return;
  const Integer* voxel = task.coords + 4 * i;
  if (!is_voxel(voxel))
    atomicMin(reinterpret_cast<unsigned long long*>(task.bad_row),
              static_cast<unsigned long long>(i));
  w.keys[i] = voxel_key(voxel);
  w.rows[i] = static_cast<uint32_t>(i);
}

template <class Integer>
__global__ void batches_kernel(VoxelOrder<Integer> task, OrderWorkspace w) {
  const int64_t i = thread_index();
  if (i < task.count)
    w.batches[i] = static_cast<uint32_t>(task.coords[4 * static_cast<int64_t>(w.sorted_rows[i])]);
}

__global__ void order_kernel(const uint32_t* rows, int64_t count, int64_t* order) {
  const int64_t i = thread_index();
  if (i < count) order[i] = rows[i];
}

}  // namespace

size_t voxel_order_workspace_bytes(int64_t count) { return order_workspace(nullptr, count).bytes; }

template <class Integer>
void voxel_order(const VoxelOrder<Integer>& task, void* workspace, size_t workspace_bytes,
                 cudaStream_t stream) {
  const char* op = "voxel_order";
  const int64_t n = task.count;
  if (n == 0) return;
  const OrderWorkspace w = order_workspace(workspace, n);
  FASTSHAPE_CHECK_VALUE(workspace_bytes >= w.bytes, op, ": the workspace has ", workspace_bytes,
                        " bytes, ", w.bytes, " are needed");
  launch(op, keys_kernel<Integer>, blocks_for(n), dim3(kBlock), 0, stream, task, w);
  device_sort_pairs<uint64_t>(op, w.sort, w.sort_bytes, w.keys, w.sorted_keys, w.rows,
                              w.sorted_rows, n, stream, 0, 3 * kVoxelBits);
  launch(op, batches_kernel<Integer>, blocks_for(n), dim3(kBlock), 0, stream, task, w);
  device_sort_pairs<uint32_t>(op, w.sort, w.sort_bytes, w.batches, w.sorted_batches, w.sorted_rows,
                              w.rows, n, stream);
  launch(op, order_kernel, blocks_for(n), dim3(kBlock), 0, stream, w.rows, n, task.order);
}

template void voxel_order<int32_t>(const VoxelOrder<int32_t>&, void*, size_t, cudaStream_t);
template void voxel_order<int64_t>(const VoxelOrder<int64_t>&, void*, size_t, cudaStream_t);

}  // namespace fastshape::cuda
