// The CPU's loop over points, compiled once per instruction set: include it from one .cpp each.
#pragma once

#include "geometry/closest_point.h"
#include "geometry/simd.h"

namespace fastshape {
namespace {

template <class T>
struct NodeEntry {
  T distance2;
  int32_t node;
};

template <class T>
struct ClosestSearch {
  Vec3<T> p;
  T distance2 = Limits<T>::kMax;
  T limit = Limits<T>::kMax;
  int64_t face = -1;
  int64_t slot = -1;
};

template <class T>
FASTSHAPE_LANES bool all_equal(const Simd<T>& a, const Simd<T>& b) {
  return lane_bits((a <= b) & (a >= b)) == 0xff;
}

template <class T>
FASTSHAPE_LANES bool all_equal(const Vec3<Simd<T>>& a, const Vec3<Simd<T>>& b) {
  return all_equal(a.x, b.x) && all_equal(a.y, b.y) && all_equal(a.z, b.z);
}

// In a point cloud every face is a point. closest_on_triangle gives just this for them, later.
template <class T>
FASTSHAPE_LANES Simd<T> block_distance2(const Vec3<Simd<T>>& p, const T* rows) {
  const Vec3<Simd<T>> a = load_rows(rows, 0), b = load_rows(rows, 3), c = load_rows(rows, 6);
  if (all_equal(a, b) && all_equal(a, c)) {
    const Vec3<Simd<T>> offset = a - p;
    return dot(offset, offset);
  }
  return closest_on_triangle(p, a, b, c).distance2;
}

template <class T>
FASTSHAPE_LANES void search_block(const BvhView<T>& bvh, int64_t block, ClosestSearch<T>* search) {
  using Lanes = Simd<T>;
  const Lanes found = block_distance2(broadcast(search->p), bvh.triangles + block * 72);
  uint32_t bits = lane_bits(found <= Lanes(search->distance2));
  if (bits == 0) return;
  T distance2[kBvhWidth];
  store_lanes(distance2, found);
  for (; bits != 0; bits &= bits - 1) {
    const int lane = __builtin_ctz(bits);
    const int64_t face = bvh.face_index[block * kBvhWidth + lane];
    if (distance2[lane] < search->distance2 ||
        (distance2[lane] == search->distance2 && (search->face < 0 || face < search->face))) {
      search->distance2 = distance2[lane];
      search->face = face;
      search->slot = block * kBvhWidth + lane;
    }
  }
  search->limit = search_limit(search->distance2);
}

template <class T>
FASTSHAPE_LANES void search_tree(const BvhView<T>& bvh, ClosestSearch<T>* search) {
  using Lanes = Simd<T>;
  const Vec3<Lanes> p = broadcast(search->p);
  NodeEntry<T> stack[kBvhStackSize];
  int top = 0;
  int32_t node = 0;
  const auto num_nodes = static_cast<int32_t>(bvh.num_nodes);
  for (;;) {
    if (node >= num_nodes) {
      search_block(bvh, node - num_nodes, search);
    } else {
      const T* rows = bvh.boxes + static_cast<int64_t>(node) * 48;
      const Lanes lanes = box_distance2(p, load_rows(rows, 0), load_rows(rows, 3));
      uint32_t bits = lane_bits(lanes <= Lanes(search->limit));
      if (bits != 0) {
        const int32_t first = bvh.first_child[node];
        if ((bits & (bits - 1)) == 0) {
          node = first + __builtin_ctz(bits);
          continue;
        }
        T distance2[kBvhWidth];
        store_lanes(distance2, lanes);
        const int base = top;
        for (; bits != 0; bits &= bits - 1) {  // the nearest child comes to lie on top
          const int lane = __builtin_ctz(bits);
          const T d = distance2[lane];
          int at = top++;
          for (; at > base && stack[at - 1].distance2 < d; --at) stack[at] = stack[at - 1];
          stack[at] = {d, first + lane};
        }
        node = stack[--top].node;
        continue;
      }
    }
    do {
      if (top == 0) return;
      --top;
    } while (stack[top].distance2 > search->limit);
    node = stack[top].node;
  }
}

// Neighbors in `order` are neighbors in space: the block that holds one point's face bounds the
// next point's search from the start.
template <class T>
void closest_point_loop(const ClosestPoint<T>& task, const uint32_t* order, int64_t begin,
                        int64_t end) {
  int64_t slot = -1;
  for (int64_t k = begin; k < end; ++k) {
    const int64_t i = order[k];
    ClosestSearch<T> search;
    search.p = load_point(task.points, i);
    if (!is_finite(search.p)) {
      write_no_face(task, i, not_a_number<T>());
      continue;
    }
    if (slot >= 0) search_block(task.bvh, slot / kBvhWidth, &search);
    search_tree(task.bvh, &search);
    if (search.slot < 0) {
      write_no_face(task, i, infinity<T>());
      continue;
    }
    slot = search.slot;
    write_closest(task, i, search.p, slot);
  }
}

}  // namespace
}  // namespace fastshape
