// Which lattice points water reaches that comes from beyond the border and cannot enter solid
// points.
//
// A lattice point is its flat index (x * Y + y) * Z + z. Water flows along lattice edges (six
// neighbors). The solid is a sorted list, so that time and memory go with it and not with the
// lattice: in each row (all z of one x, y) the gaps between solid points are runs, runs of
// neighboring rows that overlap are joined in a union-find forest, and runs on the border are
// joined with node 0, the water. Roots are hooked to smaller roots only, so a tree that holds node
// 0 has it as its root.
//
// Every gap has a node, also those without points: node 1 + row_begin[row] + row + j is the gap of
// `row` before its solid point j. So nothing needs to be counted before it can be numbered.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"

namespace fastshape {

struct FloodFill {
  const int64_t* points;  // to be asked for, in any order; beyond the lattice is water
  int64_t num_points;
  const int64_t* solid;  // ascending; duplicates and indices beyond the lattice do nothing
  int64_t num_solid;
  int64_t size_x, size_y, size_z;
  bool* reached;  // (num_points,)
};

FASTSHAPE_HOST_DEVICE int64_t flood_rows(const FloodFill& task) {
  return task.size_x * task.size_y;
}
FASTSHAPE_HOST_DEVICE int64_t flood_nodes(const FloodFill& task) {
  return 1 + task.num_solid + flood_rows(task);
}

struct FloodForest {
  int32_t* parent;     // (flood_nodes,)
  int64_t* row_begin;  // (flood_rows + 1,): the first solid point of each row
};

// Free z of one row, end not included; empty where end <= begin.
struct FloodGap {
  int64_t begin, end;
};

// The first of solid[low, high) that is not below `key`.
FASTSHAPE_HOST_DEVICE int64_t flood_lower_bound(const int64_t* solid, int64_t low, int64_t high,
                                                int64_t key) {
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (solid[middle] < key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

FASTSHAPE_HOST_DEVICE FloodGap flood_gap(const FloodFill& task, const int64_t* row_begin,
                                         int64_t row, int64_t j) {
  const int64_t first = row_begin[row], count = row_begin[row + 1] - first;
  const int64_t base = row * task.size_z;
  return {j == 0 ? 0 : task.solid[first + j - 1] - base + 1,
          j == count ? task.size_z : task.solid[first + j] - base};
}

FASTSHAPE_HOST_DEVICE int32_t flood_node(const int64_t* row_begin, int64_t row, int64_t j) {
  return static_cast<int32_t>(1 + row_begin[row] + row + j);
}

// `Access` reads, writes and swaps single nodes so that other threads may do the same: its
// load(p), store(p, value) and swap_if(p, expected, value), which returns what was there.

// Nodes above the root only ever come to hang lower, so halving the path needs no swap.
template <class Access>
FASTSHAPE_HOST_DEVICE int32_t flood_root(int32_t* parent, int32_t node, const Access& access) {
  for (;;) {
    const int32_t above = access.load(parent + node);
    if (above == node) return node;
    const int32_t next = access.load(parent + above);
    if (next == above) return above;
    access.store(parent + node, next);
    node = next;
  }
}

template <class Access>
FASTSHAPE_HOST_DEVICE void flood_join(int32_t* parent, int32_t a, int32_t b, const Access& access) {
  for (;;) {
    a = flood_root(parent, a, access);
    b = flood_root(parent, b, access);
    if (a == b) return;
    const int32_t high = a < b ? b : a, low = a < b ? a : b;
    if (access.swap_if(parent + high, high, low) == high) return;
  }
}

// Joins one gap with the water, if it lies on the border, and with the gaps of the next rows.
template <class Access>
FASTSHAPE_HOST_DEVICE void flood_join_gap(const FloodFill& task, const FloodForest& forest,
                                          int64_t row, int64_t j, const Access& access) {
  const FloodGap gap = flood_gap(task, forest.row_begin, row, j);
  if (gap.begin >= gap.end) return;
  const int32_t node = flood_node(forest.row_begin, row, j);
  const int64_t x = row / task.size_y, y = row % task.size_y;
  if (x == 0 || x == task.size_x - 1 || y == 0 || y == task.size_y - 1 || gap.begin == 0 ||
      gap.end == task.size_z)
    flood_join(forest.parent, node, 0, access);
  for (int side = 0; side < 2; ++side) {
    if (side == 0 ? y + 1 == task.size_y : x + 1 == task.size_x) continue;
    const int64_t other = side == 0 ? row + 1 : row + task.size_y;
    const int64_t first = forest.row_begin[other], last = forest.row_begin[other + 1];
    int64_t k = flood_lower_bound(task.solid, first, last, other * task.size_z + gap.begin) - first;
    for (; k <= last - first; ++k) {
      const FloodGap beside = flood_gap(task, forest.row_begin, other, k);
      if (beside.begin >= gap.end) break;
      if (beside.begin < beside.end && beside.end > gap.begin)
        flood_join(forest.parent, node, flood_node(forest.row_begin, other, k), access);
    }
  }
}

template <class Access>
FASTSHAPE_HOST_DEVICE bool flood_reached(const FloodFill& task, const FloodForest& forest,
                                         int64_t point, const Access& access) {
  const int64_t num_rows = flood_rows(task);
  if (point < 0 || point >= num_rows * task.size_z) return true;
  const int64_t row = point / task.size_z;
  const int64_t first = forest.row_begin[row], last = forest.row_begin[row + 1];
  const int64_t k = flood_lower_bound(task.solid, first, last, point);
  if (k < last && task.solid[k] == point) return false;
  return flood_root(forest.parent, flood_node(forest.row_begin, row, k - first), access) == 0;
}

namespace cpu {
void flood_fill(const FloodFill& task);
}  // namespace cpu

namespace cuda {
size_t flood_fill_workspace_bytes(int64_t num_solid, int64_t num_rows);
void flood_fill(const FloodFill& task, void* workspace, size_t workspace_bytes,
                cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
