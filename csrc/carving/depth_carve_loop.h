// The CPU's loop over voxels, compiled once per instruction set: include it from one .cpp each.
//
// Blocks of 64 voxels go through the views together, until all of a block are decided.
#pragma once

#include "carving/bit_words.h"
#include "carving/depth_carve_cpu.h"
#include "carving/depth_carve_lanes.h"

namespace fastshape {
namespace {

constexpr int kBlockVoxels = 64;

inline uint64_t lowest_bits(int count) {
  return count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

// Bit i: voxel `begin` + i is kept. All `count` of them, at most 64, are of one shape of the batch.
template <class T>
inline uint64_t carve_block(const DepthCarve<T>& task, int64_t begin, int count) {
  uint64_t kept = 0;
  for (int i = 0; i < count; ++i) kept |= static_cast<uint64_t>(is_kept(task, begin + i)) << i;
  return kept;
}

#if defined(FASTSHAPE_CARVE_LANES)

inline Lanes row_times(const float* row, Lanes x, Lanes y, Lanes z) {
  return all(row[0]) * x + all(row[1]) * y + all(row[2]) * z + all(row[3]);
}

// A block on its way through one view.
struct BlockView {
  float depth[kBlockVoxels];     // of the centers that are asked about
  int32_t pixels[kBlockVoxels];  // of those that are seen, 0 for others
  uint64_t seen;
};

// The first half of view_keeps for lanes i and on: their depth and pixels. The pixels are
// prefetched, since the centers of voxels that come in no order are all over the picture.
inline void project_lanes(const DepthCarve<float>& task, int64_t view, Lanes x, Lanes y, Lanes z,
                          uint32_t asked, int i, BlockView& block) {
  const float* matrix = task.matrices + 16 * view;
  const Lanes w = row_times(matrix + 12, x, y, z);
  const Lanes depth =
      task.depth_rows == nullptr ? w : row_times(task.depth_rows + 4 * view, x, y, z);
  uint32_t seen = less(all(0), w) & at_most(all(task.near), depth) & at_most(depth, all(task.far));
  const Lanes one = all(1), inverse = one / w;
  const Lanes right = row_times(matrix, x, y, z) * inverse;
  const Lanes up = row_times(matrix + 4, x, y, z) * inverse;
  const float width = static_cast<float>(task.width), height = static_cast<float>(task.height);
  const Lanes column = (one + right) * all(width * 0.5f);
  const Lanes row = (task.bottom_up ? one + up : one - up) * all(height * 0.5f);
  seen &= at_most(all(0), column) & less(column, all(width)) & at_most(all(0), row) &
          less(row, all(height)) & asked;
  block.seen |= static_cast<uint64_t>(seen) << i;
  store(block.depth + i, depth);
  store_pixels(block.pixels + i, static_cast<int32_t>(task.width), row, column, seen);
  const float* map = task.depth + view * task.height * task.width;
  for (int k = 0; k < kLanes; ++k) __builtin_prefetch(map + block.pixels[i + k]);
}

// The second half: what the view says of lanes i and on.
inline uint32_t lanes_keep(const DepthCarve<float>& task, int64_t view, int i,
                           const BlockView& block) {
  const auto seen = static_cast<uint32_t>(block.seen >> i);
  const Lanes shown = look_up(task.depth + view * task.height * task.width, block.pixels + i);
  const Lanes infinity = all(__builtin_huge_valf());
  const uint32_t surface = less(all(0), shown) & less(shown, infinity);
  const uint32_t background = equal(shown, infinity);
  uint32_t kept = seen & surface & at_most(load(block.depth + i), shown + all(task.threshold));
  if (task.keep_background) kept |= seen & background;
  if (task.keep_invalid) kept |= seen & ~surface & ~background;
  if (task.keep_outside) kept |= ~seen;
  return kept;
}

// The centers of `count` voxels of `columns` integers each.
template <int columns>
inline void load_centers(const DepthCarve<float>& task, int64_t begin, int count,
                         float (&center)[3][kBlockVoxels]) {
  const int32_t* p = task.voxels.coords + columns * begin + columns - 3;
  for (int i = 0; i < count; ++i, p += columns) {
    for (int k = 0; k < 3; ++k) center[k][i] = voxel_center(task, p[k]);
  }
}

inline uint64_t carve_block(const DepthCarve<float>& task, int64_t begin, int count) {
  float center[3][kBlockVoxels];
  if (task.voxels.columns == 3 && count == kBlockVoxels) {
    load_centers<3>(task, begin, kBlockVoxels, center);
  } else {
    __builtin_memset(center, 0, sizeof(center));
    if (task.voxels.columns == 3)
      load_centers<3>(task, begin, count, center);
    else
      load_centers<4>(task, begin, count, center);
  }
  constexpr uint32_t kAll = (1u << (kLanes - 1) << 1) - 1u;
  const uint64_t every = lowest_bits(count);
  uint64_t undecided = every;
  const int64_t first = voxel_batch(task.voxels, begin) * task.num_views;
  for (int64_t view = first; view < first + task.num_views && undecided != 0; ++view) {
    BlockView block;
    block.seen = 0;
    for (int i = 0; i < count; i += kLanes) {
      const uint32_t asked = static_cast<uint32_t>(undecided >> i) & kAll;
      if (asked == 0) continue;
      project_lanes(task, view, load(center[0] + i), load(center[1] + i), load(center[2] + i),
                    asked, i, block);
    }
    uint64_t decided = 0;
    for (int i = 0; i < count; i += kLanes) {
      const uint32_t asked = static_cast<uint32_t>(undecided >> i) & kAll;
      if (asked == 0) continue;
      const uint32_t kept = lanes_keep(task, view, i, block);
      decided |= static_cast<uint64_t>(asked & (task.any_view ? kept : ~kept)) << i;
    }
    undecided &= ~decided;
  }
  return task.any_view ? every & ~undecided : undecided;
}

#endif

// Voxels from `begin` on that are of one shape of the batch, at most a block of them.
inline int run_length(const VoxelList& list, int64_t begin, int64_t end) {
  const int most = static_cast<int>(end - begin < kBlockVoxels ? end - begin : kBlockVoxels);
  if (list.columns == 3) return most;
  int count = 1;
  while (count < most && voxel_batch(list, begin + count) == voxel_batch(list, begin)) ++count;
  return count;
}

// Bit i: voxel `begin` + i is in the grid.
inline uint64_t find_good(const BitGrid& g, const VoxelList& list, int64_t begin, int count) {
  const int32_t* p = voxel_xyz(list, begin);
  const auto size = static_cast<uint32_t>(g.size_x);  // the grid is a cube
  uint32_t bad = 0;
  for (int i = 0; i < count; ++i, p += list.columns)
    for (int k = 0; k < 3; ++k) bad |= static_cast<uint32_t>(static_cast<uint32_t>(p[k]) >= size);
  const int64_t batch = voxel_batch(list, begin);
  if (bad == 0 && batch >= 0 && batch < g.batch) return lowest_bits(count);
  uint64_t good = 0;
  for (int i = 0; i < count; ++i)
    good |= static_cast<uint64_t>(is_in_grid(g, list, begin + i)) << i;
  return good;
}

template <class T>
void carve_rows_loop(const DepthCarve<T>& task, int64_t begin, int64_t end, int64_t* bad_row) {
  const BitGrid grid = extent(task);
  auto* mask = reinterpret_cast<uint8_t*>(task.mask);
  for (int64_t i = begin; i < end;) {
    const int count = run_length(task.voxels, i, end);
    const uint64_t good = find_good(grid, task.voxels, i, count);
    if (good != lowest_bits(count)) {
      const int64_t bad = i + __builtin_ctzll(~good);
      if (bad < *bad_row) *bad_row = bad;
    }
    // A block without good voxels may be of no shape at all.
    const uint64_t kept = good == 0 ? 0 : carve_block(task, i, count) & good;
    if (count == kBlockVoxels) {
      unpack_word(kept, mask + i);
    } else {
      for (int k = 0; k < count; ++k) mask[i + k] = kept >> k & 1;
    }
    i += count;
  }
}

}  // namespace

#define FASTSHAPE_DEFINE_CARVE_ROWS(suffix)                                            \
  namespace cpu {                                                                      \
  void carve_rows_##suffix(const DepthCarve<float>& task, int64_t begin, int64_t end,  \
                           int64_t* bad_row) {                                         \
    carve_rows_loop(task, begin, end, bad_row);                                        \
  }                                                                                    \
  void carve_rows_##suffix(const DepthCarve<double>& task, int64_t begin, int64_t end, \
                           int64_t* bad_row) {                                         \
    carve_rows_loop(task, begin, end, bad_row);                                        \
  }                                                                                    \
  }

}  // namespace fastshape
