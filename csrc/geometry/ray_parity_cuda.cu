#include "core/cuda_utils.cuh"
#include "geometry/hilbert_order.cuh"
#include "geometry/ray_parity.h"
#include "geometry/ray_scalar.cuh"

namespace fastshape::cuda {
namespace {

// One thread, one point, all its rays.
template <class T>
__global__ void ray_parity_kernel(RayParity<T> task, const uint32_t* order) {
  const int64_t k = thread_index();
  if (k >= task.num_points) return;
  const int64_t i = order[k];
  const Vec3<T> p = load_point(task.points, i);
  const BvhView<T>& bvh = task.bvh;
  const auto num_nodes = static_cast<int32_t>(bvh.num_nodes);
  int32_t votes = 0;
  const int64_t begin_ray = task.crossings ? crossing_ray(task, p) : 0;
  const int64_t end_ray = task.crossings ? begin_ray + 1 : task.num_rays;
  for (int64_t r = begin_ray; r < end_ray; ++r) {
    Ray<T> ray;
    if (!make_ray(bvh.boxes, p, load_point(task.directions, r), &ray)) continue;
    int32_t count = 0;
    int32_t stack[kBvhStackSize];
    int top = 0;
    stack[top++] = 0;
    while (top > 0) {
      const int32_t node = stack[--top];
      if (node >= num_nodes) {
        for (int lane = 0; lane < kBvhWidth; ++lane) {
          const int64_t slot = static_cast<int64_t>(node - num_nodes) * kBvhWidth + lane;
          TriangleHit<T> hit;
          if (triangle_hit(bvh, ray, slot, &hit) && hit.t > T(0))
            count += task.crossings ? hit.side : 1;
        }
        continue;
      }
      const int32_t first_child = bvh.first_child[node];
      for (int lane = 0; lane < kBvhWidth; ++lane) {
        T near;
        if (meets_box(bvh, ray, node, lane, Limits<T>::kMax, &near))
          stack[top++] = first_child + lane;
      }
    }
    votes += task.crossings ? count : count & 1;
  }
  task.votes[i] = votes;
}

}  // namespace

size_t ray_parity_workspace_bytes(int64_t num_points) {
  return query_order_workspace_bytes("ray_parity", num_points);
}

template <class T>
void ray_parity(const RayParity<T>& task, void* workspace, size_t workspace_bytes,
                cudaStream_t stream) {
  if (task.num_points == 0) return;
  const char* op = "ray_parity";
  const uint32_t* order =
      query_order(op, task.points, task.num_points, workspace, workspace_bytes, stream);
  launch(op, ray_parity_kernel<T>, blocks_for(task.num_points), dim3(kBlock), 0, stream, task,
         order);
}

template void ray_parity<float>(const RayParity<float>&, void*, size_t, cudaStream_t);
template void ray_parity<double>(const RayParity<double>&, void*, size_t, cudaStream_t);

}  // namespace fastshape::cuda
