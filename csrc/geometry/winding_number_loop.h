// The CPU's loop over points, compiled once per instruction set: include it from one .cpp each.
#pragma once

#include "geometry/simd.h"
#include "geometry/winding_number.h"

namespace fastshape {
namespace {

template <class T>
FASTSHAPE_LANES T winding_number_at(const WindingNumber<T>& task, const Vec3<T>& point) {
  using Lanes = Simd<T>;
  const Vec3<Lanes> p = broadcast(point);
  const Lanes zero = Lanes(T(0)), beta2 = Lanes(task.beta2);
  Lanes sums = zero;
  int32_t stack[kBvhStackSize];
  int top = 0;
  const auto num_nodes = static_cast<int32_t>(task.bvh.num_nodes);
  stack[top++] = 0;
  while (top > 0) {
    const int32_t node = stack[--top];
    if (node >= num_nodes) {
      const T* rows = task.bvh.triangles + static_cast<int64_t>(node - num_nodes) * 72;
      sums = sums + solid_angle<T>(p, load_rows(rows, 0), load_rows(rows, 3), load_rows(rows, 6));
      continue;
    }
    const T* rows = task.moments + static_cast<int64_t>(node) * (kMomentRows * 8);
    const auto load = [rows](int row) { return load_lanes(rows + 8 * row); };
    const Vec3<Lanes> r = load_rows(rows, kCenter) - p;
    const Lanes r2 = dot(r, r), radius2 = load(kRadius2);
    const auto present = radius2 >= zero;
    const auto far = present & (r2 > beta2 * radius2);
    const uint32_t far_bits = lane_bits(far);
    if (far_bits != 0) sums = sums + select(far, far_field<T>(r, r2, load), zero);
    const int32_t first = task.bvh.first_child[node];
    for (uint32_t near = lane_bits(present) & ~far_bits; near != 0; near &= near - 1)
      stack[top++] = first + __builtin_ctz(near);
  }
  T lanes[kBvhWidth];
  store_lanes(lanes, sums);
  return sum_lanes(lanes);
}

template <class T>
void winding_number_loop(const WindingNumber<T>& task, const uint32_t* order, int64_t begin,
                         int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    const int64_t i = order[k];
    const Vec3<T> p = load_point(task.points, i);
    task.winding[i] = is_finite(p) ? winding_number_at(task, p) : not_a_number<T>();
  }
}

}  // namespace
}  // namespace fastshape
