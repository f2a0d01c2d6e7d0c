#include "isosurface/flexicubes_backward.h"

#include <algorithm>
#include <vector>

#include "core/parallel.h"

namespace fastshape::cpu {
namespace {

template <class T>
struct BackwardWorkspace {
  T* corners;          // (S, 8, corner_width), of a list of cubes
  int64_t* incidence;  // (S, 12)
  size_t bytes;
};

template <class T>
BackwardWorkspace<T> workspace_of(void* begin, const FlexiCubesBackward<T>& b) {
  WorkspaceCutter cutter(begin);
  BackwardWorkspace<T> w{};
  const int64_t num = b.task.cubes.num;
  w.incidence = cutter.take<int64_t>(b.task.centers ? kDualEdges * num : 0);
  w.corners = cutter.take<T>(b.task.corners.cubes == nullptr ? 0 : 8 * num * corner_width(b));
  w.bytes = cutter.bytes();
  return w;
}

// ---- Of a lattice ------------------------------------------------------------------------------
//
// Whoever has some planes of points walks the cubes that have corners there, in their order; the
// cubes before the first plane are walked by two.

constexpr int64_t kPlanes = 8;  // at least, of which one more slab of cubes is walked
constexpr int64_t kPieces = 4;  // for each thread

template <class T>
void planes_backward(const FlexiCubesBackward<T>& b, const int64_t* incidence, int64_t first,
                     int64_t last) {
  const DualCubes& cubes = b.task.cubes;
  const CubeCorners& lattice = b.task.corners;
  const int64_t plane = lattice.size_y * lattice.size_z;
  std::vector<T> features(static_cast<size_t>(8 * b.task.num_features));
  CornerGradients<T> gradients;
  gradients.features = features.data();
  gradients.stride = b.task.num_features;
  int64_t s =
      std::lower_bound(cubes.lowest, cubes.lowest + cubes.num, (first - 1) * plane) - cubes.lowest;
  for (int64_t x = first - 1; x < last; ++x) {
    const bool mine = x >= first;
    for (; s < cubes.num && cubes.lowest[s] < (x + 1) * plane; ++s) {
      cube_gradients(b, incidence, s, mine, &gradients);
      for (int k = 0; k < 8; ++k) {
        if ((k & 1) == 0 ? !mine : x + 1 == last) continue;
        add_to_corner(b, gradients, k, cube_corner(lattice, cubes.lowest[s], 0, k));
      }
    }
  }
}

template <class T>
void lattice_backward(const FlexiCubesBackward<T>& b, const int64_t* incidence) {
  const int64_t plane = b.task.corners.size_y * b.task.corners.size_z;
  if (plane == 0) return;
  const int64_t size_x = b.num_points / plane, pieces = kPieces * num_threads();
  const int64_t planes = std::max(kPlanes, (size_x + pieces - 1) / pieces);
  parallel_for((size_x + planes - 1) / planes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece)
      planes_backward(b, incidence, piece * planes, std::min(size_x, (piece + 1) * planes));
  });
}

// ---- Of a list ---------------------------------------------------------------------------------

template <class T>
void list_backward(const FlexiCubesBackward<T>& b, const BackwardWorkspace<T>& w) {
  const int64_t num = b.task.cubes.num, width = corner_width(b);
  parallel_for(num, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s)
      keep_cube_gradients(b, w.incidence, s, w.corners + 8 * width * s);
  });
  // Every thread walks all cubes and adds to its own share of the corners.
  const int threads = num < 4096 ? 1 : num_threads();
  parallel_team(threads, [&](int rank, int count) {
    const int64_t begin = b.num_points * rank / count, end = b.num_points * (rank + 1) / count;
    for (int64_t s = 0; s < num; ++s) {
      const int64_t* const corners = b.task.corners.cubes + 8 * b.task.cubes.rows[s];
      for (int k = 0; k < 8; ++k)
        if (corners[k] >= begin && corners[k] < end)
          add_kept(b, w.corners + width * (8 * s + k), corners[k]);
    }
  });
}

}  // namespace

template <class T>
size_t flexicubes_backward_workspace_bytes(const FlexiCubesBackward<T>& b) {
  return workspace_of(nullptr, b).bytes;
}

template <class T>
void flexicubes_backward(const FlexiCubesBackward<T>& b, void* workspace) {
  const BackwardWorkspace<T> w = workspace_of(workspace, b);
  if (b.task.centers) {
    parallel_for(kDualEdges * b.task.cubes.num, 1 << 16, [&](int64_t begin, int64_t end) {
      std::fill(w.incidence + begin, w.incidence + end, -1);
    });
    parallel_for(b.task.num_quads, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t quad = begin; quad < end; ++quad) write_incidence(b.task, quad, w.incidence);
    });
  }
  if (b.task.corners.cubes == nullptr)
    lattice_backward(b, w.incidence);
  else
    list_backward(b, w);
}

#define FASTSHAPE_INSTANTIATE(T)                                                        \
  template size_t flexicubes_backward_workspace_bytes<T>(const FlexiCubesBackward<T>&); \
  template void flexicubes_backward<T>(const FlexiCubesBackward<T>&, void*);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cpu
