// The inner loops over the tree of farthest_point_sampling_cpu.h. Compiled once for each
// instruction set: the including file defines FASTSHAPE_TREE_KERNELS, the name of the table to
// fill.
//
// After QuickFPS (Han et al., "QuickFPS: Architecture and Algorithm Co-Design for Farthest Point
// Sampling in Large-Scale Point Clouds", TCAD 2023): a pick changes only boxes that are nearer to
// it than their farthest point. Here the boxes form a sixteen-wide tree, so that one pick tests a
// handful of rows instead of every box.
#include <cmath>
#include <cstdint>

#include "sampling/farthest_point_sampling.h"
#include "sampling/farthest_point_sampling_cpu.h"
#include "sampling/lanes.h"

namespace fastshape::cpu {
namespace {

struct Farthest {
  float distance;
  int32_t index;
};

struct Query {
  Lanes x, y, z;
};

inline Lanes axis_distance(Lanes v, const float* low, const float* high) {
  return lanes_max(lanes_max(load(low) - v, v - load(high)), broadcast(0.0f));
}

// Which children of the block the query may change: box_distance_bound, sixteen boxes at once.
inline uint32_t touched_children(const Block& block, const Query& q) {
  const Lanes ex = axis_distance(q.x, block.low[0], block.high[0]);
  const Lanes ey = axis_distance(q.y, block.low[1], block.high[1]);
  const Lanes ez = axis_distance(q.z, block.low[2], block.high[2]);
  return less((ex * ex + ey * ey) + ez * ez, load(block.farthest));
}

// Lowest of the indices that `mask` selects; ties are rare, so one bit is the fast path.
inline int32_t lowest_index(const int32_t* index, uint32_t mask) {
  int32_t lowest = index[__builtin_ctz(mask)];
  for (mask &= mask - 1; mask != 0; mask &= mask - 1) {
    const int32_t other = index[__builtin_ctz(mask)];
    lowest = other < lowest ? other : lowest;
  }
  return lowest;
}

inline Farthest farthest_child(const Block& block) {
  const Lanes farthest = load(block.farthest);
  const float distance = largest(farthest);
  return {distance, lowest_index(block.index, equal(farthest, broadcast(distance)))};
}

template <int kRows>
inline Farthest update_leaf(LeafRow* rows, const Query& q) {
  Lanes nearest[kRows];
  for (int r = 0; r < kRows; ++r) {
    const Lanes dx = load(rows[r].x) - q.x, dy = load(rows[r].y) - q.y, dz = load(rows[r].z) - q.z;
    nearest[r] = lanes_min(load(rows[r].nearest), (dx * dx + dy * dy) + dz * dz);
    store(rows[r].nearest, nearest[r]);
  }
  Lanes top = nearest[0];
  for (int r = 1; r < kRows; ++r) top = lanes_max(top, nearest[r]);
  const float distance = largest(top);
  const Lanes all = broadcast(distance);
  int32_t index = INT32_MAX;
  for (int r = 0; r < kRows; ++r) {
    const uint32_t mask = equal(nearest[r], all);
    if (mask != 0) {
      const int32_t lowest = lowest_index(rows[r].index, mask);
      index = lowest < index ? lowest : index;
    }
  }
  return {distance, index};
}

inline void set_child(Block* blocks, int32_t child, Farthest farthest) {
  Block& block = blocks[child / kFanOut];
  block.farthest[child % kFanOut] = farthest.distance;
  block.index[child % kFanOut] = farthest.index;
}

// Takes one pick into account. Level by level rather than depth first: loops over lists mispredict
// less.
template <int kRows>
inline void update_tree(const Tree& tree, const Query& q) {
  int32_t listed[kMaxLevels];
  const int top = tree.levels - 1;
  listed[top] = tree.block_count[top];
  for (int level = top; level >= 0; --level) {
    int32_t* list = tree.worklist[level + 1];
    int32_t* children = tree.worklist[level];
    int32_t* end = children;
    int32_t kept = 0;
    for (int32_t i = 0; i < listed[level]; ++i) {
      const int32_t b = level == top ? i : list[i];
      const uint32_t mask = touched_children(tree.blocks[level][b], q);
      list[kept] = b;
      kept += mask != 0;
      end = append_set_bits(end, b * kFanOut, mask);
    }
    listed[level] = kept;
    if (level == 0) {
      for (const int32_t* leaf = children; leaf != end; ++leaf)
        set_child(tree.blocks[0], *leaf,
                  update_leaf<kRows>(tree.leaf_rows + static_cast<int64_t>(*leaf) * kRows, q));
    } else {
      listed[level - 1] = static_cast<int32_t>(end - children);
    }
  }
  for (int level = 0; level < top; ++level)
    for (int32_t i = 0; i < listed[level]; ++i) {
      const int32_t b = tree.worklist[level + 1][i];
      set_child(tree.blocks[level + 1], b, farthest_child(tree.blocks[level][b]));
    }
}

inline Farthest farthest_of_all(const Tree& tree) {
  const int top = tree.levels - 1;
  Farthest best = farthest_child(tree.blocks[top][0]);
  for (int32_t b = 1; b < tree.block_count[top]; ++b) {
    const Farthest other = farthest_child(tree.blocks[top][b]);
    if (other.distance > best.distance ||
        (other.distance == best.distance && other.index < best.index))
      best = other;
  }
  return best;
}

template <int kRows>
void pick(const Tree& tree, const float* points, int64_t num, int64_t* indices, float* distances) {
  for (int64_t k = 1; k < num; ++k) {
    const Farthest best = farthest_of_all(tree);
    indices[k] = best.index;
    if (distances != nullptr) distances[k] = best.distance;
    if (k + 1 == num) return;
    if (best.distance == 0.0f) {  // every distinct point is taken: nothing can change any more
      for (int64_t rest = k + 1; rest < num; ++rest) {
        indices[rest] = best.index;
        if (distances != nullptr) distances[rest] = 0.0f;
      }
      return;
    }
    const float* p = points + 3 * static_cast<int64_t>(best.index);
    update_tree<kRows>(tree, {broadcast(p[0]), broadcast(p[1]), broadcast(p[2])});
  }
}

void pick_any(const Tree& tree, const float* points, int64_t num, int64_t* indices,
              float* distances) {
  switch (tree.rows) {
    case 1:
      return pick<1>(tree, points, num, indices, distances);
    case 2:
      return pick<2>(tree, points, num, indices, distances);
    case 4:
      return pick<4>(tree, points, num, indices, distances);
    default:
      return pick<8>(tree, points, num, indices, distances);
  }
}

struct Box {
  float low[3] = {INFINITY, INFINITY, INFINITY}, high[3] = {-INFINITY, -INFINITY, -INFINITY};
};

inline void set_child_box(Block* blocks, int64_t child, const Box& box, Farthest farthest) {
  Block& block = blocks[child / kFanOut];
  for (int axis = 0; axis < 3; ++axis) {
    block.low[axis][child % kFanOut] = box.low[axis];
    block.high[axis][child % kFanOut] = box.high[axis];
  }
  block.farthest[child % kFanOut] = farthest.distance;
  block.index[child % kFanOut] = farthest.index;
}

inline float smallest(Lanes a) { return -largest(broadcast(0.0f) - a); }

void build(const Tree& tree, const float* points, const int32_t* order, int64_t count,
           const float start[3]) {
  const Query q{broadcast(start[0]), broadcast(start[1]), broadcast(start[2])};
  const int64_t leaf_size = static_cast<int64_t>(tree.rows) * kFanOut;
  for (int64_t leaf = 0; leaf < tree.leaves; ++leaf) {
    Lanes low[3], high[3], top{};
    LeafRow* rows = tree.leaf_rows + leaf * tree.rows;
    for (int r = 0; r < tree.rows; ++r) {
      LeafRow& row = rows[r];
      const int64_t begin = leaf * leaf_size + r * kFanOut;
      for (int lane = 0; lane < kFanOut; ++lane) {
        // Lanes past the end repeat the last point, so that they do not widen the box.
        const int32_t i = order[begin + lane < count ? begin + lane : count - 1];
        const float* p = points + 3 * static_cast<int64_t>(i);
        row.x[lane] = p[0];
        row.y[lane] = p[1];
        row.z[lane] = p[2];
        row.index[lane] = i;
      }
      const Lanes x = load(row.x), y = load(row.y), z = load(row.z);
      const Lanes dx = x - q.x, dy = y - q.y, dz = z - q.z;
      store(row.nearest, (dx * dx + dy * dy) + dz * dz);
      for (int64_t lane = count - begin; lane < kFanOut; ++lane)
        row.nearest[lane < 0 ? 0 : lane] = -INFINITY;
      const Lanes nearest = load(row.nearest);
      low[0] = r == 0 ? x : lanes_min(low[0], x);
      low[1] = r == 0 ? y : lanes_min(low[1], y);
      low[2] = r == 0 ? z : lanes_min(low[2], z);
      high[0] = r == 0 ? x : lanes_max(high[0], x);
      high[1] = r == 0 ? y : lanes_max(high[1], y);
      high[2] = r == 0 ? z : lanes_max(high[2], z);
      top = r == 0 ? nearest : lanes_max(top, nearest);
    }
    Box box;
    for (int axis = 0; axis < 3; ++axis) {
      box.low[axis] = smallest(low[axis]);
      box.high[axis] = largest(high[axis]);
    }
    const float distance = largest(top);
    int32_t index = INT32_MAX;
    for (int r = 0; r < tree.rows; ++r) {
      const uint32_t mask = equal(load(rows[r].nearest), broadcast(distance));
      if (mask == 0) continue;
      const int32_t lowest = lowest_index(rows[r].index, mask);
      index = lowest < index ? lowest : index;
    }
    set_child_box(tree.blocks[0], leaf, box, {distance, index});
  }
  int64_t children = tree.leaves;
  for (int level = 0; level < tree.levels; ++level) {
    // Missing children: an empty box that nothing touches, farther from nothing.
    for (int64_t c = children; c < static_cast<int64_t>(tree.block_count[level]) * kFanOut; ++c)
      set_child_box(tree.blocks[level], c, Box{}, {-INFINITY, INT32_MAX});
    if (level + 1 == tree.levels) return;
    children = tree.block_count[level];
    for (int64_t b = 0; b < children; ++b) {
      const Block& block = tree.blocks[level][b];
      Box box;
      for (int axis = 0; axis < 3; ++axis) {
        box.low[axis] = smallest(load(block.low[axis]));
        box.high[axis] = largest(load(block.high[axis]));
      }
      set_child_box(tree.blocks[level + 1], b, box, farthest_child(block));
    }
  }
}

inline uint32_t spread_bits(uint32_t v) {  // bit i goes to bit 3 i, for the low 8 bits
  v = (v | v << 8) & 0x0000F00Fu;
  v = (v | v << 4) & 0x000C30C3u;
  return (v | v << 2) & 0x00249249u;
}

inline uint32_t cell(float v, float low, float scale) {
  const float c = (v - low) * scale;
  return static_cast<uint32_t>(static_cast<int32_t>(c < 255.0f ? c : 255.0f));
}

void curve_keys(const float* points, const int32_t* order, int64_t count, const float low[3],
                const float scale[3], uint32_t* keys) {
  for (int64_t i = 0; i < count; ++i) {
    const float* p = points + 3 * static_cast<int64_t>(order[i]);
    keys[i] = spread_bits(cell(p[0], low[0], scale[0])) << 2 |
              spread_bits(cell(p[1], low[1], scale[1])) << 1 |
              spread_bits(cell(p[2], low[2], scale[2]));
  }
}

}  // namespace

extern const TreeKernels FASTSHAPE_TREE_KERNELS;
const TreeKernels FASTSHAPE_TREE_KERNELS = {curve_keys, build, pick_any};

}  // namespace fastshape::cpu
