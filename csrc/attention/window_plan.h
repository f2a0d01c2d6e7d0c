// Which rows of voxels in voxel order lie in which window.
//
// The voxels of one cell, a box whose side is a power of two that divides the window's side and the
// shift, are a run of rows, and no window divides a cell. So cells are sorted by their windows, not
// voxels; windows by length, the longest first, of equal ones the one with the smaller (batch, x,
// y, z) first; and runs of a window that follow each other become one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/voxel_order.h"
#include "core/host_device.h"

namespace fastshape {

constexpr int kWindowBits = kVoxelBits + 1;  // of a window's place along an axis

struct WindowPlanCounts {
  int64_t num_windows;
  int64_t num_runs;
  int64_t max_length;
  int64_t max_coord;
  int64_t bad_row;        // the first that is_voxel denies, or `count`
  int64_t unordered_row;  // the first that is not in voxel order, or `count`
};

// The arrays have room for a window and a run of every voxel.
struct WindowPlan {
  const int32_t* coords;   // (count, 4)
  int64_t count;           // below 2^31
  int64_t window, shift;   // shift below window
  int cell_bits;           // a cell's side is 2^cell_bits
  int32_t* offsets;        // (count + 1,)
  int32_t* run_offsets;    // (count + 1,)
  int32_t* run_starts;     // (count,)
  int32_t* run_positions;  // (count + 1,)
  WindowPlanCounts* counts;
};

// The largest power of two that divides both, as far as coordinates go.
inline int cell_bits_of(int64_t window, int64_t shift) {
  const int bits = __builtin_ctzll(static_cast<unsigned long long>(window | shift));
  return bits < kVoxelBits ? bits : kVoxelBits;
}

FASTSHAPE_HOST_DEVICE uint64_t window_along(const WindowPlan& plan, int32_t coord) {
  return static_cast<uint64_t>((coord + plan.shift) / plan.window);
}
// x, y, z; the number in the batch is beside it.
FASTSHAPE_HOST_DEVICE uint64_t window_key(const WindowPlan& plan, const int32_t* voxel) {
  return window_along(plan, voxel[1]) << 2 * kWindowBits |
         window_along(plan, voxel[2]) << kWindowBits | window_along(plan, voxel[3]);
}
FASTSHAPE_HOST_DEVICE bool same_cell(const WindowPlan& plan, const int32_t* a, const int32_t* b) {
  bool same = a[0] == b[0];
  for (int axis = 1; axis < 4; ++axis)
    same = same && a[axis] >> plan.cell_bits == b[axis] >> plan.cell_bits;
  return same;
}
FASTSHAPE_HOST_DEVICE bool in_order(const int32_t* first, const int32_t* second) {
  return first[0] < second[0] || (first[0] == second[0] && voxel_key(first) <= voxel_key(second));
}

namespace cpu {
void window_plan(const WindowPlan& plan);
}
namespace cuda {
size_t window_plan_workspace_bytes(int64_t count);
void window_plan(const WindowPlan& plan, void* workspace, size_t workspace_bytes,
                 cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
