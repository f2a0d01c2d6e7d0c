#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "raster/antialias.h"

namespace fastshape::cpu {
namespace {

constexpr int64_t kRows = 16;  // a piece of work, whatever the number of threads

template <class T, class F>
void for_pixels(const AntialiasScene<T>& scene, const F& f) {
  parallel_for(scene.num_images * scene.height, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t column = 0; column < scene.width; ++column)
        f(row / scene.height, row % scene.height, column);
  });
}

// What a silhouette gives to one end of its edge.
struct Share {
  int64_t vertex;  // among all sets
  double x, y, w;
};

template <class T>
void collect_shares(const AntialiasBackward<T>& task, const PixelCenters& centers, int64_t row,
                    std::vector<Share>* shares) {
  const AntialiasScene<T>& scene = task.scene;
  const int64_t image = row / scene.height;
  const int64_t set = scene.num_sets == 1 ? 0 : image;
  for (int64_t column = 0; column < scene.width; ++column) {
    for (int axis = 0; axis < 2; ++axis) {
      const PixelPair pair{image, row % scene.height, column, axis};
      Silhouette s;
      if (!find_silhouette(scene, centers, pair, &s)) continue;
      const double grad = reach_gradient(task, pair, s);
      for (int end = 0; end < 2; ++end) {
        const double share = grad * s.share[end];
        shares->push_back({set * scene.num_vertices + s.vertex[end], share * s.gradient[0],
                           share * s.gradient[1], share * s.gradient[2]});
      }
    }
  }
}

}  // namespace

template <class T>
void antialias(const Antialias<T>& task) {
  const PixelCenters centers = pixel_centers(task.scene.height, task.scene.width);
  for_pixels(task.scene, [&](int64_t image, int64_t row, int64_t column) {
    antialias_pixel(task, centers, image, row, column);
  });
}

template <class T>
void antialias_backward(const AntialiasBackward<T>& task) {
  const AntialiasScene<T>& scene = task.scene;
  const PixelCenters centers = pixel_centers(scene.height, scene.width);
  for_pixels(scene, [&](int64_t image, int64_t row, int64_t column) {
    antialias_pixel_backward(task, centers, image, row, column);
  });

  // Silhouettes are few: they are found in parallel and added in the order of the pixels.
  const int64_t rows = scene.num_images * scene.height;
  std::vector<std::vector<Share>> pieces(static_cast<size_t>((rows + kRows - 1) / kRows));
  parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece)
      for (int64_t row = piece * kRows; row < std::min(rows, (piece + 1) * kRows); ++row)
        collect_shares(task, centers, row, &pieces[static_cast<size_t>(piece)]);
  });
  std::fill(task.grad_vertices, task.grad_vertices + 4 * scene.num_sets * scene.num_vertices, T(0));
  for (const std::vector<Share>& piece : pieces) {
    for (const Share& share : piece) {
      T* grad = task.grad_vertices + 4 * share.vertex;
      grad[0] += static_cast<T>(share.x);
      grad[1] += static_cast<T>(share.y);
      grad[3] += static_cast<T>(share.w);
    }
  }
}

template void antialias<float>(const Antialias<float>&);
template void antialias<double>(const Antialias<double>&);
template void antialias_backward<float>(const AntialiasBackward<float>&);
template void antialias_backward<double>(const AntialiasBackward<double>&);

}  // namespace fastshape::cpu
