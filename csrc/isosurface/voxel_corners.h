// The corners of a list of voxels, each once, in the order of (shape, x, y, z).
//
// A lattice point is one number, the shape's above x, y and z of so many bits each as the largest
// coordinate takes, so that points are sorted and compared as integers. On the CPU only the voxels
// are sorted: the corners are then the union of their keys and the keys one further along z, of
// that and the same one further along y, and along x, each a merge of two sorted lists.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"

namespace fastshape {

constexpr int kMaxAxisBits = 20;
constexpr int64_t kMaxVoxels = (int64_t{1} << 29) - 1;  // their corners are counted in 32 bits

struct VoxelCorners {
  const int32_t* coords;  // (num_voxels, width): x, y, z, behind the shape if width is 4
  int64_t num_voxels;     // at most kMaxVoxels
  int width;
  int axis_bits;  // at most kMaxAxisBits
};

struct VoxelCornersFound {
  int64_t num_corners;
  int64_t bad_voxel;  // one with a coordinate out of range; num_voxels if there is none
};

struct VoxelCornersOut {
  int64_t* index;   // (num_voxels, 8): rows of the corners
  int64_t* keys;    // (P,) ascending
  int32_t* coords;  // (P, width)
};

// One past a corner is still below the next power of two, so that it is no other row's.
FASTSHAPE_HOST_DEVICE bool is_voxel(const VoxelCorners& task, int64_t n) {
  const int32_t* c = task.coords + task.width * n;
  bool good = true;
  if (task.width == 4) {
    good = *c >= 0 && static_cast<int64_t>(*c) >> (63 - 3 * task.axis_bits) == 0;
    ++c;
  }
  for (int k = 0; k < 3; ++k) good = good && c[k] >= 0 && c[k] <= (1 << task.axis_bits) - 3;
  return good;
}

FASTSHAPE_HOST_DEVICE uint64_t voxel_key(const VoxelCorners& task, int64_t n) {
  const int32_t* c = task.coords + task.width * n;
  uint64_t key = 0;
  for (int k = 0; k < task.width; ++k)
    key = key << task.axis_bits | static_cast<uint64_t>(static_cast<uint32_t>(c[k]));
  return key;
}

// What to add to a voxel's key for its corner k.
FASTSHAPE_HOST_DEVICE uint64_t voxel_corner_step(const VoxelCorners& task, int k) {
  return static_cast<uint64_t>(k & 1) << 2 * task.axis_bits |
         static_cast<uint64_t>(k >> 1 & 1) << task.axis_bits | static_cast<uint64_t>(k >> 2);
}

FASTSHAPE_HOST_DEVICE void write_corner(const VoxelCorners& task, uint64_t key, int64_t corner,
                                        const VoxelCornersOut& out) {
  out.keys[corner] = static_cast<int64_t>(key);
  const uint64_t mask = (uint64_t{1} << task.axis_bits) - 1;
  for (int k = task.width - 1; k >= 0; --k) {
    const bool first = k == 0 && task.width == 4;  // the shape has the bits that are left
    out.coords[task.width * corner + k] = static_cast<int32_t>(first ? key : key & mask);
    key >>= task.axis_bits;
  }
}

namespace cpu {
size_t voxel_corners_workspace_bytes(int64_t num_voxels);
void voxel_corners_count(const VoxelCorners& task, void* workspace, VoxelCornersFound* found);
void voxel_corners_fill(const VoxelCorners& task, const void* workspace,
                        const VoxelCornersFound& found, const VoxelCornersOut& out);
}  // namespace cpu

namespace cuda {
size_t voxel_corners_workspace_bytes(int64_t num_voxels);
// `found` lies on the device, that of fill on the host.
void voxel_corners_count(const VoxelCorners& task, void* workspace, VoxelCornersFound* found,
                         cudaStream_t stream);
void voxel_corners_fill(const VoxelCorners& task, const void* workspace,
                        const VoxelCornersFound& found, const VoxelCornersOut& out,
                        cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
