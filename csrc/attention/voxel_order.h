// Voxels in the order in which boxes whose sides are a power of two, at multiples of it, are runs
// of rows: by the number in the batch, then by the bits of x, y and z from the highest down
// (Morton 1966). Equal rows keep their order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"

namespace fastshape {

constexpr int kVoxelBits = 20;  // of a coordinate

// Bit i to bit 3 i.
FASTSHAPE_HOST_DEVICE uint64_t spread_bits(uint64_t x) {
  x = (x | x << 32) & 0x001f00000000ffffull;
  x = (x | x << 16) & 0x001f0000ff0000ffull;
  x = (x | x << 8) & 0x100f00f00f00f00full;
  x = (x | x << 4) & 0x10c30c30c30c30c3ull;
  x = (x | x << 2) & 0x1249249249249249ull;
  return x;
}

// `voxel` is batch, x, y, z.
template <class Integer>
FASTSHAPE_HOST_DEVICE uint64_t voxel_key(const Integer* voxel) {
  return spread_bits(static_cast<uint64_t>(voxel[1])) << 2 |
         spread_bits(static_cast<uint64_t>(voxel[2])) << 1 |
         spread_bits(static_cast<uint64_t>(voxel[3]));
}
template <class Integer>
FASTSHAPE_HOST_DEVICE bool is_voxel(const Integer* voxel) {
  bool inside = voxel[0] >= 0 && static_cast<int64_t>(voxel[0]) <= 0x7fffffff;
  for (int axis = 1; axis < 4; ++axis)
    inside = inside && voxel[axis] >= 0 && voxel[axis] < Integer{1} << kVoxelBits;
  return inside;
}

template <class Integer>
struct VoxelOrder {
  const Integer* coords;  // (count, 4)
  int64_t count;          // below 2^31
  int64_t* order;         // (count,)
  int64_t* bad_row;  // becomes the first row that is_voxel denies, if that is below what is there
};

namespace cpu {
template <class Integer>
void voxel_order(const VoxelOrder<Integer>& task);
}
namespace cuda {
size_t voxel_order_workspace_bytes(int64_t count);
template <class Integer>
void voxel_order(const VoxelOrder<Integer>& task, void* workspace, size_t workspace_bytes,
                 cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
