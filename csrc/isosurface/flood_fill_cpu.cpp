#include "isosurface/flood_fill.h"

#include <vector>

#include "core/parallel.h"

namespace fastshape::cpu {
namespace {

constexpr int64_t kGrain = 4096;

struct Relaxed {
  int32_t load(const int32_t* address) const { return __atomic_load_n(address, __ATOMIC_RELAXED); }
  void store(int32_t* address, int32_t value) const {
    __atomic_store_n(address, value, __ATOMIC_RELAXED);
  }
  int32_t swap_if(int32_t* address, int32_t expected, int32_t value) const {
    __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED,
                                __ATOMIC_RELAXED);
    return expected;
  }
};

}  // namespace

void flood_fill(const FloodFill& task) {
  const int64_t num_rows = flood_rows(task);
  std::vector<int64_t> row_begin(num_rows + 1);
  std::vector<int32_t> parent(flood_nodes(task));
  const FloodForest forest{parent.data(), row_begin.data()};
  parallel_for(num_rows + 1, kGrain, [&](int64_t begin, int64_t end) {
    int64_t at = flood_lower_bound(task.solid, 0, task.num_solid, begin * task.size_z);
    for (int64_t row = begin; row < end; ++row) {
      while (at < task.num_solid && task.solid[at] < row * task.size_z) ++at;
      row_begin[row] = at;
    }
  });
  parallel_for(flood_nodes(task), 16 * kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t node = begin; node < end; ++node) parent[node] = static_cast<int32_t>(node);
  });
  parallel_for(num_rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t count = row_begin[row + 1] - row_begin[row];
      for (int64_t j = 0; j <= count; ++j) flood_join_gap(task, forest, row, j, Relaxed());
    }
  });
  parallel_for(task.num_points, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      task.reached[i] = flood_reached(task, forest, task.points[i], Relaxed());
  });
}

}  // namespace fastshape::cpu
