#include <algorithm>

#include "core/parallel.h"
#include "raster/vertex_sums.h"

namespace fastshape::cpu {
namespace {

constexpr int kChannels = 8;  // in registers at a time

// What a run of pixels with the same triangle gives to its three vertices.
struct Run {
  double sums[3][kChannels];
};

// The pixels of images [begin, end) in their order, into the vertices of one owner. Every vertex
// has one owner and its pixels come in their order, so the number of owners does not matter.
template <class T>
void sum_images(const VertexSums<T>& task, int64_t begin, int64_t end, int64_t owner,
                int64_t owners) {
  const auto is_mine = [&](int64_t vertex) { return (vertex >> 6) % owners == owner; };
  for (int64_t image = begin; image < end; ++image) {
    T* const sums =
        task.sums + (task.num_sets == 1 ? 0 : image * task.num_vertices * task.channels);
    const int64_t last = (image + 1) * task.image_pixels;
    for (int64_t pixel = image * task.image_pixels; pixel < last;) {
      const int64_t face = task.triangle_id[pixel], first = pixel;
      while (pixel < last && task.triangle_id[pixel] == face) ++pixel;
      const int64_t* corners = pixel_corners(task.faces, task.num_faces, task.num_vertices, face);
      if (corners == nullptr) continue;
      const bool mine[3] = {is_mine(corners[0]), is_mine(corners[1]), is_mine(corners[2])};
      if (!(mine[0] || mine[1] || mine[2])) continue;
      for (int channel = 0; channel < task.channels; channel += kChannels) {
        const int count = std::min(kChannels, task.channels - channel);
        Run run{};
        for (int64_t p = first; p < pixel; ++p) {
          const T* value = task.values + p * task.channels + channel;
          for (int k = 0; k < 3; ++k) {
            const double weight = static_cast<double>(task.weights[3 * p + k]);
            for (int c = 0; c < count; ++c)
              run.sums[k][c] += weight * static_cast<double>(value[c]);
          }
        }
        for (int k = 0; k < 3; ++k) {
          if (!mine[k]) continue;
          T* sum = sums + corners[k] * task.channels + channel;
          for (int c = 0; c < count; ++c) sum[c] += static_cast<T>(run.sums[k][c]);
        }
      }
    }
  }
}

}  // namespace

template <class T>
void vertex_sums(const VertexSums<T>& task) {
  const int64_t n = task.num_sets * task.num_vertices * task.channels;
  std::fill(task.sums, task.sums + n, T(0));
  const bool separate = task.num_sets == task.num_images;
  if (separate && task.num_images >= 2 * num_threads()) {
    parallel_for(task.num_images, 1,
                 [&](int64_t begin, int64_t end) { sum_images(task, begin, end, 0, 1); });
    return;
  }
  const int64_t owners = num_threads();
  parallel_for(owners, 1, [&](int64_t begin, int64_t end) {
    for (int64_t owner = begin; owner < end; ++owner)
      sum_images(task, 0, task.num_images, owner, owners);
  });
}

template void vertex_sums<float>(const VertexSums<float>&);
template void vertex_sums<double>(const VertexSums<double>&);

}  // namespace fastshape::cpu
