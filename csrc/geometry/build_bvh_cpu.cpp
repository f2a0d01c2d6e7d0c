#include <algorithm>
#include <numeric>
#include <vector>

#include "core/check.h"
#include "core/parallel.h"
#include "geometry/build_bvh.h"
#include "geometry/hilbert.h"
#include "geometry/query_order.h"

namespace fastshape::cpu {
namespace {

struct Item {
  float center[3];
  uint32_t face;
};

// A range of faces that one node covers; `capacity` is what one of its children holds, eight times
// a power of eight.
struct Range {
  Item* items;
  int64_t size;
  int64_t capacity;
};

// Halves the children of the node over the longest side of the centers' box. Returns the left
// half's size; the range is larger than its capacity.
int64_t split(const Range& range) {
  float low[3], high[3];
  for (int axis = 0; axis < 3; ++axis) low[axis] = high[axis] = range.items[0].center[axis];
  for (int64_t i = 1; i < range.size; ++i)
    for (int axis = 0; axis < 3; ++axis) {
      low[axis] = std::min(low[axis], range.items[i].center[axis]);
      high[axis] = std::max(high[axis], range.items[i].center[axis]);
    }
  int axis = 0;
  for (int other = 1; other < 3; ++other)
    if (high[other] - low[other] > high[axis] - low[axis]) axis = other;
  const int64_t children = (range.size + range.capacity - 1) / range.capacity;
  const int64_t left = children / 2 * range.capacity;
  std::nth_element(range.items, range.items + left, range.items + range.size,
                   [axis](const Item& a, const Item& b) {
                     return a.center[axis] != b.center[axis] ? a.center[axis] < b.center[axis]
                                                             : a.face < b.face;
                   });
  return left;
}

// Splits down to `smallest` faces and calls leaf(range) for what is left.
template <class Leaf>
void split_all(Range range, int64_t smallest, const Leaf& leaf) {
  while (range.size > smallest) {
    while (range.capacity >= range.size) range.capacity /= kBvhWidth;
    const int64_t left = split(range);
    split_all(Range{range.items, left, range.capacity}, smallest, leaf);
    range.items += left;
    range.size -= left;
  }
  leaf(range);
}

template <class T>
std::vector<uint32_t> split_order(const BuildBvh<T>& task, const Box<T>& box) {
  std::vector<Item> items(task.num_faces);
  parallel_for(task.num_faces, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t face = begin; face < end; ++face) {
      Vec3<T> center = face_center(task, face);
      center = is_finite(center) ? center - box.low : Vec3<T>{T(0), T(0), T(0)};
      items[face] = {{static_cast<float>(center.x), static_cast<float>(center.y),
                      static_cast<float>(center.z)},
                     static_cast<uint32_t>(face)};
    }
  });
  int64_t capacity = kBvhWidth;
  while (capacity < task.num_faces) capacity *= kBvhWidth;
  const int64_t piece = num_threads() > 1
                            ? std::max<int64_t>(task.num_faces / (8 * num_threads()), 4096)
                            : task.num_faces;
  std::vector<Range> pieces;
  split_all(Range{items.data(), task.num_faces, capacity}, piece,
            [&](const Range& range) { pieces.push_back(range); });
  parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) split_all(pieces[i], kBvhWidth, [](const Range&) {});
  });
  std::vector<uint32_t> order(task.num_faces);
  for (int64_t k = 0; k < task.num_faces; ++k) order[k] = items[k].face;
  return order;
}

template <class T>
std::vector<uint32_t> hilbert_order(const BuildBvh<T>& task, const Box<T>& box) {
  const T scale = grid_scale(box.low, box.high, kHilbertBits);
  std::vector<KeyIndex> items(task.num_faces);
  for (int64_t face = 0; face < task.num_faces; ++face)
    items[face] = {hilbert_code(face_center(task, face), box.low, scale, kHilbertBits),
                   static_cast<uint32_t>(face)};
  radix_sort(items, 3 * kHilbertBits);
  std::vector<uint32_t> order(task.num_faces);
  for (int64_t k = 0; k < task.num_faces; ++k) order[k] = items[k].index;
  return order;
}

}  // namespace

template <class T>
void build_bvh(const BuildBvh<T>& task) {
  for (int64_t i = 0; i < 3 * task.num_faces; ++i)
    FASTSHAPE_CHECK_VALUE(task.faces[i] >= 0 && task.faces[i] < task.num_vertices,
                          "`faces` must lie in [0, ", task.num_vertices, "), got ", task.faces[i],
                          " in face ", i / 3);
  Box<T> box = empty_box<T>();
  for (int64_t face = 0; face < task.num_faces; ++face) {
    const Vec3<T> center = face_center(task, face);
    if (is_finite(center)) box = join(box, Box<T>{center, center});
  }
  const std::vector<uint32_t> order =
      task.hilbert_order ? hilbert_order(task, box) : split_order(task, box);

  const BvhLevels levels = bvh_levels(task.num_faces);
  parallel_for(levels.count[0] * kBvhWidth, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) fit_block(task, levels, order.data(), block);
  });
  for (int level = 0; level < levels.num_levels; ++level) {
    const int64_t parents = level + 1 < levels.num_levels ? levels.count[level + 1] : 0;
    parallel_for(std::max<int64_t>(parents * kBvhWidth, levels.count[level]), 1024,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t node = begin; node < end; ++node)
                     fit_node(task, levels, level, node);
                 });
  }
}

template void build_bvh<float>(const BuildBvh<float>&);
template void build_bvh<double>(const BuildBvh<double>&);

}  // namespace fastshape::cpu
