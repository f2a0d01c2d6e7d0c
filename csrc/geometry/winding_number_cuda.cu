#include "core/cuda_utils.cuh"
#include "geometry/hilbert_order.cuh"
#include "geometry/winding_number.h"

namespace fastshape::cuda {
namespace {

// One thread, one point. Eight sums, as the CPU has them in the lanes of a register.
template <class T>
__global__ void winding_number_kernel(WindingNumber<T> task, const uint32_t* order) {
  const int64_t k = thread_index();
  if (k >= task.num_points) return;
  const int64_t i = order[k];
  const Vec3<T> p = load_point(task.points, i);
  if (!is_finite(p)) {
    task.winding[i] = not_a_number<T>();
    return;
  }
  const auto num_nodes = static_cast<int32_t>(task.bvh.num_nodes);
  T sums[kBvhWidth] = {};
  int32_t stack[kBvhStackSize];
  int top = 0;
  stack[top++] = 0;
  while (top > 0) {
    const int32_t node = stack[--top];
    if (node >= num_nodes) {
      FASTSHAPE_UNROLL
      for (int lane = 0; lane < kBvhWidth; ++lane) {
        Vec3<T> a, b, c;
        load_triangle(task.bvh.triangles, node - num_nodes, lane, &a, &b, &c);
        sums[lane] = sums[lane] + solid_angle<T>(p, a, b, c);
      }
      continue;
    }
    const int32_t first = task.bvh.first_child[node];
    const T* rows = task.moments + static_cast<int64_t>(node) * (kMomentRows * 8);
    FASTSHAPE_UNROLL
    for (int lane = 0; lane < kBvhWidth; ++lane) {
      const auto load = [&](int row) { return rows[8 * row + lane]; };
      const Vec3<T> r = Vec3<T>{load(kCenter), load(kCenter + 1), load(kCenter + 2)} - p;
      const T r2 = dot(r, r), radius2 = load(kRadius2);
      if (!(radius2 >= T(0))) continue;
      if (r2 > task.beta2 * radius2)
        sums[lane] = sums[lane] + far_field<T>(r, r2, load);
      else
        stack[top++] = first + lane;
    }
  }
  task.winding[i] = sum_lanes(sums);
}

}  // namespace

size_t winding_number_workspace_bytes(int64_t num_points) {
  return query_order_workspace_bytes("winding_number", num_points);
}

template <class T>
void winding_number(const WindingNumber<T>& task, void* workspace, size_t workspace_bytes,
                    cudaStream_t stream) {
  if (task.num_points == 0) return;
  const char* op = "winding_number";
  const uint32_t* order =
      query_order(op, task.points, task.num_points, workspace, workspace_bytes, stream);
  launch(op, winding_number_kernel<T>, blocks_for(task.num_points), dim3(kBlock), 0, stream, task,
         order);
}

template void winding_number<float>(const WindingNumber<float>&, void*, size_t, cudaStream_t);
template void winding_number<double>(const WindingNumber<double>&, void*, size_t, cudaStream_t);

}  // namespace fastshape::cuda
