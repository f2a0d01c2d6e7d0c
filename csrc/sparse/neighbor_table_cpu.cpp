#include "sparse/neighbor_table.h"

#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "core/radix_sort.h"

namespace fastshape::cpu {
namespace {

constexpr int64_t kPiece = 1024;  // rows

// Of a list to itself, where neighbors are so both ways: half of them are looked up. No voxel is
// there twice, so every entry is written once.
template <class Index>
void neighbors_both_ways(const NeighborTable<Index>& task) {
  constexpr int kWidth = 27, kMiddle = 13;
  std::fill(task.rows, task.rows + kWidth * task.num_queries, kNoRow);
  parallel_for(task.num_queries, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const Voxel voxel = voxel_at(task.queries, m);
      task.rows[kWidth * m + kMiddle] = static_cast<int32_t>(m);
      for (int k = 0; k < kMiddle; ++k) {
        const int64_t row = neighbor_row(task, voxel, k);
        if (row < 0) continue;
        task.rows[kWidth * m + k] = static_cast<int32_t>(row);
        task.rows[kWidth * row + kWidth - 1 - k] = static_cast<int32_t>(m);
      }
    }
  });
}

}  // namespace

template <class Index>
void neighbor_table(const NeighborTable<Index>& task) {
  if (task.queries == task.hash.coords && task.kernel_size == 3 && task.stride == 1)
    return neighbors_both_ways(task);
  const int width = task.kernel_size * task.kernel_size * task.kernel_size;
  parallel_for(task.num_queries, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const Voxel query = voxel_at(task.queries, m);
      for (int k = 0; k < width; ++k) task.rows[width * m + k] = neighbor_row(task, query, k);
    }
  });
}

template void neighbor_table<int32_t>(const NeighborTable<int32_t>&);
template void neighbor_table<int64_t>(const NeighborTable<int64_t>&);

void invert_table(const InvertTable& task) {
  std::fill(task.inverse, task.inverse + task.num_inverse * task.width, kNoRow);
  parallel_for(task.num_rows, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      for (int64_t k = 0; k < task.width; ++k) {
        const int64_t row = task.rows[task.width * m + k];
        if (row >= 0 && row < task.num_inverse)
          task.inverse[task.width * row + k] = static_cast<int32_t>(m);
      }
    }
  });
}

void order_rows(const OrderRows& task) {
  std::vector<KeyIndex> rows(static_cast<size_t>(task.num_rows));
  for (int64_t m = 0; m < task.num_rows; ++m)
    rows[static_cast<size_t>(m)] = {offset_bits(task, m), static_cast<uint32_t>(m)};
  radix_sort(rows, task.width);
  for (size_t i = 0; i < rows.size(); ++i) task.order[i] = static_cast<int32_t>(rows[i].index);
}

}  // namespace fastshape::cpu
