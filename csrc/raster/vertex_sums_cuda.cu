#include "raster/sorted_sums.cuh"
#include "raster/vertex_sums.h"

namespace fastshape::cuda {
namespace {

template <class T>
__global__ void entries_kernel(VertexSums<T> task, uint32_t* keys, uint32_t* entries) {
  const int64_t pixel = thread_index();
  if (pixel >= task.num_images * task.image_pixels) return;
  const int64_t* corners =
      pixel_corners(task.faces, task.num_faces, task.num_vertices, task.triangle_id[pixel]);
  const int64_t set = task.num_sets == 1 ? 0 : pixel / task.image_pixels;
  for (int k = 0; k < 3; ++k) {
    const int64_t entry = 3 * pixel + k;
    keys[entry] = corners == nullptr ? kNoVertex
                                     : static_cast<uint32_t>(set * task.num_vertices + corners[k]);
    entries[entry] = static_cast<uint32_t>(entry);
  }
}

template <class T>
struct WeightedValue {
  const T* values;
  const T* weights;
  int channels;

  __device__ double operator()(uint32_t entry, int channel) const {
    return static_cast<double>(weights[entry]) *
           static_cast<double>(values[static_cast<int64_t>(entry / 3) * channels + channel]);
  }
};

}  // namespace

size_t vertex_sums_workspace_bytes(int64_t num_pixels) {
  return sorted_sums("vertex_sums", nullptr, 3 * num_pixels).bytes;
}

template <class T>
void vertex_sums(const VertexSums<T>& task, void* workspace, size_t workspace_bytes,
                 cudaStream_t stream) {
  const char* op = "vertex_sums";
  const int64_t n = 3 * task.num_images * task.image_pixels;
  fill_bytes(op, task.sums, 0,
             static_cast<size_t>(task.num_sets * task.num_vertices * task.channels) * sizeof(T),
             stream);
  if (n == 0 || task.channels == 0) return;
  const SortedSums w = sorted_sums(op, workspace, n);
  FASTSHAPE_CHECK_VALUE(workspace_bytes >= w.bytes, op, ": the workspace has ", workspace_bytes,
                        " bytes, ", w.bytes, " are needed");
  launch(op, entries_kernel<T>, blocks_for(n / 3), dim3(kBlock), 0, stream, task, w.keys,
         w.entries);
  sum_by_vertex(op, w, n, WeightedValue<T>{task.values, task.weights, task.channels}, task.channels,
                task.sums, stream);
}

template void vertex_sums<float>(const VertexSums<float>&, void*, size_t, cudaStream_t);
template void vertex_sums<double>(const VertexSums<double>&, void*, size_t, cudaStream_t);

}  // namespace fastshape::cuda
