#include "core/cuda_utils.cuh"
#include "geometry/build_bvh.h"
#include "geometry/hilbert_order.cuh"

namespace fastshape::cuda {
namespace {

template <class T>
struct FaceCenters {
  BuildBvh<T> task;
  __device__ Vec3<T> operator()(int64_t face) const { return face_center(task, face); }
};

template <class T>
__global__ void fit_blocks_kernel(BuildBvh<T> task, BvhLevels levels, const uint32_t* order) {
  const int64_t block = thread_index();
  if (block < levels.count[0] * kBvhWidth) fit_block(task, levels, order, block);
}

template <class T>
__global__ void fit_nodes_kernel(BuildBvh<T> task, BvhLevels levels, int level, int64_t count) {
  const int64_t node = thread_index();
  if (node < count) fit_node(task, levels, level, node);
}

}  // namespace

size_t build_bvh_workspace_bytes(int64_t num_faces) {
  return hilbert_workspace("build_bvh", nullptr, num_faces, kHilbertBits).bytes;
}

template <class T>
void build_bvh(const BuildBvh<T>& task, void* workspace, size_t workspace_bytes,
               cudaStream_t stream) {
  const char* op = "build_bvh";
  const HilbertWorkspace w = hilbert_workspace(op, workspace, task.num_faces, kHilbertBits);
  FASTSHAPE_CHECK_VALUE(workspace_bytes >= w.bytes, op, ": the workspace has ", workspace_bytes,
                        " bytes, ", w.bytes, " are needed");
  hilbert_order<T>(op, w, FaceCenters<T>{task}, task.num_faces, kHilbertBits, stream);

  const BvhLevels levels = bvh_levels(task.num_faces);
  launch(op, fit_blocks_kernel<T>, blocks_for(levels.count[0] * kBvhWidth), dim3(kBlock), 0, stream,
         task, levels, w.order);
  for (int level = 0; level < levels.num_levels; ++level) {
    const int64_t count =
        level + 1 < levels.num_levels ? levels.count[level + 1] * kBvhWidth : levels.count[level];
    launch(op, fit_nodes_kernel<T>, blocks_for(count), dim3(kBlock), 0, stream, task, levels, level,
           count);
  }
}

template void build_bvh<float>(const BuildBvh<float>&, void*, size_t, cudaStream_t);
template void build_bvh<double>(const BuildBvh<double>&, void*, size_t, cudaStream_t);

}  // namespace fastshape::cuda
