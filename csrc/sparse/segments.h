// Rows that belong to segments: their order by segment, sums over them, and the way back.
//
// A sum runs over a segment's rows in ascending order, in float for 16-bit floats: the same bits
// for any number of threads and on every device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/half.h"
#include "core/host_device.h"

namespace fastshape {

struct MakeSegments {
  const int64_t* index;  // (num_rows,) segments; rows of others than [0, num_segments) are in none
  int64_t num_rows;      // at most kMaxRows, as segments are
  int64_t num_segments;
  int32_t* order;    // (num_rows,) rows by segment, ascending in each, those in none at the end
  int64_t* offsets;  // (num_segments + 1,) where a segment begins in the order
};

enum class Reduction { sum = 0, mean = 1, mean_with_zero = 2, max = 3 };

template <class T>
struct SegmentReduce {
  const T* values;         // (num_rows, width)
  const int32_t* order;    // (num_rows,)
  const int64_t* offsets;  // (num_segments + 1,), ascending, at most num_rows
  int64_t num_rows;
  int64_t num_segments;
  int64_t width;
  Reduction reduction;
  T* out;         // (num_segments, width), zero where a segment is empty
  int32_t* best;  // (num_segments, width) for max: the first row that has it, -1 if empty
};

template <class T>
struct GatherSegments {
  const T* values;       // (num_segments, width)
  const int64_t* index;  // (num_rows,)
  const int32_t* best;   // (num_segments, width) or null: elements of other rows get nothing
  int64_t num_rows;
  int64_t num_segments;
  int64_t width;
  T* out;  // (num_rows, width), zero for rows in no segment
};

FASTSHAPE_HOST_DEVICE int64_t segment_of(const MakeSegments& task, int64_t row) {
  const int64_t segment = task.index[row];
  return segment >= 0 && segment < task.num_segments ? segment : task.num_segments;
}

// What the sum is divided by.
FASTSHAPE_HOST_DEVICE int64_t divisor_of(Reduction reduction, int64_t count) {
  return reduction == Reduction::mean             ? count
         : reduction == Reduction::mean_with_zero ? count + 1
                                                  : 1;
}

// The larger one, NaN above all, the first of equals.
template <class T>
FASTSHAPE_HOST_DEVICE bool replaces(T candidate, T best) {
  return candidate > best || (candidate != candidate && best == best);
}

template <class T>
FASTSHAPE_HOST_DEVICE T gather_element(const GatherSegments<T>& task, int64_t row, int64_t segment,
                                       int64_t j) {
  const int64_t at = task.width * segment + j;
  const bool there =
      segment >= 0 && segment < task.num_segments && (task.best == nullptr || task.best[at] == row);
  return there ? task.values[at] : T{};
}

namespace cpu {
void make_segments(const MakeSegments& task);
template <class T>
void segment_reduce(const SegmentReduce<T>& task);
template <class T>
void gather_segments(const GatherSegments<T>& task);
}  // namespace cpu

namespace cuda {
size_t make_segments_workspace_bytes(int64_t num_rows);
void make_segments(const MakeSegments& task, void* workspace, cudaStream_t stream);
template <class T>
void segment_reduce(const SegmentReduce<T>& task, cudaStream_t stream);
template <class T>
void gather_segments(const GatherSegments<T>& task, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
