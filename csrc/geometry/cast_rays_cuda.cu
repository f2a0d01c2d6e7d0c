#include "core/cuda_utils.cuh"
#include "geometry/cast_rays.h"
#include "geometry/hilbert_order.cuh"
#include "geometry/ray_scalar.cuh"

namespace fastshape::cuda {
namespace {

template <class T>
struct RayEntry {
  T near;
  int32_t node;
};

// One thread, one ray: the first child first, the others on a stack.
template <class T>
__global__ void cast_rays_kernel(CastRays<T> task, const uint32_t* order) {
  const int64_t k = thread_index();
  if (k >= task.num_rays) return;
  const int64_t i = order[k];
  const BvhView<T>& bvh = task.bvh;
  const auto num_nodes = static_cast<int32_t>(bvh.num_nodes);
  Ray<T> ray;
  FirstHit<T> found;
  const bool is_ray =
      make_ray(bvh.boxes, load_point(task.origins, i), load_point(task.directions, i), &ray);
  RayEntry<T> stack[kBvhStackSize];
  int top = 0;
  if (is_ray) stack[top++] = {T(0), 0};
  while (top > 0) {
    const RayEntry<T> entry = stack[--top];
    if (entry.near > found.t) continue;
    if (entry.node >= num_nodes) {
      for (int lane = 0; lane < kBvhWidth; ++lane) {
        const int64_t slot = static_cast<int64_t>(entry.node - num_nodes) * kBvhWidth + lane;
        try_slot(bvh, ray, slot, &found);
      }
      continue;
    }
    const int32_t first_child = bvh.first_child[entry.node];
    const int base = top;
    for (int lane = 0; lane < kBvhWidth; ++lane) {
      T near;
      if (!meets_box(bvh, ray, entry.node, lane, found.t, &near)) continue;
      int at = top++;
      for (; at > base && stack[at - 1].near < near; --at) stack[at] = stack[at - 1];
      stack[at] = {near, first_child + lane};
    }
  }
  write_first_hit(task, i, is_ray, found);
}

}  // namespace

size_t cast_rays_workspace_bytes(int64_t num_rays) {
  return query_order_workspace_bytes("cast_rays", num_rays);
}

template <class T>
void cast_rays(const CastRays<T>& task, void* workspace, size_t workspace_bytes,
               cudaStream_t stream) {
  if (task.num_rays == 0) return;
  const char* op = "cast_rays";
  const uint32_t* order =
      query_order(op, task.origins, task.num_rays, workspace, workspace_bytes, stream);
  launch(op, cast_rays_kernel<T>, blocks_for(task.num_rays), dim3(kBlock), 0, stream, task, order);
}

template void cast_rays<float>(const CastRays<float>&, void*, size_t, cudaStream_t);
template void cast_rays<double>(const CastRays<double>&, void*, size_t, cudaStream_t);

}  // namespace fastshape::cuda
