// On CUDA: every array has room for a cell, a window and a run of every voxel, and how many there
// are stays on the device; what is behind them sorts behind all.
#include "attention/window_plan.h"
#include "core/block.cuh"
#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"
#include "core/elementwise.cuh"
#include "core/workspace.h"

namespace fastshape::cuda {
namespace {

constexpr uint32_t kNothing = 0xffffffffu;

struct PlanWorkspace {
  int32_t* cell_of;                    // (N + 1,): cells before each voxel, then all
  int32_t* starts;                     // (N + 1,): of every cell
  uint64_t *keys, *sorted_keys;        // (N,)
  uint32_t *cells, *sorted_cells;      // (N,): cells by their windows
  uint32_t *numbers, *sorted_numbers;  // (N,): batches; lengths of windows; places of windows
  int32_t* window_of;                  // (N + 1,): windows before each sorted cell, then all
  int32_t* positions;                  // (N + 1,): voxels before each sorted cell
  int32_t* first_cells;                // (N + 1,): of every window, in the order of keys
  uint32_t *windows, *sorted_windows;  // (N,): windows by length
  int32_t* cell_offsets;               // (N + 1,): cells before each window of the plan
  int32_t* begins_run;                 // (N + 1,): by the cells' places in the plan; then scanned
  int32_t *run_row, *run_position;     // (N,): the same
  unsigned char *sort, *scan;
  size_t sort_bytes, scan_bytes;
  size_t bytes;
};

PlanWorkspace plan_workspace(void* begin, int64_t n) {
  const char* op = "window_plan";
  WorkspaceCutter cutter(begin);
  PlanWorkspace w{};
  w.cell_of = cutter.take<int32_t>(n + 1);
  w.starts = cutter.take<int32_t>(n + 1);
  w.keys = cutter.take<uint64_t>(n);
  w.sorted_keys = cutter.take<uint64_t>(n);
  w.cells = cutter.take<uint32_t>(n);
  w.sorted_cells = cutter.take<uint32_t>(n);
  w.numbers = cutter.take<uint32_t>(n);
  w.sorted_numbers = cutter.take<uint32_t>(n);
  w.window_of = cutter.take<int32_t>(n + 1);
  w.positions = cutter.take<int32_t>(n + 1);
  w.first_cells = cutter.take<int32_t>(n + 1);
  w.windows = cutter.take<uint32_t>(n);
  w.sorted_windows = cutter.take<uint32_t>(n);
  w.cell_offsets = cutter.take<int32_t>(n + 1);
  w.begins_run = cutter.take<int32_t>(n + 1);
  w.run_row = cutter.take<int32_t>(n);
  w.run_position = cutter.take<int32_t>(n);
  const size_t by_key = device_sort_pairs_workspace_bytes<uint64_t>(op, n);
  const size_t by_number = device_sort_pairs_workspace_bytes<uint32_t>(op, n);
  w.sort_bytes = by_key > by_number ? by_key : by_number;
  w.sort = cutter.take<unsigned char>(static_cast<int64_t>(w.sort_bytes));
  w.scan_bytes = device_exclusive_scan_workspace_bytes<int32_t>(op, n + 1);
  w.scan = cutter.take<unsigned char>(static_cast<int64_t>(w.scan_bytes));
  w.bytes = cutter.bytes();
  return w;
}

__device__ void lower(int64_t* at, int64_t value) {
  atomicMin(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
}

// Whether a cell begins at each voxel; the checks.
__global__ void voxels_kernel(WindowPlan plan, PlanWorkspace w) {
  const int64_t i = thread_index();
  unsigned most = 0;
  if (i < plan.count) {
    const int32_t* const voxel = plan.coords + 4 * i;
    if (!is_voxel(voxel)) {
      lower(&plan.counts->bad_row, i);
    } else {
      most = static_cast<unsigned>(max(voxel[1], max(voxel[2], voxel[3])));
      if (i > 0 && !in_order(voxel - 4, voxel)) lower(&plan.counts->unordered_row, i);
    }
    w.cell_of[i] = i == 0 || !same_cell(plan, voxel - 4, voxel);
  } else if (i == plan.count) {
    w.cell_of[i] = 0;
  }
  most = warp_reduce(most, Maximum());
  if (lane_id() == 0)
    atomicMax(reinterpret_cast<unsigned long long*>(&plan.counts->max_coord),
              static_cast<unsigned long long>(most));
}

__global__ void starts_kernel(WindowPlan plan, PlanWorkspace w) {
  const int64_t i = thread_index();
  if (i > plan.count) return;
  if (i == plan.count || w.cell_of[i + 1] != w.cell_of[i])
    w.starts[w.cell_of[i]] = static_cast<int32_t>(i);
}

__global__ void cells_kernel(WindowPlan plan, PlanWorkspace w) {
  const int64_t c = thread_index();
  if (c >= plan.count) return;
  const bool there = c < w.cell_of[plan.count];
  w.keys[c] =
      there ? window_key(plan, plan.coords + 4 * static_cast<int64_t>(w.starts[c])) : ~uint64_t{0};
  w.cells[c] = static_cast<uint32_t>(c);
}

__device__ uint32_t batch_of_cell(const WindowPlan& plan, const PlanWorkspace& w, uint32_t cell) {
  return static_cast<uint32_t>(plan.coords[4 * static_cast<int64_t>(w.starts[cell])]);
}

__global__ void batches_kernel(WindowPlan plan, PlanWorkspace w) {
  const int64_t j = thread_index();
  if (j >= plan.count) return;
  w.numbers[j] = j < w.cell_of[plan.count] ? batch_of_cell(plan, w, w.sorted_cells[j]) : kNothing;
}

// `cells` are now in the order of windows.
__global__ void window_begins_kernel(WindowPlan plan, PlanWorkspace w) {
  const int64_t j = thread_index();
  if (j > plan.count) return;
  bool begins = false;
  int32_t length = 0;
  if (j < w.cell_of[plan.count]) {
    const uint32_t cell = w.cells[j];
    const int32_t* const voxel = plan.coords + 4 * static_cast<int64_t>(w.starts[cell]);
    begins = true;
    if (j > 0) {
      const int32_t* const former =
          plan.coords + 4 * static_cast<int64_t>(w.starts[w.cells[j - 1]]);
      begins = former[0] != voxel[0] || window_key(plan, former) != window_key(plan, voxel);
    }
    length = w.starts[cell + 1] - w.starts[cell];
  }
  w.window_of[j] = begins;
  w.positions[j] = length;
}

// Scanned: window_of[j + 1] - 1 is cell j's window.
__global__ void first_cells_kernel(WindowPlan plan, PlanWorkspace w) {
  const int64_t j = thread_index();
  if (j > plan.count) return;
  const int32_t cells = w.cell_of[plan.count];
  if (j == cells)
    w.first_cells[w.window_of[plan.count]] = cells;
  else if (j < cells && w.window_of[j + 1] != w.window_of[j])
    w.first_cells[w.window_of[j]] = static_cast<int32_t>(j);
}

__device__ int32_t window_length(const PlanWorkspace& w, int64_t window) {
  return w.positions[w.first_cells[window + 1]] - w.positions[w.first_cells[window]];
}

__global__ void lengths_kernel(WindowPlan plan, PlanWorkspace w) {
  const int64_t i = thread_index();
  if (i >= plan.count) return;
  const bool there = i < w.window_of[plan.count];
  w.numbers[i] = there ? 0x7fffffffu - static_cast<uint32_t>(window_length(w, i)) : kNothing;
  w.windows[i] = static_cast<uint32_t>(i);
}

__global__ void sizes_kernel(WindowPlan plan, PlanWorkspace w) {
  const int64_t i = thread_index();
  if (i > plan.count) return;
  const bool there = i < w.window_of[plan.count];
  const int64_t window = there ? w.sorted_windows[i] : 0;
  plan.offsets[i] = there ? window_length(w, window) : 0;
  w.cell_offsets[i] = there ? w.first_cells[window + 1] - w.first_cells[window] : 0;
  w.begins_run[i] = 0;
  if (there) w.numbers[window] = static_cast<uint32_t>(i);
  if (i == 0) plan.counts->max_length = plan.offsets[0];
}

// Every cell to its place in the plan; `numbers` are the windows' places.
__global__ void places_kernel(WindowPlan plan, PlanWorkspace w) {
  const int64_t j = thread_index();
  if (j >= w.cell_of[plan.count]) return;
  const int64_t window = w.window_of[j + 1] - 1, i = w.numbers[window];
  const int32_t first = w.first_cells[window];
  const uint32_t cell = w.cells[j];
  const int64_t place = w.cell_offsets[i] + (j - first);
  w.run_row[place] = w.starts[cell];
  w.run_position[place] = plan.offsets[i] + (w.positions[j] - w.positions[first]);
  w.begins_run[place] = j == first || w.starts[w.cells[j - 1] + 1] != w.starts[cell];
}

// Scanned: begins_run[place] runs before that place.
__global__ void runs_kernel(WindowPlan plan, PlanWorkspace w) {
  const int64_t place = thread_index();
  if (place > plan.count) return;
  const int32_t cells = w.cell_of[plan.count], windows = w.window_of[plan.count];
  if (place < cells && w.begins_run[place + 1] != w.begins_run[place]) {
    plan.run_starts[w.begins_run[place]] = w.run_row[place];
    plan.run_positions[w.begins_run[place]] = w.run_position[place];
  }
  if (place <= windows) plan.run_offsets[place] = w.begins_run[w.cell_offsets[place]];
  if (place == 0) {
    plan.counts->num_windows = windows;
    plan.counts->num_runs = w.begins_run[cells];
    plan.run_positions[w.begins_run[cells]] = static_cast<int32_t>(plan.count);
  }
}

__global__ void begin_kernel(WindowPlan plan) {
  *plan.counts = {0, 0, 0, 0, plan.count, plan.count};
  plan.offsets[0] = plan.run_offsets[0] = plan.run_positions[0] = 0;
}

}  // namespace

size_t window_plan_workspace_bytes(int64_t count) { return plan_workspace(nullptr, count).bytes; }

void window_plan(const WindowPlan& plan, void* workspace, size_t workspace_bytes,
                 cudaStream_t stream) {
  const char* op = "window_plan";
  const int64_t n = plan.count;
  launch(op, begin_kernel, dim3(1), dim3(1), 0, stream, plan);
  if (n == 0) return;
  const PlanWorkspace w = plan_workspace(workspace, n);
  FASTSHAPE_CHECK_VALUE(workspace_bytes >= w.bytes, op, ": the workspace has ", workspace_bytes,
                        " bytes, ", w.bytes, " are needed");
  const auto scan = [&](int32_t* numbers) {
    device_exclusive_scan<int32_t>(op, w.scan, w.scan_bytes, numbers, numbers, n + 1, stream);
  };
  const auto run = [&](void (*kernel)(WindowPlan, PlanWorkspace)) {
    launch(op, kernel, blocks_for(n + 1), dim3(kBlock), 0, stream, plan, w);
  };
  run(voxels_kernel);
  scan(w.cell_of);
  run(starts_kernel);
  run(cells_kernel);
  device_sort_pairs<uint64_t>(op, w.sort, w.sort_bytes, w.keys, w.sorted_keys, w.cells,
                              w.sorted_cells, n, stream);
  run(batches_kernel);
  device_sort_pairs<uint32_t>(op, w.sort, w.sort_bytes, w.numbers, w.sorted_numbers, w.sorted_cells,
                              w.cells, n, stream);
  run(window_begins_kernel);
  scan(w.window_of);
  scan(w.positions);
  run(first_cells_kernel);
  run(lengths_kernel);
  device_sort_pairs<uint32_t>(op, w.sort, w.sort_bytes, w.numbers, w.sorted_numbers, w.windows,
                              w.sorted_windows, n, stream);
  run(sizes_kernel);
  scan(plan.offsets);
  scan(w.cell_offsets);
  run(places_kernel);
  scan(w.begins_run);
  run(runs_kernel);
}

}  // namespace fastshape::cuda
