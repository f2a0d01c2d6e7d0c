#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "raster/antialias.h"

namespace fastshape::cpu {
namespace {

constexpr int64_t kRows = 16;  // a piece of work, whatever the number of threads

// What a silhouette gives to one end of its edge.
struct Share {
  int64_t vertex;  // among all sets
  double x, y, w;
};

// Calls pixel(image, row, column, mixings) for rows [begin, end) of all images, and pair(pair,
// silhouette) once for each pair whose first pixel is there. Each pair is looked at once, but those
// between the rows of two pieces.
template <class T, class Pixel, class Pair>
void for_rows(const AntialiasScene<T>& scene, int64_t begin, int64_t end, const Pixel& pixel,
              const Pair& on_pair) {
  const PixelCenters centers = pixel_centers(scene.height, scene.width);
  const auto width = static_cast<size_t>(scene.width);
  std::vector<Mixing> above(width), below(width);
  const auto look = [&](const PixelPair& pair, bool tell) {
    Silhouette s;
    if (!find_silhouette(scene, centers, pair, &s)) return Mixing{false, false, 0.0};
    if (tell) on_pair(pair, s);
    return mixing(s);
  };
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / scene.height, in_image = row % scene.height;
    for (int64_t column = 0; column < scene.width; ++column) {
      if (row == begin || in_image == 0)
        above[static_cast<size_t>(column)] = look({image, in_image - 1, column, 1}, false);
    }
    Mixing left{false, false, 0.0};
    for (int64_t column = 0; column < scene.width; ++column) {
      const auto at = static_cast<size_t>(column);
      const Mixing right = look({image, in_image, column, 0}, true);
      below[at] = look({image, in_image, column, 1}, true);
      const Mixing mixings[4] = {right, below[at], left, above[at]};
      pixel(image, in_image, column, mixings);
      left = right;
    }
    above.swap(below);
  }
}

}  // namespace

template <class T>
void antialias(const Antialias<T>& task) {
  parallel_for(task.scene.num_images * task.scene.height, kRows, [&](int64_t begin, int64_t end) {
    for_rows(
        task.scene, begin, end,
        [&](int64_t image, int64_t row, int64_t column, const Mixing* mixings) {
          antialias_pixel(task, image, row, column, mixings);
        },
        [](const PixelPair&, const Silhouette&) {});
  });
}

template <class T>
void antialias_backward(const AntialiasBackward<T>& task) {
  const AntialiasScene<T>& scene = task.scene;
  const auto share_of = [&](const PixelPair& pair, const Silhouette& s,
                            std::vector<Share>* shares) {
    const int64_t set = scene.num_sets == 1 ? 0 : pair.image;
    const double grad = reach_gradient(task, pair, s);
    for (int end = 0; end < 2; ++end) {
      const double share = grad * s.share[end];
      shares->push_back({set * scene.num_vertices + s.vertex[end], share * s.gradient[0],
                         share * s.gradient[1], share * s.gradient[2]});
    }
  };

  // Silhouettes are few: they are found in parallel and added in the order of the pixels.
  const int64_t rows = scene.num_images * scene.height;
  std::vector<std::vector<Share>> pieces(static_cast<size_t>((rows + kRows - 1) / kRows));
  parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      for_rows(
          scene, piece * kRows, std::min(rows, (piece + 1) * kRows),
          [&](int64_t image, int64_t row, int64_t column, const Mixing* mixings) {
            antialias_pixel_backward(task, image, row, column, mixings);
          },
          [&](const PixelPair& pair, const Silhouette& s) {
            share_of(pair, s, &pieces[static_cast<size_t>(piece)]);
          });
    }
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
