#include <algorithm>

#include "core/parallel.h"
#include "raster/vertex_sums.h"

namespace fastshape::cpu {
namespace {

constexpr int kChannels = 8;  // in registers at a time, when there are more than four

// The run of pixels [begin, end) with one triangle, into one of its vertices.
template <int kCount, class T>
void add_run(const VertexSums<T>& task, int64_t begin, int64_t end, int corner, int channel,
             T* sum) {
  double total[kCount] = {};
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const auto weight = static_cast<double>(task.weights[3 * pixel + corner]);
    const T* value = task.values + pixel * task.channels + channel;
    for (int c = 0; c < kCount; ++c) total[c] += weight * static_cast<double>(value[c]);
  }
  for (int c = 0; c < kCount; ++c) sum[c] += static_cast<T>(total[c]);
}

template <int kCount, class T>
void add_run_in_parts(const VertexSums<T>& task, int64_t begin, int64_t end, int corner, T* sums) {
  int channel = 0;
  for (; channel + kCount <= task.channels; channel += kCount)
    add_run<kCount>(task, begin, end, corner, channel, sums + channel);
  for (; channel < task.channels; ++channel)
    add_run<1>(task, begin, end, corner, channel, sums + channel);
}

// The pixels of images [begin, end) in their order, into the vertices of one owner. Every vertex
// has one owner and its pixels come in their order, so the number of owners does not matter.
template <int kCount, class T>
void sum_images(const VertexSums<T>& task, int64_t begin, int64_t end, uint32_t owner,
                uint32_t owners) {
  for (int64_t image = begin; image < end; ++image) {
    T* const sums =
        task.sums + (task.num_sets == 1 ? 0 : image * task.num_vertices * task.channels);
    const int64_t last = (image + 1) * task.image_pixels;
    for (int64_t pixel = image * task.image_pixels; pixel < last;) {
      const int64_t face = task.triangle_id[pixel], first = pixel;
      while (pixel < last && task.triangle_id[pixel] == face) ++pixel;
      const int64_t* corners = pixel_corners(task.faces, task.num_faces, task.num_vertices, face);
      if (corners == nullptr) continue;
      for (int k = 0; k < 3; ++k)
        if (owners == 1 || static_cast<uint32_t>(corners[k] >> 6) % owners == owner)
          add_run_in_parts<kCount>(task, first, pixel, k, sums + corners[k] * task.channels);
    }
  }
}

template <class T>
void sum_images(const VertexSums<T>& task, int64_t begin, int64_t end, uint32_t owner,
                uint32_t owners) {
  switch (task.channels) {
    case 1:
      return sum_images<1>(task, begin, end, owner, owners);
    case 2:
      return sum_images<2>(task, begin, end, owner, owners);
    case 3:
      return sum_images<3>(task, begin, end, owner, owners);
    case 4:
      return sum_images<4>(task, begin, end, owner, owners);
    default:
      return sum_images<kChannels>(task, begin, end, owner, owners);
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
  const auto owners = static_cast<uint32_t>(num_threads());
  parallel_for(owners, 1, [&](int64_t begin, int64_t end) {
    for (int64_t owner = begin; owner < end; ++owner)
      sum_images(task, 0, task.num_images, static_cast<uint32_t>(owner), owners);
  });
}

template void vertex_sums<float>(const VertexSums<float>&);
template void vertex_sums<double>(const VertexSums<double>&);

}  // namespace fastshape::cpu
