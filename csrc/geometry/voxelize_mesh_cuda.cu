#include "core/block.cuh"
#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"
#include "geometry/voxelize_mesh.h"

namespace fastshape::cuda {
namespace {

constexpr const char* kOp = "voxelize_mesh";

// A warp for a face: its lanes share the columns.
template <class T>
__global__ void count_kernel(VoxelizeMesh<T> task, int64_t* counts) {
  const int64_t face = thread_index() / 32;
  if (face >= task.num_faces) return;  // all lanes of a warp together
  const int64_t lane = threadIdx.x % 32;
  const VoxelTriangle triangle = voxel_triangle(task, face);
  int64_t count = 0;
  for (int64_t column = lane; column < triangle.num_columns; column += 32)
    visit_column(triangle, task.resolution, column, [&](int64_t) { ++count; });
  count = warp_reduce(count, Sum());
  if (lane == 0) counts[face] = count;
}

// The keys of 32 columns at a time, a lane's behind those of the lanes before it.
template <class T>
__global__ void fill_kernel(VoxelizeMesh<T> task, const int64_t* offsets, int64_t num_keys,
                            int64_t* keys) {
  const int64_t face = thread_index() / 32;
  if (face >= task.num_faces) return;
  const int64_t lane = threadIdx.x % 32;
  const VoxelTriangle triangle = voxel_triangle(task, face);
  int64_t begin = offsets[face];
  for (int64_t first = 0; first < triangle.num_columns; first += 32) {
    const int64_t column = first + lane;
    const bool mine = column < triangle.num_columns;
    int count = 0;
    if (mine) visit_column(triangle, task.resolution, column, [&](int64_t) { ++count; });
    const int before = warp_inclusive_scan(count);
    if (count != 0) {
      int64_t at = begin + before - count;
      visit_column(triangle, task.resolution, column, [&](int64_t key) {
        if (at < num_keys) keys[at++] = key;
      });
    }
    begin += __shfl_sync(kAllLanes, before, 31);
  }
}

}  // namespace

template <class T>
void voxelize_mesh_count(const VoxelizeMesh<T>& task, int64_t* counts, cudaStream_t stream) {
  if (task.num_faces == 0) return;
  launch(kOp, count_kernel<T>, blocks_for(32 * task.num_faces), dim3(kBlock), 0, stream, task,
         counts);
}

template <class T>
void voxelize_mesh_fill(const VoxelizeMesh<T>& task, const int64_t* offsets, int64_t num_keys,
                        int64_t* keys, cudaStream_t stream) {
  if (task.num_faces == 0 || num_keys == 0) return;
  launch(kOp, fill_kernel<T>, blocks_for(32 * task.num_faces), dim3(kBlock), 0, stream, task,
         offsets, num_keys, keys);
}

template void voxelize_mesh_count<float>(const VoxelizeMesh<float>&, int64_t*, cudaStream_t);
template void voxelize_mesh_count<double>(const VoxelizeMesh<double>&, int64_t*, cudaStream_t);
template void voxelize_mesh_fill<float>(const VoxelizeMesh<float>&, const int64_t*, int64_t,
                                        int64_t*, cudaStream_t);
template void voxelize_mesh_fill<double>(const VoxelizeMesh<double>&, const int64_t*, int64_t,
                                         int64_t*, cudaStream_t);

}  // namespace fastshape::cuda
