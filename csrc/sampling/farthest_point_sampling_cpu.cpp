#include "sampling/farthest_point_sampling_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "sampling/farthest_point_sampling.h"

namespace fastshape::cpu {
namespace {

// Below these sorting costs more than it saves.
constexpr int64_t kSortLength = 256;
constexpr int64_t kSortPicks = 32;
// From here on the threads share the sorting and building of one cloud. The picks follow each other
// too closely for that: a barrier for each costs more than it saves wherever a thread may be held
// up.
constexpr int64_t kSharedLength = int64_t{1} << 17;
constexpr int kShares = 8;
// Leaves have one row where a pick has fewer points than this to itself in the end, else kMaxRows.
constexpr int64_t kSmallLeafShare = 12;
// A cell of the curve with more points is cut again on its own scale.
constexpr int64_t kCellPoints = 256;

const TreeKernels& tree_kernels() {
#if defined(FASTSHAPE_X86)
  switch (instruction_set()) {
    case InstructionSet::avx512:
      return kTreeKernelsAvx512;
    case InstructionSet::avx2:
      return kTreeKernelsAvx2;
    case InstructionSet::portable:
      break;
  }
#endif
  return kTreeKernelsPortable;
}

// Uninitialized, aligned for rows of floats, and on the stack where small.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    const size_t bytes = sizeof(T) * static_cast<size_t>(count);
    data_ = bytes <= sizeof(small_) ? small_ : ::operator new(bytes, std::align_val_t(64));
  }
  ~Buffer() {
    if (data_ != small_) ::operator delete(data_, std::align_val_t(64));
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() { return static_cast<T*>(data_); }

 private:
  alignas(64) char small_[1024];
  void* data_;
};

class CloudSampler {
 public:
  CloudSampler(const TreeKernels& kernels, const float* points, int64_t length)
      : kernels_(kernels), points_(points), length_(length) {}

  void run(int64_t start, int64_t num, int64_t* indices, float* distances) {
    Buffer<KeyedPoint> items(length_);
    Box box;
    const bool all_finite = kernels_.bounds(points_, length_, &box);
    const int64_t count = all_finite ? length_ : collect_finite(items.get(), &box);
    const int64_t valid = std::min(num, count);
    std::fill(indices + valid, indices + num, int64_t{-1});
    if (distances != nullptr) std::fill(distances + valid, distances + num, 0.0f);
    if (valid == 0) return;
    if (start < 0 || start >= length_ || !finite(start))
      start = all_finite ? 0 : items.get()->index;
    indices[0] = start;
    if (distances != nullptr) distances[0] = INFINITY;
    if (valid == 1) return;

    Tree tree = shape_tree(count, count <= kSmallLeafShare * valid ? 1 : kMaxRows);
    int64_t block_count = 0, list_length = tree.leaves + kFanOut;
    for (int level = 0; level < tree.levels; ++level) {
      block_count += tree.block_count[level];
      list_length += tree.block_count[level] + kFanOut;
    }
    Buffer<LeafRow> leaf_rows(static_cast<int64_t>(tree.leaves) * tree.rows);
    Buffer<Block> blocks(block_count);
    Buffer<int32_t> lists(list_length);
    place_tree(&tree, leaf_rows.get(), blocks.get(), lists.get());

    const int shares = count >= kSharedLength ? kShares : 1;
    if (count > kSortLength && valid > kSortPicks) {
      // The leaves are written after sorting: until then their place serves as its other half.
      auto* other = reinterpret_cast<KeyedPoint*>(leaf_rows.get());
      static_assert(sizeof(LeafRow) >= kFanOut * sizeof(KeyedPoint), "");
      sort(items.get(), other, count, all_finite, box, shares);
    } else if (all_finite) {
      for (int64_t i = 0; i < count; ++i) items.get()[i].index = static_cast<uint32_t>(i);
    }
    parallel_for(shares, 1, [&](int64_t begin, int64_t end) {
      kernels_.build_leaves(tree, points_, items.get(), count, points_ + 3 * start,
                            tree.leaves * begin / shares, tree.leaves * end / shares);
    });
    kernels_.build_blocks(tree);
    kernels_.pick(tree, points_, valid, indices, distances);
    if (distances != nullptr)
      for (int64_t k = 1; k < valid; ++k) distances[k] = std::sqrt(distances[k]);
  }

 private:
  bool finite(int64_t i) const {
    const float* p = points_ + 3 * i;
    return is_finite_point(p[0], p[1], p[2]);
  }

  // The finite points in order, and their box.
  int64_t collect_finite(KeyedPoint* items, Box* box) const {
    int64_t count = 0;
    for (int64_t i = 0; i < length_; ++i) {
      items[count].index = static_cast<uint32_t>(i);
      count += finite(i);
    }
    *box = box_of(items, count);
    return count;
  }

  Box box_of(const KeyedPoint* items, int64_t count) const {
    Box box{{INFINITY, INFINITY, INFINITY}, {-INFINITY, -INFINITY, -INFINITY}};
    for (int64_t i = 0; i < count; ++i)
      for (int axis = 0; axis < 3; ++axis) {
        const float v = points_[3 * static_cast<int64_t>(items[i].index) + axis];
        box.low[axis] = std::min(box.low[axis], v);
        box.high[axis] = std::max(box.high[axis], v);
      }
    return box;
  }

  // Sorts along the curve: two stable passes of a radix sort, each in `shares` pieces that threads
  // may take. `fresh`: the points are 0 .. count - 1, their indices are not there yet.
  void sort(KeyedPoint* items, KeyedPoint* other, int64_t count, bool fresh, const Box& box,
            int shares) const {
    float extent = 0;
    for (int axis = 0; axis < 3; ++axis) extent = std::max(extent, box.high[axis] - box.low[axis]);
    const int bits = count < 8192 ? 6 : 8;
    const int digit_bits = 3 * bits / 2;
    const uint32_t digits = 1u << digit_bits, mask = digits - 1;
    const float scale = static_cast<float>(1 << bits) / extent;
    std::vector<uint32_t> counts(static_cast<size_t>(digits) * shares);
    const auto for_shares = [&](auto&& body) {
      parallel_for(shares, 1, [&](int64_t first, int64_t last) {
        for (int64_t s = first; s < last; ++s)
          body(count * s / shares, count * (s + 1) / shares, counts.data() + digits * s);
      });
    };
    const auto pass = [&](const KeyedPoint* from, KeyedPoint* to, int shift) {
      for_shares([&](int64_t begin, int64_t end, uint32_t* place) {
        std::fill(place, place + digits, 0u);
        for (int64_t i = begin; i < end; ++i) ++place[from[i].key >> shift & mask];
      });
      uint32_t sum = 0;
      for (uint32_t d = 0; d < digits; ++d)
        for (int s = 0; s < shares; ++s) sum += std::exchange(counts[digits * s + d], sum);
      for_shares([&](int64_t begin, int64_t end, uint32_t* place) {
        for (int64_t i = begin; i < end; ++i) to[place[from[i].key >> shift & mask]++] = from[i];
      });
    };
    for_shares([&](int64_t begin, int64_t end, uint32_t*) {
      kernels_.curve_keys(points_, items + begin, end - begin, fresh ? begin : -1, box.low, scale,
                          bits);
    });
    pass(items, other, 0);
    pass(other, items, digit_bits);
    // Where an outlier stretches the box or the density varies, a cell may hold many points.
    for (int64_t begin = 0, end; begin < count; begin = end) {
      for (end = begin + 1; end < count && items[end].key == items[begin].key;) ++end;
      if (end - begin <= kCellPoints || end - begin == count) continue;
      sort(items + begin, other, end - begin, false, box_of(items + begin, end - begin), 1);
    }
  }

  static Tree shape_tree(int64_t count, int rows) {
    Tree tree{};
    const int64_t leaf_size = static_cast<int64_t>(rows) * kFanOut;
    int64_t children = (count + leaf_size - 1) / leaf_size;
    tree.leaves = static_cast<int32_t>(children);
    tree.rows = rows;
    do {
      children = (children + kFanOut - 1) / kFanOut;
      tree.block_count[tree.levels++] = static_cast<int32_t>(children);
    } while (children > kMaxTopBlocks);
    return tree;
  }

  static void place_tree(Tree* tree, LeafRow* rows, Block* blocks, int32_t* lists) {
    tree->leaf_rows = rows;
    tree->worklist[0] = lists;
    lists += tree->leaves + kFanOut;
    for (int level = 0; level < tree->levels; ++level) {
      tree->blocks[level] = blocks;
      blocks += tree->block_count[level];
      tree->worklist[level + 1] = lists;
      lists += tree->block_count[level] + kFanOut;
    }
  }

  const TreeKernels& kernels_;
  const float* points_;
  const int64_t length_;
};

}  // namespace

void farthest_point_sampling(const FarthestPointSampling& task) {
  const TreeKernels& kernels = tree_kernels();
  parallel_for(task.batch, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      int64_t* indices = task.indices + task.out_begin[b];
      float* distances = task.distances != nullptr ? task.distances + task.out_begin[b] : nullptr;
      CloudSampler(kernels, task.points + 3 * task.begin[b], task.length[b])
          .run(task.start[b], task.num[b], indices, distances);
      if (!task.global_indices) continue;
      for (int64_t k = 0; k < task.num[b]; ++k)
        if (indices[k] >= 0) indices[k] += task.begin[b];
    }
  });
}

}  // namespace fastshape::cpu
