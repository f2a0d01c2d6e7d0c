// A hash map from voxels (batch, x, y, z) to their rows, open addressing, in an array of row
// numbers.
//
// A slot holds the number of a row, and the voxel is compared in the list itself, so that
// coordinates have no bits to fit into. Where a voxel is there twice its first row is found,
// whoever wrote first; which slot a row has depends on the order of writing, what a lookup gives
// does not. Voxels of a block of 2 x 2 x 4 have the sixteen slots of a cache line, as neighbors are
// asked for together.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"

namespace fastshape {

constexpr int64_t kMaxRows = (int64_t{1} << 31) - 1;  // rows of voxels are counted in 32 bits
constexpr int32_t kNoRow = -1;

// Index: int32_t or int64_t.
template <class Index>
struct VoxelHash {
  const Index* coords;  // (num_voxels, 4)
  int64_t num_voxels;   // at most kMaxRows
  int32_t* slots;       // (num_slots,) rows, kNoRow where empty
  int64_t num_slots;    // voxel_hash_slots(num_voxels)
};

// A power of two, at most half of it full.
FASTSHAPE_HOST_DEVICE int64_t voxel_hash_slots(int64_t num_voxels) {
  int64_t slots = 64;
  while (slots < 2 * num_voxels) slots *= 2;
  return slots;
}

struct Voxel {
  int64_t batch, x, y, z;
};

template <class Index>
FASTSHAPE_HOST_DEVICE Voxel voxel_at(const Index* coords, int64_t row) {
  const Index* c = coords + 4 * row;
  return {static_cast<int64_t>(c[0]), static_cast<int64_t>(c[1]), static_cast<int64_t>(c[2]),
          static_cast<int64_t>(c[3])};
}

template <class Index>
FASTSHAPE_HOST_DEVICE bool is_voxel_at(const Index* coords, int64_t row, const Voxel& voxel) {
  const Voxel other = voxel_at(coords, row);
  return other.z == voxel.z && other.y == voxel.y && other.x == voxel.x &&
         other.batch == voxel.batch;
}

// Where the search for a voxel begins.
FASTSHAPE_HOST_DEVICE uint64_t first_slot(const Voxel& voxel, int64_t num_slots) {
  uint64_t hash = static_cast<uint64_t>(voxel.batch) * 0x9e3779b97f4a7c15u +
                  static_cast<uint64_t>(voxel.x >> 1) * 0xc2b2ae3d27d4eb4fu +
                  static_cast<uint64_t>(voxel.y >> 1) * 0x165667b19e3779f9u +
                  static_cast<uint64_t>(voxel.z >> 2) * 0xd6e8feb86659fd93u;
  hash = (hash ^ hash >> 32) * 0xff51afd7ed558ccdu;
  hash ^= hash >> 29;
  const uint64_t local =
      static_cast<uint64_t>((voxel.x & 1) << 3 | (voxel.y & 1) << 2 | (voxel.z & 3));
  return (hash ^ local) & static_cast<uint64_t>(num_slots - 1);
}

// The same place of the next cache line, moved by one: odd, so that every slot has its turn.
FASTSHAPE_HOST_DEVICE uint64_t next_slot(uint64_t slot, int64_t num_slots) {
  return (slot + 17) & static_cast<uint64_t>(num_slots - 1);
}

template <class Index>
FASTSHAPE_HOST_DEVICE int32_t find_voxel(const VoxelHash<Index>& hash, const Voxel& voxel) {
  for (uint64_t slot = first_slot(voxel, hash.num_slots);; slot = next_slot(slot, hash.num_slots)) {
    const int32_t row = hash.slots[slot];
    if (row == kNoRow || is_voxel_at(hash.coords, row, voxel)) return row;
  }
}

namespace cpu {
// Fills the slots. *duplicate: the lowest row that has the voxel of an earlier one, -1 if none has.
template <class Index>
void voxel_hash(const VoxelHash<Index>& task, int64_t* duplicate);
}  // namespace cpu

namespace cuda {
template <class Index>
void voxel_hash(const VoxelHash<Index>& task, int64_t* duplicate, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
