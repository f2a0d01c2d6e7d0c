// The bounding volume hierarchy under all mesh queries.
//
// It is implicit: the faces are put into some order, eight of them make a block, eight blocks a
// node, eight nodes a node above, until one is left. So every size follows from the number of
// faces, there is nothing to allocate while building, and the CPU's and the GPU's builders differ
// in the order only (a query's answer does not depend on it, see closest_point.h). A node holds its
// eight children's boxes side by side, a block its eight triangles, each a load of a vector
// register.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "geometry/vec3.h"

namespace fastshape {

constexpr int kBvhWidth = 8;
constexpr int kBvhMaxLevels = 11;  // 8^11 blocks are more than int32 faces can fill
constexpr int kBvhStackSize = 7 * kBvhMaxLevels + 1;

// Node 0 is the root. Children of node n are first_child[n] .. + 7; a child c >= num_nodes is block
// c - num_nodes. Boxes of absent children are empty (+inf, -inf), triangles of absent slots lie at
// infinity.
template <class T>
struct BvhView {
  const T* boxes;              // (num_nodes, 6, 8): low x, y, z, high x, y, z
  const int32_t* first_child;  // (num_nodes,)
  const T* triangles;          // (num_blocks, 9, 8): a x, y, z, b x, y, z, c x, y, z
  const int32_t* face_index;   // (num_blocks, 8): the face of the mesh, -1 in absent slots
  int64_t num_nodes;
  int64_t num_blocks;
};

template <class T>
struct BvhArrays {
  T* boxes;
  int32_t* first_child;
  T* triangles;
  int32_t* face_index;
};

// Level 0 holds the nodes whose children are blocks; levels lie in memory from the root down.
struct BvhLevels {
  int num_levels;
  int64_t num_blocks;
  int64_t num_nodes;
  int64_t count[kBvhMaxLevels];
  int64_t offset[kBvhMaxLevels];
};

inline BvhLevels bvh_levels(int64_t num_faces) {
  BvhLevels levels{};
  levels.num_blocks = (num_faces + kBvhWidth - 1) / kBvhWidth;
  int64_t count = levels.num_blocks;
  do {
    count = (count + kBvhWidth - 1) / kBvhWidth;
    levels.count[levels.num_levels++] = count;
    levels.num_nodes += count;
  } while (count > 1);
  int64_t offset = 0;
  for (int level = levels.num_levels - 1; level >= 0; --level) {
    levels.offset[level] = offset;
    offset += levels.count[level];
  }
  return levels;
}

template <class T>
struct Box {
  Vec3<T> low, high;
};

template <class T>
FASTSHAPE_HOST_DEVICE Box<T> empty_box() {
  const T inf = infinity<T>();
  return {{inf, inf, inf}, {-inf, -inf, -inf}};
}

template <class T>
FASTSHAPE_HOST_DEVICE Box<T> join(const Box<T>& a, const Box<T>& b) {
  return {{smaller(a.low.x, b.low.x), smaller(a.low.y, b.low.y), smaller(a.low.z, b.low.z)},
          {larger(a.high.x, b.high.x), larger(a.high.y, b.high.y), larger(a.high.z, b.high.z)}};
}

// The triangle's box, widened by more than the rounding errors of closest_on_triangle: 16 epsilon
// of the triangle's size, and at least the last bit of the coordinate.
template <class T>
FASTSHAPE_HOST_DEVICE Box<T> triangle_box(const Vec3<T>& a, const Vec3<T>& b, const Vec3<T>& c) {
  Box<T> box{{smaller(smaller(a.x, b.x), c.x), smaller(smaller(a.y, b.y), c.y),
              smaller(smaller(a.z, b.z), c.z)},
             {larger(larger(a.x, b.x), c.x), larger(larger(a.y, b.y), c.y),
              larger(larger(a.z, b.z), c.z)}};
  const Vec3<T> extent = box.high - box.low;
  const T epsilon = Limits<T>::kEpsilon;
  const T margin = T(16) * epsilon * larger(larger(extent.x, extent.y), extent.z);
  const auto widen = [&](T v) { return larger(margin, epsilon * (v < T(0) ? -v : v)); };
  box.low = {box.low.x - widen(box.low.x), box.low.y - widen(box.low.y),
             box.low.z - widen(box.low.z)};
  box.high = {box.high.x + widen(box.high.x), box.high.y + widen(box.high.y),
              box.high.z + widen(box.high.z)};
  return box;
}

template <class T>
FASTSHAPE_HOST_DEVICE void store_box(T* boxes, int64_t node, int lane, const Box<T>& box) {
  T* rows = boxes + node * 48 + lane;
  rows[0] = box.low.x, rows[8] = box.low.y, rows[16] = box.low.z;
  rows[24] = box.high.x, rows[32] = box.high.y, rows[40] = box.high.z;
}

template <class T>
FASTSHAPE_HOST_DEVICE Box<T> load_box(const T* boxes, int64_t node, int lane) {
  const T* rows = boxes + node * 48 + lane;
  return {{rows[0], rows[8], rows[16]}, {rows[24], rows[32], rows[40]}};
}

template <class T>
FASTSHAPE_HOST_DEVICE void store_triangle(T* triangles, int64_t block, int lane, const Vec3<T>& a,
                                          const Vec3<T>& b, const Vec3<T>& c) {
  T* rows = triangles + block * 72 + lane;
  rows[0] = a.x, rows[8] = a.y, rows[16] = a.z;
  rows[24] = b.x, rows[32] = b.y, rows[40] = b.z;
  rows[48] = c.x, rows[56] = c.y, rows[64] = c.z;
}

template <class T>
FASTSHAPE_HOST_DEVICE void load_triangle(const T* triangles, int64_t block, int lane, Vec3<T>* a,
                                         Vec3<T>* b, Vec3<T>* c) {
  const T* rows = triangles + block * 72 + lane;
  *a = {rows[0], rows[8], rows[16]};
  *b = {rows[24], rows[32], rows[40]};
  *c = {rows[48], rows[56], rows[64]};
}

}  // namespace fastshape
