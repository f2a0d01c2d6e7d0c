// The CPU's loop over points, compiled once per instruction set: include it from one .cpp each.
#pragma once

#include "geometry/ray_lanes.h"
#include "geometry/ray_parity.h"

namespace fastshape {
namespace {

template <class T>
FASTSHAPE_LANES int32_t count_hits(const BvhView<T>& bvh, const Ray<T>& ray, bool crossings) {
  int32_t stack[kBvhStackSize];
  int top = 0;
  int32_t count = 0;
  const auto num_nodes = static_cast<int32_t>(bvh.num_nodes);
  stack[top++] = 0;
  while (top > 0) {
    const int32_t node = stack[--top];
    if (node >= num_nodes) {
      const int64_t block = node - num_nodes;
      for (uint32_t bits = block_candidates(bvh, ray, block); bits != 0; bits &= bits - 1) {
        TriangleHit<T> hit;
        if (triangle_hit(bvh, ray, block * kBvhWidth + __builtin_ctz(bits), &hit) && hit.t > T(0))
          count += crossings ? hit.side : 1;
      }
      continue;
    }
    Simd<T> near;
    const int32_t first_child = bvh.first_child[node];
    for (uint32_t bits = node_candidates(bvh, ray, node, Limits<T>::kMax, &near); bits != 0;
         bits &= bits - 1)
      stack[top++] = first_child + __builtin_ctz(bits);
  }
  return crossings ? count : count & 1;
}

template <class T>
void ray_parity_loop(const RayParity<T>& task, const uint32_t* order, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    const int64_t i = order[k];
    const Vec3<T> p = load_point(task.points, i);
    int32_t votes = 0;
    const int64_t begin_ray = task.crossings ? crossing_ray(task, p) : 0;
    const int64_t end_ray = task.crossings ? begin_ray + 1 : task.num_rays;
    for (int64_t r = begin_ray; r < end_ray; ++r) {
      Ray<T> ray;
      if (make_ray(task.bvh.boxes, p, load_point(task.directions, r), &ray))
        votes += count_hits(task.bvh, ray, task.crossings);
    }
    task.votes[i] = votes;
  }
}

}  // namespace
}  // namespace fastshape
