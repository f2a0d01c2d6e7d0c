#include "isosurface/flexicubes_backward.h"

#include <algorithm>

#include "core/parallel.h"

namespace fastshape::cpu {
namespace {

template <class T>
struct BackwardWorkspace {
  T* corners;          // (S, 8, corner_width)
  int64_t* incidence;  // (S, 12)
  size_t bytes;
};

template <class T>
BackwardWorkspace<T> workspace_of(void* begin, const FlexiCubesBackward<T>& b) {
  WorkspaceCutter cutter(begin);
  BackwardWorkspace<T> w{};
  const int64_t num = b.task.cubes.num;
  w.corners = cutter.take<T>(8 * num * corner_width(b));
  w.incidence = cutter.take<int64_t>(b.task.centers ? kDualEdges * num : 0);
  w.bytes = cutter.bytes();
  return w;
}

template <class T>
void fill_zero(T* values, int64_t count) {
  if (values == nullptr) return;
  parallel_for(count, 1 << 18,
               [&](int64_t begin, int64_t end) { std::fill(values + begin, values + end, T(0)); });
}

}  // namespace

template <class T>
size_t flexicubes_backward_workspace_bytes(const FlexiCubesBackward<T>& b) {
  return workspace_of(nullptr, b).bytes;
}

template <class T>
void flexicubes_backward(const FlexiCubesBackward<T>& b, void* workspace) {
  const BackwardWorkspace<T> w = workspace_of(workspace, b);
  const int64_t num = b.task.cubes.num, width = corner_width(b);
  fill_zero(b.grad_values, b.num_points);
  fill_zero(b.grad_positions, 3 * b.num_points);
  fill_zero(b.grad_corner_features, b.task.num_features * b.num_points);
  if (b.task.centers) {
    std::fill(w.incidence, w.incidence + kDualEdges * num, -1);
    parallel_for(b.task.num_quads, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t quad = begin; quad < end; ++quad) write_incidence(b.task, quad, w.incidence);
    });
  }
  parallel_for(num, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s)
      cube_gradients(b, w.incidence, s, w.corners + 8 * width * s);
  });
  // Every thread walks all cubes and adds to its own share of the corners.
  const int threads = num < 4096 ? 1 : num_threads();
  parallel_team(threads, [&](int rank, int count) {
    const int64_t begin = b.num_points * rank / count, end = b.num_points * (rank + 1) / count;
    for (int64_t s = 0; s < num; ++s) {
      for (int k = 0; k < 8; ++k) {
        const int64_t corner =
            cube_corner(b.task.corners, b.task.cubes.lowest[s], b.task.cubes.rows[s], k);
        if (corner >= begin && corner < end)
          add_to_corner(b, w.corners + width * (8 * s + k), corner);
      }
    }
  });
}

#define FASTSHAPE_INSTANTIATE(T)                                                        \
  template size_t flexicubes_backward_workspace_bytes<T>(const FlexiCubesBackward<T>&); \
  template void flexicubes_backward<T>(const FlexiCubesBackward<T>&, void*);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cpu
