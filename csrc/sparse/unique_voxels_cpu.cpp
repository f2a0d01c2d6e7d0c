#include "sparse/unique_voxels.h"

#include <vector>

#include "core/parallel.h"
#include "core/radix_sort.h"

namespace fastshape::cpu {
namespace {

constexpr int64_t kPiece = 8192;  // rows

}  // namespace

template <class Index>
void unique_voxels_count(const UniqueVoxels<Index>& task, int64_t* num_unique) {
  std::vector<KeyIndex> rows(static_cast<size_t>(task.num_voxels));
  parallel_for(task.num_voxels, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      rows[static_cast<size_t>(i)] = {coarse_key(task, i), static_cast<uint32_t>(i)};
  });
  bool sorted = true;
  for (size_t i = 1; i < rows.size() && sorted; ++i) sorted = rows[i - 1].key <= rows[i].key;
  if (!sorted) radix_sort(rows, key_bits(task));
  int64_t voxel = -1;
  for (size_t i = 0; i < rows.size(); ++i) {
    voxel += i == 0 || rows[i - 1].key != rows[i].key;
    task.order[i] = static_cast<int32_t>(rows[i].index);
    task.index[rows[i].index] = voxel;
  }
  *num_unique = voxel + 1;
}

template <class Index>
void unique_voxels_fill(const UniqueVoxels<Index>& task, const UniqueVoxelsOut<Index>& out) {
  if (task.num_voxels == 0) out.offsets[0] = 0;
  parallel_for(task.num_voxels, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) write_unique(task, out, i);
  });
}

#define FASTSHAPE_INSTANTIATE(Index)                                              \
  template void unique_voxels_count<Index>(const UniqueVoxels<Index>&, int64_t*); \
  template void unique_voxels_fill<Index>(const UniqueVoxels<Index>&,             \
                                          const UniqueVoxelsOut<Index>&);
FASTSHAPE_INSTANTIATE(int32_t)
FASTSHAPE_INSTANTIATE(int64_t)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cpu
