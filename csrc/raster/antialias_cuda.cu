#include "raster/antialias.h"
#include "raster/sorted_sums.cuh"

namespace fastshape::cuda {
namespace {

template <class T>
__device__ bool pixel_at(const AntialiasScene<T>& scene, int64_t i, PixelPair* pair) {
  const int64_t row = i / scene.width;
  *pair = {row / scene.height, row % scene.height, i % scene.width, 0};
  return row < scene.num_images * scene.height;
}

// Of the four pairs that a pixel belongs to.
template <class T>
__device__ void find_mixings(const AntialiasScene<T>& scene, const PixelPair& at, Mixing* mixings) {
  const PixelCenters centers = pixel_centers(scene.height, scene.width);
  for (int number = 0; number < 4; ++number)
    mixings[number] = find_mixing(scene, centers, pair_of(at.image, at.row, at.column, number));
}

template <class T>
__global__ void antialias_kernel(Antialias<T> task) {
  PixelPair at;
  if (!pixel_at(task.scene, thread_index(), &at)) return;
  Mixing mixings[4];
  find_mixings(task.scene, at, mixings);
  antialias_pixel(task, at.image, at.row, at.column, mixings);
}

template <class T>
__global__ void grad_image_kernel(AntialiasBackward<T> task) {
  PixelPair at;
  if (!pixel_at(task.scene, thread_index(), &at)) return;
  Mixing mixings[4];
  find_mixings(task.scene, at, mixings);
  antialias_pixel_backward(task, at.image, at.row, at.column, mixings);
}

// Entry 4 pixel + 2 axis + end: one end of a silhouette's edge, in the order of the CPU's.
template <class T>
__global__ void entries_kernel(AntialiasScene<T> scene, uint32_t* keys, uint32_t* entries) {
  const int64_t pixel = thread_index();
  PixelPair pair;
  if (!pixel_at(scene, pixel, &pair)) return;
  const PixelCenters centers = pixel_centers(scene.height, scene.width);
  const int64_t set = scene.num_sets == 1 ? 0 : pair.image;
  for (int axis = 0; axis < 2; ++axis) {
    pair.axis = axis;
    Silhouette s;
    const bool found = find_silhouette(scene, centers, pair, &s);
    for (int end = 0; end < 2; ++end) {
      const int64_t entry = 4 * pixel + 2 * axis + end;
      keys[entry] =
          found ? static_cast<uint32_t>(set * scene.num_vertices + s.vertex[end]) : kNoVertex;
      entries[entry] = static_cast<uint32_t>(entry);
    }
  }
}

template <class T>
struct SilhouetteShare {
  AntialiasBackward<T> task;

  __device__ double operator()(uint32_t entry, int channel) const {
    PixelPair pair;
    pixel_at(task.scene, entry / 4, &pair);
    pair.axis = static_cast<int>(entry / 2 % 2);
    Silhouette s;
    if (channel == 2 ||
        !find_silhouette(task.scene, pixel_centers(task.scene.height, task.scene.width), pair, &s))
      return 0.0;
    const double grad = reach_gradient(task, pair, s) * s.share[entry % 2];
    return grad * s.gradient[channel == 3 ? 2 : channel];
  }
};

}  // namespace

template <class T>
void antialias(const Antialias<T>& task, cudaStream_t stream) {
  const int64_t n = task.scene.num_images * task.scene.height * task.scene.width;
  if (n != 0)
    launch("antialias", antialias_kernel<T>, blocks_for(n), dim3(kBlock), 0, stream, task);
}

size_t antialias_backward_workspace_bytes(int64_t num_pixels) {
  return sorted_sums("antialias_backward", nullptr, 4 * num_pixels).bytes;
}

template <class T>
void antialias_backward(const AntialiasBackward<T>& task, void* workspace, size_t workspace_bytes,
                        cudaStream_t stream) {
  const char* op = "antialias_backward";
  const AntialiasScene<T>& scene = task.scene;
  const int64_t n = scene.num_images * scene.height * scene.width;
  fill_bytes(op, task.grad_vertices, 0,
             static_cast<size_t>(4 * scene.num_sets * scene.num_vertices) * sizeof(T), stream);
  if (n == 0) return;
  const SortedSums w = sorted_sums(op, workspace, 4 * n);
  FASTSHAPE_CHECK_VALUE(workspace_bytes >= w.bytes, op, ": the workspace has ", workspace_bytes,
                        " bytes, ", w.bytes, " are needed");
  launch(op, grad_image_kernel<T>, blocks_for(n), dim3(kBlock), 0, stream, task);
  launch(op, entries_kernel<T>, blocks_for(n), dim3(kBlock), 0, stream, scene, w.keys, w.entries);
  sum_by_vertex(op, w, 4 * n, SilhouetteShare<T>{task}, 4, task.grad_vertices, stream);
}

template void antialias<float>(const Antialias<float>&, cudaStream_t);
template void antialias<double>(const Antialias<double>&, cudaStream_t);
template void antialias_backward<float>(const AntialiasBackward<float>&, void*, size_t,
                                        cudaStream_t);
template void antialias_backward<double>(const AntialiasBackward<double>&, void*, size_t,
                                         cudaStream_t);

}  // namespace fastshape::cuda
