#include <algorithm>

#include "geometry/closest_point_backward.h"

namespace fastshape::cpu {

template <class T>
void closest_point_backward(const ClosestPointBackward<T>& task) {
  std::fill(task.grad_vertices, task.grad_vertices + 3 * task.num_vertices, T(0));
  for (int64_t i = 0; i < task.num_points; ++i) {
    const Vec3<T> g = distance_gradient(task, i);
    store_vector(task.grad_points, i, -g);
    if (task.face[i] < 0) continue;
    for (int corner = 0; corner < 3; ++corner) {
      const int64_t vertex = task.faces[3 * task.face[i] + corner];
      store_vector(task.grad_vertices, vertex,
                   load_point(task.grad_vertices, vertex) + task.barycentric[3 * i + corner] * g);
    }
  }
}

template void closest_point_backward<float>(const ClosestPointBackward<float>&);
template void closest_point_backward<double>(const ClosestPointBackward<double>&);

}  // namespace fastshape::cpu
