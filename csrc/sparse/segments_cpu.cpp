#include "sparse/segments.h"

#include <algorithm>
#include <vector>

#include "core/parallel.h"

namespace fastshape::cpu {
namespace {

constexpr int64_t kPieceElements = 1 << 14;
constexpr int64_t kColumns = 64;  // summed at a time, on the stack

int64_t rows_for(int64_t width) { return std::max<int64_t>(1, kPieceElements / (width + 1)); }

// Columns [begin, begin + count) of row i of the order, the rows to come being fetched: they lie
// anywhere.
template <class T>
const T* row_of(const SegmentReduce<T>& task, int64_t i, int64_t begin, int64_t count) {
  constexpr int64_t kAhead = 8, kLine = 64 / static_cast<int64_t>(sizeof(T));
  if (i + kAhead < task.num_rows) {
    const T* next = task.values + task.width * task.order[i + kAhead] + begin;
    for (int64_t j = 0; j < count; j += kLine) __builtin_prefetch(next + j);
  }
  return task.values + task.width * task.order[i] + begin;
}

// At most kColumns columns of segment s.
template <class T>
void reduce_sum(const SegmentReduce<T>& task, int64_t s, int64_t begin, int64_t count) {
  using W = typename Wide<T>::type;
  W sum[kColumns] = {};
  for (int64_t i = task.offsets[s]; i < task.offsets[s + 1]; ++i) {
    const T* row = row_of(task, i, begin, count);
    for (int64_t j = 0; j < count; ++j) sum[j] += widen(row[j]);
  }
  const int64_t rows = task.offsets[s + 1] - task.offsets[s];
  const W divisor = static_cast<W>(std::max<int64_t>(1, divisor_of(task.reduction, rows)));
  T* out = task.out + task.width * s + begin;
  for (int64_t j = 0; j < count; ++j) narrow(sum[j] / divisor, out + j);
}

template <class T>
void reduce_max(const SegmentReduce<T>& task, int64_t s, int64_t begin, int64_t count) {
  typename Wide<T>::type largest[kColumns] = {};
  int32_t best[kColumns];
  std::fill(best, best + count, -1);
  for (int64_t i = task.offsets[s]; i < task.offsets[s + 1]; ++i) {
    const T* row = row_of(task, i, begin, count);
    const int32_t n = task.order[i];
    for (int64_t j = 0; j < count; ++j) {
      const auto candidate = widen(row[j]);
      const bool take = best[j] < 0 || replaces(candidate, largest[j]);
      largest[j] = take ? candidate : largest[j];
      best[j] = take ? n : best[j];
    }
  }
  for (int64_t j = 0; j < count; ++j) narrow(largest[j], task.out + task.width * s + begin + j);
  std::copy_n(best, count, task.best + task.width * s + begin);
}

}  // namespace

// Counted, not compared.
void make_segments(const MakeSegments& task) {
  std::vector<int64_t> next(static_cast<size_t>(task.num_segments + 2), 0);
  for (int64_t row = 0; row < task.num_rows; ++row)
    ++next[static_cast<size_t>(segment_of(task, row) + 1)];
  for (size_t s = 1; s < next.size(); ++s) next[s] += next[s - 1];
  std::copy(next.begin(), next.end() - 1, task.offsets);
  for (int64_t row = 0; row < task.num_rows; ++row)
    task.order[next[static_cast<size_t>(segment_of(task, row))]++] = static_cast<int32_t>(row);
}

template <class T>
void segment_reduce(const SegmentReduce<T>& task) {
  if (task.width == 0) return;
  const int64_t columns = std::min(task.width, kColumns);
  const int64_t blocks = (task.width + columns - 1) / columns;
  // A long segment is cut by columns only, as the order of its sum is its rows'.
  parallel_for(task.num_segments * blocks, rows_for(columns), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = i / blocks, first = i % blocks * columns;
      const int64_t count = std::min(columns, task.width - first);
      if (task.reduction == Reduction::max)
        reduce_max(task, s, first, count);
      else
        reduce_sum(task, s, first, count);
    }
  });
}

template <class T>
void gather_segments(const GatherSegments<T>& task) {
  parallel_for(task.num_rows, rows_for(task.width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t segment = task.index[row];
      T* out = task.out + task.width * row;
      if (task.best == nullptr && segment >= 0 && segment < task.num_segments) {
        std::copy_n(task.values + task.width * segment, task.width, out);
      } else {
        for (int64_t j = 0; j < task.width; ++j) out[j] = gather_element(task, row, segment, j);
      }
    }
  });
}

#define FASTSHAPE_INSTANTIATE(T)                            \
  template void segment_reduce<T>(const SegmentReduce<T>&); \
  template void gather_segments<T>(const GatherSegments<T>&);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
FASTSHAPE_INSTANTIATE(Float16)
FASTSHAPE_INSTANTIATE(BFloat16)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cpu
