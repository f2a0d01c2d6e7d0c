// The distinct voxels of a list, or of a coarser grid that they lie in, in ascending order.
//
// A voxel is one number, batch, x, y and z behind each other in as many bits as the largest
// coordinates take. One sort of these numbers gives everything: which voxel a row is, and the rows
// of every voxel behind each other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"

namespace fastshape {

// Index: int32_t or int64_t.
template <class Index>
struct UniqueVoxels {
  const Index* coords;  // (num_voxels, 4), none negative
  int64_t num_voxels;   // at most kMaxRows
  int64_t factor;       // x, y and z are divided by it, rounded down
  int bits[4];          // that batch, x, y and z take when divided; at most 64 together
  int64_t* index;       // (num_voxels,) which of the distinct voxels a row is
  int32_t* order;       // (num_voxels,) rows by voxel, ascending in each
};

template <class Index>
struct UniqueVoxelsOut {
  Index* voxels;     // (num_unique, 4)
  int64_t* offsets;  // (num_unique + 1,) where a voxel's rows begin in the order
  int64_t num_unique;
};

template <class Index>
FASTSHAPE_HOST_DEVICE int64_t coarse_coord(const UniqueVoxels<Index>& task, int64_t row, int axis) {
  const int64_t c = static_cast<int64_t>(task.coords[4 * row + axis]);
  return axis == 0 ? c : c / task.factor;
}

template <class Index>
FASTSHAPE_HOST_DEVICE uint64_t coarse_key(const UniqueVoxels<Index>& task, int64_t row) {
  uint64_t key = 0;
  for (int axis = 0; axis < 4; ++axis)
    key = (axis == 0 ? 0 : key << task.bits[axis]) |
          static_cast<uint64_t>(coarse_coord(task, row, axis));
  return key;
}

template <class Index>
FASTSHAPE_HOST_DEVICE int key_bits(const UniqueVoxels<Index>& task) {
  return task.bits[0] + task.bits[1] + task.bits[2] + task.bits[3];
}

// What entry i of the order writes, if it is the first of its voxel.
template <class Index>
FASTSHAPE_HOST_DEVICE void write_unique(const UniqueVoxels<Index>& task,
                                        const UniqueVoxelsOut<Index>& out, int64_t i) {
  if (i == 0) out.offsets[out.num_unique] = task.num_voxels;
  const int64_t row = task.order[i], voxel = task.index[row];
  if (i > 0 && task.index[task.order[i - 1]] == voxel) return;
  out.offsets[voxel] = i;
  for (int axis = 0; axis < 4; ++axis)
    out.voxels[4 * voxel + axis] = static_cast<Index>(coarse_coord(task, row, axis));
}

namespace cpu {
// Writes index and order, and how many voxels there are.
template <class Index>
void unique_voxels_count(const UniqueVoxels<Index>& task, int64_t* num_unique);
template <class Index>
void unique_voxels_fill(const UniqueVoxels<Index>& task, const UniqueVoxelsOut<Index>& out);
}  // namespace cpu

namespace cuda {
size_t unique_voxels_workspace_bytes(int64_t num_voxels);
template <class Index>
void unique_voxels_count(const UniqueVoxels<Index>& task, void* workspace, int64_t* num_unique,
                         cudaStream_t stream);
template <class Index>
void unique_voxels_fill(const UniqueVoxels<Index>& task, const UniqueVoxelsOut<Index>& out,
                        cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
