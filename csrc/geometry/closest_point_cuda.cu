#include "core/cuda_utils.cuh"
#include "geometry/closest_point.h"
#include "geometry/hilbert_order.cuh"

namespace fastshape::cuda {
namespace {

template <class T>
struct NodeEntry {
  T distance2;
  int32_t node;
};

// One thread, one point: the nearest child first, the others on a stack.
template <class T>
__global__ void closest_point_kernel(ClosestPoint<T> task, const uint32_t* order) {
  const int64_t k = thread_index();
  if (k >= task.num_points) return;
  const int64_t i = order[k];
  const Vec3<T> p = load_point(task.points, i);
  if (!is_finite(p)) {
    write_no_face(task, i, not_a_number<T>());
    return;
  }
  const BvhView<T>& bvh = task.bvh;
  const auto num_nodes = static_cast<int32_t>(bvh.num_nodes);
  T best = Limits<T>::kMax, limit = Limits<T>::kMax;
  int64_t best_face = -1, best_slot = -1;
  NodeEntry<T> stack[kBvhStackSize];
  int top = 0;
  stack[top++] = {T(0), 0};
  while (top > 0) {
    const NodeEntry<T> entry = stack[--top];
    if (entry.distance2 > limit) continue;
    if (entry.node >= num_nodes) {
      const int64_t block = entry.node - num_nodes;
      for (int lane = 0; lane < kBvhWidth; ++lane) {
        Vec3<T> a, b, c;
        load_triangle(bvh.triangles, block, lane, &a, &b, &c);
        const T distance2 = closest_on_triangle(p, a, b, c).distance2;
        if (!(distance2 <= best)) continue;
        const int64_t slot = block * kBvhWidth + lane;
        const int64_t face = bvh.face_index[slot];
        if (distance2 < best || best_face < 0 || face < best_face) {
          best = distance2;
          best_face = face;
          best_slot = slot;
        }
      }
      limit = search_limit(best);
      continue;
    }
    const int32_t first = bvh.first_child[entry.node];
    const int base = top;
    for (int lane = 0; lane < kBvhWidth; ++lane) {
      const Box<T> box = load_box(bvh.boxes, entry.node, lane);
      const T distance2 = box_distance2(p, box.low, box.high);
      if (!(distance2 <= limit)) continue;
      int at = top++;
      for (; at > base && stack[at - 1].distance2 < distance2; --at) stack[at] = stack[at - 1];
      stack[at] = {distance2, first + lane};
    }
  }
  if (best_slot < 0)
    write_no_face(task, i, infinity<T>());
  else
    write_closest(task, i, p, best_slot);
}

}  // namespace

size_t closest_point_workspace_bytes(int64_t num_points) {
  return query_order_workspace_bytes("closest_point", num_points);
}

template <class T>
void closest_point(const ClosestPoint<T>& task, void* workspace, size_t workspace_bytes,
                   cudaStream_t stream) {
  if (task.num_points == 0) return;
  const char* op = "closest_point";
  const uint32_t* order =
      query_order(op, task.points, task.num_points, workspace, workspace_bytes, stream);
  launch(op, closest_point_kernel<T>, blocks_for(task.num_points), dim3(kBlock), 0, stream, task,
         order);
}

template void closest_point<float>(const ClosestPoint<float>&, void*, size_t, cudaStream_t);
template void closest_point<double>(const ClosestPoint<double>&, void*, size_t, cudaStream_t);

}  // namespace fastshape::cuda
