#include <algorithm>
#include <vector>

#include "attention/window_plan.h"
#include "core/radix_sort.h"

namespace fastshape::cpu {
namespace {

int bits_of(uint64_t x) { return x == 0 ? 0 : 64 - __builtin_clzll(x); }

struct Window {
  int64_t first_cell, end_cell, length;
};

}  // namespace

void window_plan(const WindowPlan& plan) {
  const int64_t n = plan.count;
  WindowPlanCounts& counts = *plan.counts;
  counts = {0, 0, 0, 0, n, n};
  plan.offsets[0] = plan.run_offsets[0] = plan.run_positions[0] = 0;

  std::vector<int32_t> starts;  // of cells
  std::vector<KeyIndex> items;
  uint64_t batches = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t* const voxel = plan.coords + 4 * i;
    if (!is_voxel(voxel)) {
      counts.bad_row = i;
      return;
    }
    if (i > 0 && !in_order(voxel - 4, voxel)) {
      counts.unordered_row = i;
      return;
    }
    for (int axis = 1; axis < 4; ++axis)
      counts.max_coord = std::max<int64_t>(counts.max_coord, voxel[axis]);
    if (i > 0 && same_cell(plan, voxel - 4, voxel)) continue;
    items.push_back({window_key(plan, voxel), static_cast<uint32_t>(starts.size())});
    starts.push_back(static_cast<int32_t>(i));
    batches |= static_cast<uint64_t>(voxel[0]);
  }
  const auto num_cells = static_cast<int64_t>(starts.size());
  starts.push_back(static_cast<int32_t>(n));
  radix_sort(items, 3 * kWindowBits);
  const auto batch_of = [&](const KeyIndex& item) {
    return plan.coords[4 * static_cast<int64_t>(starts[item.index])];
  };
  if (batches != 0) {
    std::vector<KeyIndex> by_batch(items);
    for (int64_t j = 0; j < num_cells; ++j) {
      auto& item = by_batch[static_cast<size_t>(j)];
      item = {static_cast<uint64_t>(batch_of(item)), static_cast<uint32_t>(j)};
    }
    radix_sort(by_batch, bits_of(batches));
    std::vector<KeyIndex> former(items);
    for (int64_t j = 0; j < num_cells; ++j)
      items[static_cast<size_t>(j)] = former[by_batch[static_cast<size_t>(j)].index];
  }

  std::vector<Window> windows;
  const auto length_of = [&](const KeyIndex& cell) {
    return static_cast<int64_t>(starts[cell.index + 1]) - starts[cell.index];
  };
  for (int64_t j = 0; j < num_cells; ++j) {
    const KeyIndex& cell = items[static_cast<size_t>(j)];
    const KeyIndex* const former = j == 0 ? nullptr : &cell - 1;
    if (former == nullptr || former->key != cell.key || batch_of(*former) != batch_of(cell))
      windows.push_back({j, j, 0});
    windows.back().end_cell = j + 1;
    windows.back().length += length_of(cell);
    counts.max_length = std::max(counts.max_length, windows.back().length);
  }
  std::vector<KeyIndex> order;
  order.reserve(windows.size());
  for (const Window& window : windows)
    order.push_back({static_cast<uint64_t>(counts.max_length - window.length),
                     static_cast<uint32_t>(order.size())});
  radix_sort(order, bits_of(static_cast<uint64_t>(counts.max_length)));

  int32_t position = 0;
  int64_t runs = 0;
  for (size_t w = 0; w < order.size(); ++w) {
    const Window& window = windows[order[w].index];
    int32_t end = -1;  // of the former cell
    for (int64_t j = window.first_cell; j < window.end_cell; ++j) {
      const uint32_t cell = items[static_cast<size_t>(j)].index;
      if (starts[cell] != end) {
        plan.run_starts[runs] = starts[cell];
        plan.run_positions[runs++] = position;
      }
      end = starts[cell + 1];
      position += end - starts[cell];
    }
    plan.offsets[w + 1] = position;
    plan.run_offsets[w + 1] = static_cast<int32_t>(runs);
  }
  plan.run_positions[runs] = position;
  counts.num_windows = static_cast<int64_t>(windows.size());
  counts.num_runs = runs;
}

}  // namespace fastshape::cpu
