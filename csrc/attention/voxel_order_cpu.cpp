#include "attention/voxel_order.h"

#include <algorithm>
#include <vector>

#include "core/radix_sort.h"

namespace fastshape::cpu {
namespace {

int bits_of(uint64_t x) { return x == 0 ? 0 : 64 - __builtin_clzll(x); }

}  // namespace

template <class Integer>
void voxel_order(const VoxelOrder<Integer>& task) {
  std::vector<KeyIndex> items(static_cast<size_t>(task.count));
  uint64_t keys = 0, batches = 0;  // the bits that occur
  for (int64_t i = 0; i < task.count; ++i) {
    const Integer* voxel = task.coords + 4 * i;
    if (!is_voxel(voxel)) {
      *task.bad_row = std::min(*task.bad_row, i);
      return;
    }
    items[static_cast<size_t>(i)] = {voxel_key(voxel), static_cast<uint32_t>(i)};
    keys |= items[static_cast<size_t>(i)].key;
    batches |= static_cast<uint64_t>(voxel[0]);
  }
  const int key_bits = bits_of(keys), batch_bits = bits_of(batches);
  const auto batch_of = [&](const KeyIndex& item) {
    return static_cast<uint64_t>(task.coords[4 * static_cast<int64_t>(item.index)]);
  };
  if (key_bits + batch_bits <= 64) {
    if (batch_bits > 0)
      for (KeyIndex& item : items) item.key |= batch_of(item) << key_bits;
    radix_sort(items, key_bits + batch_bits);
  } else {
    radix_sort(items, key_bits);
    for (KeyIndex& item : items) item.key = batch_of(item);
    radix_sort(items, batch_bits);
  }
  for (int64_t i = 0; i < task.count; ++i) task.order[i] = items[static_cast<size_t>(i)].index;
}

template void voxel_order<int32_t>(const VoxelOrder<int32_t>&);
template void voxel_order<int64_t>(const VoxelOrder<int64_t>&);

}  // namespace fastshape::cpu
