// Building the hierarchy of bvh.h: an order of the faces, then boxes from the blocks up.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "geometry/bvh.h"

namespace fastshape {

template <class T>
struct BuildBvh {
  const T* vertices;     // (num_vertices, 3)
  const int64_t* faces;  // (num_faces, 3)
  int64_t num_vertices;
  int64_t num_faces;  // 1 .. 2^31 - 1
  BvhArrays<T> bvh;
  // The faces along a Hilbert curve, as the GPU orders them, instead of by splitting the longest
  // side. For tests: the CPU then builds the GPU's hierarchy, bit for bit.
  bool hilbert_order;
};

constexpr int kHilbertBits = 21;  // an axis, for faces

// False if a vertex is missing or not finite: such a face takes no part in any query.
template <class T>
FASTSHAPE_HOST_DEVICE bool load_face(const BuildBvh<T>& task, int64_t face, Vec3<T>* a, Vec3<T>* b,
                                     Vec3<T>* c) {
  const int64_t i = task.faces[3 * face], j = task.faces[3 * face + 1],
                k = task.faces[3 * face + 2];
  const int64_t n = task.num_vertices;
  if (i < 0 || j < 0 || k < 0 || i >= n || j >= n || k >= n) return false;
  *a = load_point(task.vertices, i);
  *b = load_point(task.vertices, j);
  *c = load_point(task.vertices, k);
  return is_finite(*a) && is_finite(*b) && is_finite(*c);
}

// The middle of the face's box; NaN for a face that takes no part.
template <class T>
FASTSHAPE_HOST_DEVICE Vec3<T> face_center(const BuildBvh<T>& task, int64_t face) {
  Vec3<T> a, b, c;
  if (!load_face(task, face, &a, &b, &c)) {
    const T nan = not_a_number<T>();
    return {nan, nan, nan};
  }
  const Box<T> box = join(join(Box<T>{a, a}, Box<T>{b, b}), Box<T>{c, c});
  return {T(0.5) * box.low.x + T(0.5) * box.high.x, T(0.5) * box.low.y + T(0.5) * box.high.y,
          T(0.5) * box.low.z + T(0.5) * box.high.z};
}

// One block, or for block >= num_blocks the empty box in its parent's lane. order[k] is the k-th
// face.
template <class T, class Index>
FASTSHAPE_HOST_DEVICE void fit_block(const BuildBvh<T>& task, const BvhLevels& levels,
                                     const Index* order, int64_t block) {
  Box<T> box = empty_box<T>();
  if (block < levels.num_blocks) {
    for (int lane = 0; lane < kBvhWidth; ++lane) {
      const int64_t k = block * kBvhWidth + lane;
      const int64_t face = k < task.num_faces ? static_cast<int64_t>(order[k]) : -1;
      Vec3<T> a, b, c;
      if (face >= 0 && load_face(task, face, &a, &b, &c)) {
        box = join(box, triangle_box(a, b, c));
      } else {
        const T inf = infinity<T>();  // its edges are NaN: no comparison will choose it
        a = b = c = {inf, inf, inf};
      }
      store_triangle(task.bvh.triangles, block, lane, a, b, c);
      task.bvh.face_index[k] = static_cast<int32_t>(face);
    }
  }
  store_box(task.bvh.boxes, levels.offset[0] + (block >> 3), static_cast<int>(block & 7), box);
}

// Node `node` of `level` (or an absent one of the last parent): its first child, its box into its
// parent's lane.
template <class T>
FASTSHAPE_HOST_DEVICE void fit_node(const BuildBvh<T>& task, const BvhLevels& levels, int level,
                                    int64_t node) {
  Box<T> box = empty_box<T>();
  if (node < levels.count[level]) {
    const int64_t id = levels.offset[level] + node;
    task.bvh.first_child[id] = static_cast<int32_t>(
        (level == 0 ? levels.num_nodes : levels.offset[level - 1]) + kBvhWidth * node);
    for (int lane = 0; lane < kBvhWidth; ++lane)
      box = join(box, load_box(task.bvh.boxes, id, lane));
  }
  if (level + 1 < levels.num_levels)
    store_box(task.bvh.boxes, levels.offset[level + 1] + (node >> 3), static_cast<int>(node & 7),
              box);
}

namespace cpu {
// Throws ValueError if a face refers to a vertex that is not there.
template <class T>
void build_bvh(const BuildBvh<T>& task);
}  // namespace cpu

namespace cuda {
size_t build_bvh_workspace_bytes(int64_t num_faces);
template <class T>
void build_bvh(const BuildBvh<T>& task, void* workspace, size_t workspace_bytes,
               cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
