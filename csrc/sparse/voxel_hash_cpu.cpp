#include <algorithm>

#include "core/parallel.h"
#include "sparse/voxel_hash.h"

namespace fastshape::cpu {
namespace {

constexpr int64_t kPiece = 4096;  // voxels

// The old value.
template <class T>
T atomic_minimum(T* address, T value) {
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (value < old && !__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED)) {
  }
  return old;
}

template <class Index>
void insert(const VoxelHash<Index>& task, int32_t row, uint64_t* duplicate) {
  const Voxel voxel = voxel_at(task.coords, row);
  for (uint64_t slot = first_slot(voxel, task.num_slots);; slot = next_slot(slot, task.num_slots)) {
    int32_t old = kNoRow;
    if (__atomic_compare_exchange_n(task.slots + slot, &old, row, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED))
      return;
    if (!is_voxel_at(task.coords, old, voxel)) continue;
    old = atomic_minimum(task.slots + slot, row);
    atomic_minimum(duplicate, static_cast<uint64_t>(std::max(old, row)));
    return;
  }
}

}  // namespace

template <class Index>
void voxel_hash(const VoxelHash<Index>& task, int64_t* duplicate) {
  std::fill(task.slots, task.slots + task.num_slots, kNoRow);
  uint64_t lowest = ~uint64_t{0};
  parallel_for(task.num_voxels, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) insert(task, static_cast<int32_t>(row), &lowest);
  });
  *duplicate = static_cast<int64_t>(lowest);
}

template void voxel_hash<int32_t>(const VoxelHash<int32_t>&, int64_t*);
template void voxel_hash<int64_t>(const VoxelHash<int64_t>&, int64_t*);

}  // namespace fastshape::cpu
