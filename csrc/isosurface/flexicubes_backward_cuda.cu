#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"
#include "core/elementwise.cuh"
#include "isosurface/flexicubes_backward.h"

namespace fastshape::cuda {
namespace {

constexpr const char* kOp = "flexicubes_backward";

template <class T>
struct BackwardWorkspace {
  T* corners;                      // (S, 8, corner_width)
  int64_t* incidence;              // (S, 12)
  uint64_t *keys, *sorted_keys;    // (8 S,) corners
  uint32_t *slots, *sorted_slots;  // (8 S,) 8 * cube + k
  unsigned char* sort;
  size_t sort_bytes;
  size_t bytes;
};

int bits_of(int64_t n) {
  int bits = 1;
  while (bits < 63 && n >> bits != 0) ++bits;
  return bits;
}

template <class T>
BackwardWorkspace<T> workspace_of(void* begin, const FlexiCubesBackward<T>& b) {
  WorkspaceCutter cutter(begin);
  BackwardWorkspace<T> w{};
  const int64_t num = b.task.cubes.num;
  w.corners = cutter.take<T>(8 * num * corner_width(b));
  w.incidence = cutter.take<int64_t>(b.task.centers ? kDualEdges * num : 0);
  w.keys = cutter.take<uint64_t>(8 * num);
  w.sorted_keys = cutter.take<uint64_t>(8 * num);
  w.slots = cutter.take<uint32_t>(8 * num);
  w.sorted_slots = cutter.take<uint32_t>(8 * num);
  w.sort_bytes =
      device_sort_pairs_workspace_bytes<uint64_t>(kOp, 8 * num, 0, bits_of(b.num_points));
  w.sort = cutter.take<unsigned char>(static_cast<int64_t>(w.sort_bytes));
  w.bytes = cutter.bytes();
  return w;
}

template <class T>
__global__ void incidence_kernel(FlexiCubes<T> task, int64_t* incidence) {
  const int64_t quad = thread_index();
  if (quad < task.num_quads) write_incidence(task, quad, incidence);
}

template <class T>
__global__ void cubes_kernel(FlexiCubesBackward<T> b, BackwardWorkspace<T> w) {
  const int64_t s = thread_index();
  if (s >= b.task.cubes.num) return;
  keep_cube_gradients(b, w.incidence, s, w.corners + 8 * corner_width(b) * s);
  for (int k = 0; k < 8; ++k) {
    w.keys[8 * s + k] = static_cast<uint64_t>(
        cube_corner(b.task.corners, b.task.cubes.lowest[s], b.task.cubes.rows[s], k));
    w.slots[8 * s + k] = static_cast<uint32_t>(8 * s + k);
  }
}

// Each corner's run in the sorted list, by the thread of its first entry.
template <class T>
__global__ void corners_kernel(FlexiCubesBackward<T> b, BackwardWorkspace<T> w) {
  const int64_t i = thread_index(), n = 8 * b.task.cubes.num;
  if (i >= n) return;
  const uint64_t corner = w.sorted_keys[i];
  if (i > 0 && w.sorted_keys[i - 1] == corner) return;
  for (int64_t at = i; at < n && w.sorted_keys[at] == corner; ++at)
    add_kept(b, w.corners + corner_width(b) * w.sorted_slots[at], static_cast<int64_t>(corner));
}

}  // namespace

template <class T>
size_t flexicubes_backward_workspace_bytes(const FlexiCubesBackward<T>& b) {
  return workspace_of(nullptr, b).bytes;
}

template <class T>
void flexicubes_backward(const FlexiCubesBackward<T>& b, void* workspace, cudaStream_t stream) {
  const BackwardWorkspace<T> w = workspace_of(workspace, b);
  const int64_t num = b.task.cubes.num;
  if (num == 0) return;
  if (b.task.centers) {
    fill_bytes(kOp, w.incidence, 0xff, static_cast<size_t>(kDualEdges * num) * sizeof(int64_t),
               stream);
    if (b.task.num_quads != 0)
      launch(kOp, incidence_kernel<T>, blocks_for(b.task.num_quads), dim3(kBlock), 0, stream,
             b.task, w.incidence);
  }
  launch(kOp, cubes_kernel<T>, blocks_for(num), dim3(kBlock), 0, stream, b, w);
  device_sort_pairs<uint64_t>(kOp, w.sort, w.sort_bytes, w.keys, w.sorted_keys, w.slots,
                              w.sorted_slots, 8 * num, stream, 0, bits_of(b.num_points));
  launch(kOp, corners_kernel<T>, blocks_for(8 * num), dim3(kBlock), 0, stream, b, w);
}

#define FASTSHAPE_INSTANTIATE(T)                                                        \
  template size_t flexicubes_backward_workspace_bytes<T>(const FlexiCubesBackward<T>&); \
  template void flexicubes_backward<T>(const FlexiCubesBackward<T>&, void*, cudaStream_t);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cuda
