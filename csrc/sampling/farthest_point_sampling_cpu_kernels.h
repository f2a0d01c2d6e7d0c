// The inner loops over the tree of farthest_point_sampling_cpu.h. Compiled once for each
// instruction set: the including file defines FASTSHAPE_TREE_KERNELS, the name of the table to
// fill.
//
// After QuickFPS (Han et al., "QuickFPS: Architecture and Algorithm Co-Design for Farthest Point
// Sampling in Large-Scale Point Clouds", TCAD 2023): a pick changes only boxes that are nearer to
// it than their farthest point. Here the boxes form a sixteen-wide tree, so that one pick tests a
// handful of rows instead of every box, and leaves are so small that putting updates off does not
// pay.
#include <cmath>
#include <cstdint>

#include "sampling/farthest_point_sampling.h"
#include "sampling/farthest_point_sampling_cpu.h"
#include "sampling/lanes.h"

namespace fastshape::cpu {
namespace {

// ---- Taking a pick into account ----------------------------------------------------------------

struct Query {
  Lanes x, y, z;
};

inline Query make_query(const float* p) {
  return {broadcast(p[0]), broadcast(p[1]), broadcast(p[2])};
}

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

// Lowest of the indices that `mask` selects, 16 from each of consecutive `Node`s. More than one bit
// is a tie, which is rare.
template <class Node>
inline int32_t lowest_index(const Node* nodes, uint64_t mask) {
  int bit = __builtin_ctzll(mask);
  int32_t lowest = nodes[bit / kFanOut].index[bit % kFanOut];
  for (mask &= mask - 1; mask != 0; mask &= mask - 1) {
    bit = __builtin_ctzll(mask);
    const int32_t other = nodes[bit / kFanOut].index[bit % kFanOut];
    lowest = other < lowest ? other : lowest;
  }
  return lowest;
}

inline Farthest farthest_child(const Block& block) {
  const Lanes farthest = load(block.farthest);
  const float distance = largest(farthest);
  return {distance, lowest_index(&block, equal(farthest, broadcast(distance)))};
}

template <int kRows>
inline Farthest farthest_point(const LeafRow* rows, const Lanes* nearest) {
  Lanes top = nearest[0];
  for (int r = 1; r < kRows; ++r) top = lanes_max(top, nearest[r]);
  const float distance = largest(top);
  uint64_t mask = 0;
  for (int r = 0; r < kRows; ++r)
    mask |= static_cast<uint64_t>(equal(nearest[r], broadcast(distance))) << (kFanOut * r);
  return {distance, lowest_index(rows, mask)};
}

template <int kRows>
inline Farthest update_leaf(LeafRow* rows, const Query& q) {
  Lanes nearest[kRows];
  for (int r = 0; r < kRows; ++r) {
    const Lanes dx = load(rows[r].x) - q.x, dy = load(rows[r].y) - q.y, dz = load(rows[r].z) - q.z;
    nearest[r] = lanes_min(load(rows[r].nearest), (dx * dx + dy * dy) + dz * dz);
    store(rows[r].nearest, nearest[r]);
  }
  return farthest_point<kRows>(rows, nearest);
}

inline void set_child(Block* blocks, int32_t child, Farthest farthest) {
  Block& block = blocks[child / kFanOut];
  block.farthest[child % kFanOut] = farthest.distance;
  block.index[child % kFanOut] = farthest.index;
}

// Level by level rather than depth first: loops over lists mispredict less.
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
    if (level > 0) {
      listed[level - 1] = static_cast<int32_t>(end - children);
    } else {
      for (const int32_t* leaf = children; leaf != end; ++leaf)
        set_child(tree.blocks[0], *leaf,
                  update_leaf<kRows>(tree.leaf_rows + static_cast<int64_t>(*leaf) * kRows, q));
    }
  }
  for (int level = 0; level < top; ++level)
    for (int32_t i = 0; i < listed[level]; ++i) {
      const int32_t b = tree.worklist[level + 1][i];
      set_child(tree.blocks[level + 1], b, farthest_child(tree.blocks[level][b]));
    }
}

inline Farthest farthest(const Tree& tree) {
  const Block* blocks = tree.blocks[tree.levels - 1];
  const int count = tree.block_count[tree.levels - 1];
  Lanes top = load(blocks[0].farthest);
  for (int b = 1; b < count; ++b) top = lanes_max(top, load(blocks[b].farthest));
  const float distance = largest(top);
  uint64_t mask = 0;
  for (int b = 0; b < count; ++b)
    mask |= static_cast<uint64_t>(equal(load(blocks[b].farthest), broadcast(distance)))
            << (kFanOut * b);
  return {distance, lowest_index(blocks, mask)};
}

template <int kRows>
inline Farthest take(const Tree& tree, const float* pick) {
  const Query q = make_query(pick);
  if (tree.leaves == 1) return update_leaf<kRows>(tree.leaf_rows, q);
  update_tree<kRows>(tree, q);
  return farthest(tree);
}

template <int kRows>
inline void pick_all(const Tree& tree, const float* points, int64_t num, int64_t* indices,
                     float* distances) {
  Farthest best = farthest(tree);
  for (int64_t k = 1;; ++k) {
    indices[k] = best.index;
    if (distances != nullptr) distances[k] = best.distance;
    if (k + 1 == num) return;
    // At 0 every distinct point is taken, and nothing can change any more.
    if (best.distance > 0.0f)
      best = take<kRows>(tree, points + 3 * static_cast<int64_t>(best.index));
  }
}

void pick(const Tree& tree, const float* points, int64_t num, int64_t* indices, float* distances) {
  if (tree.rows == 1)
    pick_all<1>(tree, points, num, indices, distances);
  else
    pick_all<kMaxRows>(tree, points, num, indices, distances);
}

// ---- Building ----------------------------------------------------------------------------------

constexpr int64_t kAhead = 4;

inline float smallest(Lanes a) { return -largest(broadcast(0.0f) - a); }

inline void set_child_box(Block* blocks, int64_t child, const Box& box, Farthest farthest) {
  Block& block = blocks[child / kFanOut];
  for (int axis = 0; axis < 3; ++axis) {
    block.low[axis][child % kFanOut] = box.low[axis];
    block.high[axis][child % kFanOut] = box.high[axis];
  }
  set_child(blocks, static_cast<int32_t>(child), farthest);
}

template <int kRows>
inline void build_some_leaves(const Tree& tree, const float* points, const KeyedPoint* items,
                              int64_t count, const Query& q, int64_t first, int64_t last) {
  for (int64_t leaf = first; leaf < last; ++leaf) {
    Lanes x[kRows], y[kRows], z[kRows], nearest[kRows];
    LeafRow* rows = tree.leaf_rows + leaf * kRows;
    for (int r = 0; r < kRows; ++r) {
      LeafRow& row = rows[r];
      const int64_t begin = (leaf * kRows + r) * kFanOut;
      // The points lie anywhere in memory: ask for those of some rows ahead.
      if (begin + (kAhead + 1) * kFanOut <= count)
        for (int lane = 0; lane < kFanOut; ++lane)
          __builtin_prefetch(
              points + 3 * static_cast<int64_t>(items[begin + kAhead * kFanOut + lane].index));
      for (int lane = 0; lane < kFanOut; ++lane) {
        // Lanes past the end repeat the last point, so that they do not widen the box.
        const uint32_t i = items[begin + lane < count ? begin + lane : count - 1].index;
        const float* p = points + 3 * static_cast<int64_t>(i);
        row.x[lane] = p[0];
        row.y[lane] = p[1];
        row.z[lane] = p[2];
        row.index[lane] = static_cast<int32_t>(i);
      }
      x[r] = load(row.x);
      y[r] = load(row.y);
      z[r] = load(row.z);
      const Lanes dx = x[r] - q.x, dy = y[r] - q.y, dz = z[r] - q.z;
      store(row.nearest, (dx * dx + dy * dy) + dz * dz);
      for (int lane = 0; lane < kFanOut && begin + kFanOut > count; ++lane)
        if (begin + lane >= count) row.nearest[lane] = -INFINITY;
      nearest[r] = load(row.nearest);
    }
    const Farthest farthest = farthest_point<kRows>(rows, nearest);
    Lanes low[3] = {x[0], y[0], z[0]}, high[3] = {x[0], y[0], z[0]};
    for (int r = 1; r < kRows; ++r) {
      low[0] = lanes_min(low[0], x[r]), high[0] = lanes_max(high[0], x[r]);
      low[1] = lanes_min(low[1], y[r]), high[1] = lanes_max(high[1], y[r]);
      low[2] = lanes_min(low[2], z[r]), high[2] = lanes_max(high[2], z[r]);
    }
    const Box box{{smallest(low[0]), smallest(low[1]), smallest(low[2])},
                  {largest(high[0]), largest(high[1]), largest(high[2])}};
    set_child_box(tree.blocks[0], leaf, box, farthest);
  }
}

void build_leaves(const Tree& tree, const float* points, const KeyedPoint* items, int64_t count,
                  const float start[3], int64_t first, int64_t last) {
  const Query q = make_query(start);
  if (tree.rows == 1)
    build_some_leaves<1>(tree, points, items, count, q, first, last);
  else
    build_some_leaves<kMaxRows>(tree, points, items, count, q, first, last);
}

void build_blocks(const Tree& tree) {
  // A missing child: an empty box that no query touches.
  const Box empty{{INFINITY, INFINITY, INFINITY}, {-INFINITY, -INFINITY, -INFINITY}};
  int64_t children = tree.leaves;
  for (int level = 0;; ++level) {
    const int64_t places = static_cast<int64_t>(tree.block_count[level]) * kFanOut;
    for (int64_t child = children; child < places; ++child)
      set_child_box(tree.blocks[level], child, empty, {-INFINITY, INT32_MAX});
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

// ---- Sorting along the curve -------------------------------------------------------------------

bool bounds(const float* points, int64_t count, Box* box) {
  // Three rows of 16 floats hold 16 points; which axis a lane holds repeats every three rows.
  alignas(64) float low[48], high[48], bad[48], tail[48];
  Lanes lows[3], highs[3], bads[3];
  for (int r = 0; r < 3; ++r) {
    lows[r] = broadcast(INFINITY);
    highs[r] = broadcast(-INFINITY);
    bads[r] = broadcast(0.0f);
  }
  for (int64_t i = 0; i < count; i += kFanOut) {
    const float* from = points + 3 * i;
    if (i + kFanOut > count) {
      for (int64_t v = 0; v < 48; ++v) tail[v] = from[v < 3 * (count - i) ? v : v % 3];
      from = tail;
    }
    for (int r = 0; r < 3; ++r) {
      const Lanes v = load_unaligned(from + kLanes * r);
      lows[r] = lanes_min(lows[r], v);
      highs[r] = lanes_max(highs[r], v);
      bads[r] = bads[r] + (v - v);  // 0, or NaN for good
    }
  }
  for (int r = 0; r < 3; ++r) {
    store(low + kLanes * r, lows[r]);
    store(high + kLanes * r, highs[r]);
    store(bad + kLanes * r, bads[r]);
  }
  *box = {{low[0], low[1], low[2]}, {high[0], high[1], high[2]}};
  bool finite = true;
  for (int v = 0; v < 48; ++v) {
    box->low[v % 3] = low[v] < box->low[v % 3] ? low[v] : box->low[v % 3];
    box->high[v % 3] = high[v] > box->high[v % 3] ? high[v] : box->high[v % 3];
    finite &= bad[v] == 0.0f;
  }
  return finite;
}

inline uint32_t spread_bits(uint32_t v) {  // bit i goes to bit 3 i, for the low 8 bits
  v = (v | v << 8) & 0x0000F00Fu;
  v = (v | v << 4) & 0x000C30C3u;
  return (v | v << 2) & 0x00249249u;
}

void curve_keys(const float* points, KeyedPoint* items, int64_t count, int64_t first,
                const float low[3], float scale, int bits) {
  const float last = static_cast<float>((1 << bits) - 1);
  for (int64_t begin = 0; begin < count; begin += kFanOut) {
    const int64_t size = count - begin < kFanOut ? count - begin : kFanOut;
    float v[3][kFanOut] = {};
    uint32_t keys[kFanOut];
    for (int64_t i = 0; i < size; ++i) {
      KeyedPoint& item = items[begin + i];
      if (first >= 0) item.index = static_cast<uint32_t>(first + begin + i);
      const float* p = points + 3 * static_cast<int64_t>(item.index);
      for (int axis = 0; axis < 3; ++axis) v[axis][i] = p[axis];
    }
    for (int i = 0; i < kFanOut; ++i) {
      uint32_t key = 0;
      for (int axis = 0; axis < 3; ++axis) {
        const float cell = (v[axis][i] - low[axis]) * scale;
        const float inside = cell < last ? cell : last;
        key |= spread_bits(static_cast<uint32_t>(static_cast<int32_t>(inside))) << (2 - axis);
      }
      keys[i] = key;
    }
    for (int64_t i = 0; i < size; ++i) items[begin + i].key = keys[i];
  }
}

}  // namespace

extern const TreeKernels FASTSHAPE_TREE_KERNELS;
const TreeKernels FASTSHAPE_TREE_KERNELS = {bounds, curve_keys, build_leaves, build_blocks, pick};

}  // namespace fastshape::cpu
