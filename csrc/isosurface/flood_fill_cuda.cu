#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"
#include "isosurface/flood_fill.h"

namespace fastshape::cuda {
namespace {

struct Relaxed {
  __device__ int32_t load(const int32_t* address) const { return load_relaxed(address); }
  __device__ void store(int32_t* address, int32_t value) const { store_relaxed(address, value); }
  __device__ int32_t swap_if(int32_t* address, int32_t expected, int32_t value) const {
    return atomicCAS(address, expected, value);
  }
};

__global__ void flood_rows_kernel(FloodFill task, FloodForest forest) {
  const int64_t i = thread_index(), num_rows = flood_rows(task);
  if (i <= num_rows)
    forest.row_begin[i] = flood_lower_bound(task.solid, 0, task.num_solid, i * task.size_z);
  if (i < flood_nodes(task)) forest.parent[i] = static_cast<int32_t>(i);
}

// One thread a gap: the first ones take those behind a solid point, the others each row's first.
__global__ void flood_join_kernel(FloodFill task, FloodForest forest) {
  const int64_t i = thread_index(), num_rows = flood_rows(task);
  if (i < task.num_solid) {
    const int64_t point = task.solid[i];
    if (point < 0 || point >= num_rows * task.size_z) return;
    const int64_t row = point / task.size_z;
    flood_join_gap(task, forest, row, i - forest.row_begin[row] + 1, Relaxed());
  } else if (i < task.num_solid + num_rows) {
    flood_join_gap(task, forest, i - task.num_solid, 0, Relaxed());
  }
}

__global__ void flood_reached_kernel(FloodFill task, FloodForest forest) {
  const int64_t i = thread_index();
  if (i < task.num_points) task.reached[i] = flood_reached(task, forest, task.points[i], Relaxed());
}

}  // namespace

// The rows first: they need the wider alignment.
size_t flood_fill_workspace_bytes(int64_t num_solid, int64_t num_rows) {
  return static_cast<size_t>(num_rows + 1) * sizeof(int64_t) +
         static_cast<size_t>(1 + num_solid + num_rows) * sizeof(int32_t);
}

void flood_fill(const FloodFill& task, void* workspace, size_t workspace_bytes,
                cudaStream_t stream) {
  const char* op = "flood_fill";
  const int64_t num_rows = flood_rows(task);
  if (workspace_bytes < flood_fill_workspace_bytes(task.num_solid, num_rows))
    FASTSHAPE_FAIL_RUNTIME(op, ": the workspace is too small");
  auto* row_begin = static_cast<int64_t*>(workspace);
  const FloodForest forest{reinterpret_cast<int32_t*>(row_begin + num_rows + 1), row_begin};
  launch(op, flood_rows_kernel, blocks_for(flood_nodes(task)), dim3(kBlock), 0, stream, task,
         forest);
  launch(op, flood_join_kernel, blocks_for(task.num_solid + num_rows), dim3(kBlock), 0, stream,
         task, forest);
  if (task.num_points != 0)
    launch(op, flood_reached_kernel, blocks_for(task.num_points), dim3(kBlock), 0, stream, task,
           forest);
}

}  // namespace fastshape::cuda
