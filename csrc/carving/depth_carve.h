// Depth carving: which voxels lie before, or at, what views of them show.
//
// A view sees the center of a voxel if it is before the camera, not nearer than `near` nor farther
// than `far`, and in the picture. It keeps a center that it sees if its depth is at most that of
// the nearest pixel plus the threshold, and says `keep_background` where the pixel's depth is +inf,
// `keep_invalid` where it is no depth at all (0 or less, NaN), `keep_outside` of a center that it
// does not see. The views must all keep a voxel, or one of them (`any_view`).
//
// Each operation rounds for itself, in the order written here, on every backend.
#pragma once

#include <cstdint>

#include "carving/bit_grid.h"
#include "core/host_device.h"

namespace fastshape {

template <class T>
struct DepthCarve {
  VoxelList voxels;
  const T* depth;       // (batch, num_views, height, width)
  const T* matrices;    // (batch, num_views, 4, 4): world to clip, of column vectors
  const T* depth_rows;  // (batch, num_views, 4): (x, y, z, 1) to depth; null: the clip vector's w
  int64_t batch, num_views, height, width;
  int64_t resolution;
  T low, voxel_size;  // voxel i's center is at (i + 0.5) * voxel_size + low
  T threshold, near, far;
  bool any_view, keep_outside, keep_background, keep_invalid;
  bool bottom_up;  // the first row of a picture is at y = -1 in clip coordinates, not at +1
  bool* mask;      // (num_voxels,)
};

template <class T>
FASTSHAPE_HOST_DEVICE T voxel_center(const DepthCarve<T>& task, int32_t coord) {
  return (static_cast<T>(coord) + static_cast<T>(0.5)) * task.voxel_size + task.low;
}

template <class T>
FASTSHAPE_HOST_DEVICE T row_times(const T* row, T x, T y, T z) {
  return row[0] * x + row[1] * y + row[2] * z + row[3];
}

// Of view `view` of all batch * num_views.
template <class T>
FASTSHAPE_HOST_DEVICE bool view_keeps(const DepthCarve<T>& task, int64_t view, T x, T y, T z) {
  const T* matrix = task.matrices + 16 * view;
  const T w = row_times(matrix + 12, x, y, z);
  const T depth = task.depth_rows == nullptr ? w : row_times(task.depth_rows + 4 * view, x, y, z);
  if (!(w > 0 && depth >= task.near && depth <= task.far)) return task.keep_outside;
  const T one = 1, half = static_cast<T>(0.5), inverse = one / w;
  const T right = row_times(matrix, x, y, z) * inverse;
  const T up = row_times(matrix + 4, x, y, z) * inverse;
  const T width = static_cast<T>(task.width), height = static_cast<T>(task.height);
  const T column = (one + right) * (width * half);
  const T row = (task.bottom_up ? one + up : one - up) * (height * half);
  if (!(column >= 0 && column < width && row >= 0 && row < height)) return task.keep_outside;
  const int64_t pixel = static_cast<int64_t>(row) * task.width + static_cast<int64_t>(column);
  const T shown = task.depth[view * task.height * task.width + pixel];
  const T infinity = static_cast<T>(__builtin_huge_val());
  if (shown > 0 && shown < infinity) return depth <= shown + task.threshold;
  return shown == infinity ? task.keep_background : task.keep_invalid;
}

// Of a voxel whose number in the batch is in range.
template <class T>
FASTSHAPE_HOST_DEVICE bool is_kept(const DepthCarve<T>& task, int64_t i) {
  const int32_t* p = voxel_xyz(task.voxels, i);
  const T x = voxel_center(task, p[0]), y = voxel_center(task, p[1]), z = voxel_center(task, p[2]);
  const int64_t first = voxel_batch(task.voxels, i) * task.num_views;
  for (int64_t view = first; view < first + task.num_views; ++view)
    if (view_keeps(task, view, x, y, z) == task.any_view) return task.any_view;
  return !task.any_view;
}

// The voxels' extent, without words: what is_in_grid asks.
template <class T>
FASTSHAPE_HOST_DEVICE BitGrid extent(const DepthCarve<T>& task) {
  return bit_grid(nullptr, task.batch, task.resolution, task.resolution, task.resolution);
}

// *bad_row becomes the first row that is not in the extent if that is below what is there; the mask
// is false for it.
namespace cpu {
template <class T>
void depth_carve(const DepthCarve<T>& task, int64_t* bad_row);
}
namespace cuda {
template <class T>
void depth_carve(const DepthCarve<T>& task, int64_t* bad_row, cudaStream_t stream);
}

}  // namespace fastshape
