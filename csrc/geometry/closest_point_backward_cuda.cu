#include "core/cuda_utils.cuh"
#include "geometry/closest_point_backward.h"
#include "geometry/hilbert_order.cuh"

namespace fastshape::cuda {
namespace {

// Entry 3 i + corner belongs to vertex keys[entry]. A stable sort by vertex leaves each vertex's
// entries in the order of the points, and one thread adds them up: the CPU's sum, to the bit.
struct BackwardWorkspace {
  uint64_t *keys, *sorted_keys;
  uint32_t *entries, *sorted_entries;
  unsigned char* sort;
  size_t sort_bytes;
  size_t bytes;
};

BackwardWorkspace backward_workspace(void* begin, int64_t num_points) {
  const int64_t n = 3 * num_points;
  WorkspaceCutter cutter(begin);
  BackwardWorkspace w{};
  w.keys = cutter.take<uint64_t>(n);
  w.sorted_keys = cutter.take<uint64_t>(n);
  w.entries = cutter.take<uint32_t>(n);
  w.sorted_entries = cutter.take<uint32_t>(n);
  w.sort_bytes = device_sort_pairs_workspace_bytes<uint64_t>("closest_point_backward", n);
  w.sort = cutter.take<unsigned char>(static_cast<int64_t>(w.sort_bytes));
  w.bytes = cutter.bytes();
  return w;
}

constexpr uint64_t kNoVertex = ~uint64_t{0};

template <class T>
__global__ void point_gradients_kernel(ClosestPointBackward<T> task, uint64_t* keys,
                                       uint32_t* entries) {
  const int64_t i = thread_index();
  if (i >= task.num_points) return;
  store_vector(task.grad_points, i, -distance_gradient(task, i));
  const int64_t face = task.face[i];
  for (int corner = 0; corner < 3; ++corner) {
    keys[3 * i + corner] =
        face < 0 ? kNoVertex : static_cast<uint64_t>(task.faces[3 * face + corner]);
    entries[3 * i + corner] = static_cast<uint32_t>(3 * i + corner);
  }
}

template <class T>
__global__ void vertex_gradients_kernel(ClosestPointBackward<T> task, const uint64_t* keys,
                                        const uint32_t* entries) {
  const int64_t begin = thread_index();
  const int64_t n = 3 * task.num_points;
  if (begin >= n || keys[begin] == kNoVertex) return;
  if (begin > 0 && keys[begin - 1] == keys[begin]) return;  // in the middle of a vertex's run
  Vec3<T> sum{T(0), T(0), T(0)};
  for (int64_t k = begin; k < n && keys[k] == keys[begin]; ++k) {
    const uint32_t entry = entries[k];
    sum = sum + task.barycentric[entry] * (-load_point(task.grad_points, entry / 3));
  }
  store_vector(task.grad_vertices, static_cast<int64_t>(keys[begin]), sum);
}

}  // namespace

size_t closest_point_backward_workspace_bytes(int64_t num_points) {
  return backward_workspace(nullptr, num_points).bytes;
}

template <class T>
void closest_point_backward(const ClosestPointBackward<T>& task, void* workspace,
                            size_t workspace_bytes, cudaStream_t stream) {
  const char* op = "closest_point_backward";
  fill_bytes(op, task.grad_vertices, 0, static_cast<size_t>(3 * task.num_vertices) * sizeof(T),
             stream);
  if (task.num_points == 0) return;
  const int64_t n = 3 * task.num_points;
  const BackwardWorkspace w = backward_workspace(workspace, task.num_points);
  FASTSHAPE_CHECK_VALUE(workspace_bytes >= w.bytes, op, ": the workspace has ", workspace_bytes,
                        " bytes, ", w.bytes, " are needed");
  launch(op, point_gradients_kernel<T>, blocks_for(task.num_points), dim3(kBlock), 0, stream, task,
         w.keys, w.entries);
  device_sort_pairs<uint64_t>(op, w.sort, w.sort_bytes, w.keys, w.sorted_keys, w.entries,
                              w.sorted_entries, n, stream);
  launch(op, vertex_gradients_kernel<T>, blocks_for(n), dim3(kBlock), 0, stream, task,
         w.sorted_keys, w.sorted_entries);
}

template void closest_point_backward<float>(const ClosestPointBackward<float>&, void*, size_t,
                                            cudaStream_t);
template void closest_point_backward<double>(const ClosestPointBackward<double>&, void*, size_t,
                                             cudaStream_t);

}  // namespace fastshape::cuda
