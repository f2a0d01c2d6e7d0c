// The CPU's loop over rays, compiled once per instruction set: include it from one .cpp each.
#pragma once

#include "geometry/cast_rays.h"
#include "geometry/ray_lanes.h"

namespace fastshape {
namespace {

template <class T>
struct RayEntry {
  T near;
  int32_t node;
};

template <class T>
FASTSHAPE_LANES void find_first_hit(const BvhView<T>& bvh, const Ray<T>& ray, FirstHit<T>* first) {
  using Lanes = Simd<T>;
  RayEntry<T> stack[kBvhStackSize];
  int top = 0;
  int32_t node = 0;
  const auto num_nodes = static_cast<int32_t>(bvh.num_nodes);
  for (;;) {
    if (node >= num_nodes) {
      const int64_t block = node - num_nodes;
      for (uint32_t bits = block_candidates(bvh, ray, block); bits != 0; bits &= bits - 1)
        try_slot(bvh, ray, block * kBvhWidth + __builtin_ctz(bits), first);
    } else {
      Lanes near_lanes;
      uint32_t bits = node_candidates(bvh, ray, node, first->t, &near_lanes);
      if (bits != 0) {
        const int32_t first_child = bvh.first_child[node];
        if ((bits & (bits - 1)) == 0) {
          node = first_child + __builtin_ctz(bits);
          continue;
        }
        T near[kBvhWidth];
        store_lanes(near, near_lanes);
        const int base = top;
        for (; bits != 0; bits &= bits - 1) {  // the first child comes to lie on top
          const int lane = __builtin_ctz(bits);
          int at = top++;
          for (; at > base && stack[at - 1].near < near[lane]; --at) stack[at] = stack[at - 1];
          stack[at] = {near[lane], first_child + lane};
        }
        node = stack[--top].node;
        continue;
      }
    }
    do {
      if (top == 0) return;
      --top;
    } while (stack[top].near > first->t);
    node = stack[top].node;
  }
}

template <class T>
void cast_rays_loop(const CastRays<T>& task, const uint32_t* order, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    const int64_t i = order[k];
    Ray<T> ray;
    FirstHit<T> first;
    const bool is_ray =
        make_ray(task.bvh.boxes, load_point(task.origins, i), load_point(task.directions, i), &ray);
    if (is_ray) find_first_hit(task.bvh, ray, &first);
    write_first_hit(task, i, is_ray, first);
  }
}

}  // namespace
}  // namespace fastshape
