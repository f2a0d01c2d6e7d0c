// The order in which the CPU visits query points: along a Hilbert curve, so that neighbors in time
// share their path through the hierarchy and its cache lines.
#pragma once

#include <cstdint>
#include <vector>

#include "core/parallel.h"
#include "core/radix_sort.h"

namespace fastshape::cpu {

// (num_points,) indices; instantiated for float and double.
template <class T>
std::vector<uint32_t> query_order(const T* points, int64_t num_points);

// f(order, begin, end) over all points, fewer than 2^32.
template <class T, class F>
void for_points_in_order(const T* points, int64_t num_points, F&& f) {
  const std::vector<uint32_t> order = query_order(points, num_points);
  parallel_for(num_points, 1024, [&](int64_t begin, int64_t end) { f(order.data(), begin, end); });
}

}  // namespace fastshape::cpu
