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
#include "sampling/farthest_point_sampling_cpu.h"

namespace fastshape::cpu {
namespace {

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

struct Keyed {
  uint32_t key, index;
};

constexpr int kDigitBits = 12;
constexpr int kDigits = 1 << kDigitBits;

// Sorts by the 24 bits of the key, stably, through `other`.
void radix_sort(Keyed* items, Keyed* other, int64_t count) {
  static_assert(sizeof(Keyed) == 8, "");
  thread_local std::vector<uint32_t> counts(2 * kDigits);
  std::fill(counts.begin(), counts.end(), 0u);
  uint32_t* low = counts.data();
  uint32_t* high = low + kDigits;
  for (int64_t i = 0; i < count; ++i) {
    ++low[items[i].key & (kDigits - 1)];
    ++high[items[i].key >> kDigitBits];
  }
  uint32_t low_sum = 0, high_sum = 0;
  for (int d = 0; d < kDigits; ++d) {
    low_sum += std::exchange(low[d], low_sum);
    high_sum += std::exchange(high[d], high_sum);
  }
  for (int64_t i = 0; i < count; ++i) other[low[items[i].key & (kDigits - 1)]++] = items[i];
  for (int64_t i = 0; i < count; ++i) items[high[other[i].key >> kDigitBits]++] = other[i];
}

class CloudSampler {
 public:
  CloudSampler(const TreeKernels& kernels, const float* points, int64_t length)
      : kernels_(kernels), points_(points), length_(length) {}

  void run(int64_t start, int64_t num, int64_t* indices, float* distances) {
    if (num <= 0) return;
    collect_finite();
    const int64_t valid = std::min<int64_t>(num, count_);
    std::fill(indices + valid, indices + num, int64_t{-1});
    if (distances != nullptr) std::fill(distances + valid, distances + num, 0.0f);
    if (valid == 0) return;
    if (start < 0 || start >= length_ || !finite(start)) start = order_[0];
    indices[0] = start;
    if (distances != nullptr) distances[0] = INFINITY;
    if (valid == 1) return;
    const bool worth_sorting = count_ > 512 && valid > 32;
    if (worth_sorting) sort(order_.get(), count_);
    make_tree(valid);
    kernels_.build(tree_, points_, order_.get(), count_, points_ + 3 * start);
    kernels_.pick(tree_, points_, valid, indices, distances);
    if (distances != nullptr)
      for (int64_t k = 1; k < valid; ++k) distances[k] = std::sqrt(distances[k]);
  }

 private:
  bool finite(int64_t i) const {
    const float* p = points_ + 3 * i;
    return is_finite_point(p[0], p[1], p[2]);
  }

  void collect_finite() {
    order_.reset(new int32_t[length_]);
    for (int64_t i = 0; i < length_; ++i) {
      order_[count_] = static_cast<int32_t>(i);
      count_ += finite(i);
    }
  }

  void sort(int32_t* order, int64_t count) {
    float low[3] = {INFINITY, INFINITY, INFINITY}, high[3] = {-INFINITY, -INFINITY, -INFINITY},
          scale[3];
    for (int64_t i = 0; i < count; ++i)
      for (int axis = 0; axis < 3; ++axis) {
        const float v = points_[3 * static_cast<int64_t>(order[i]) + axis];
        low[axis] = std::min(low[axis], v);
        high[axis] = std::max(high[axis], v);
      }
    float extent = 0;
    for (int axis = 0; axis < 3; ++axis) extent = std::max(extent, high[axis] - low[axis]);
    if (!(extent > 0.0f)) return;
    for (int axis = 0; axis < 3; ++axis) scale[axis] = 256.0f / extent;
    std::unique_ptr<uint32_t[]> keys(new uint32_t[count]);
    std::unique_ptr<Keyed[]> items(new Keyed[count]), other(new Keyed[count]);
    kernels_.curve_keys(points_, order, count, low, scale, keys.get());
    for (int64_t i = 0; i < count; ++i) items[i] = {keys[i], static_cast<uint32_t>(order[i])};
    radix_sort(items.get(), other.get(), count);
    for (int64_t i = 0; i < count; ++i) order[i] = static_cast<int32_t>(items[i].index);
    // A cell that holds many points (an outlier stretches the box, the density varies) is cut again
    // on its own scale.
    for (int64_t begin = 0, end; begin < count; begin = end) {
      for (end = begin + 1; end < count && items[end].key == items[begin].key;) ++end;
      if (end - begin > 256 && end - begin < count) sort(order + begin, end - begin);
    }
  }

  void make_tree(int64_t picks) {
    const int64_t per_pick = count_ / picks;
    tree_.rows = per_pick <= 24 ? 1 : per_pick <= 48 ? 2 : per_pick <= 512 ? 4 : 8;
    const int64_t leaf_size = static_cast<int64_t>(tree_.rows) * kFanOut;
    tree_.leaves = static_cast<int32_t>((count_ + leaf_size - 1) / leaf_size);
    size_t bytes = sizeof(LeafRow) * tree_.leaves * tree_.rows;
    int64_t children = tree_.leaves;
    int level = 0;
    size_t list = children + kFanOut;
    do {
      children = (children + kFanOut - 1) / kFanOut;
      tree_.block_count[level++] = static_cast<int32_t>(children);
      bytes += sizeof(Block) * children;
      list += children + kFanOut;
    } while (children > kMaxTopBlocks);
    tree_.levels = level;
    storage_.reset(static_cast<char*>(::operator new[](bytes, std::align_val_t(64))));
    lists_.reset(new int32_t[list]);
    char* p = storage_.get();
    tree_.leaf_rows = reinterpret_cast<LeafRow*>(p);
    p += sizeof(LeafRow) * tree_.leaves * tree_.rows;
    int32_t* l = lists_.get();
    tree_.worklist[0] = l;
    l += tree_.leaves + kFanOut;
    for (int i = 0; i < level; ++i) {
      tree_.blocks[i] = reinterpret_cast<Block*>(p);
      p += sizeof(Block) * tree_.block_count[i];
      tree_.worklist[i + 1] = l;
      l += tree_.block_count[i] + kFanOut;
    }
  }

  struct Free {
    void operator()(char* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };

  const TreeKernels& kernels_;
  const float* points_;
  const int64_t length_;
  int64_t count_ = 0;
  std::unique_ptr<int32_t[]> order_;
  std::unique_ptr<char[], Free> storage_;
  std::unique_ptr<int32_t[]> lists_;
  Tree tree_{};
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
      if (task.global_indices)
        for (int64_t k = 0; k < task.num[b]; ++k)
          if (indices[k] >= 0) indices[k] += task.begin[b];
    }
  });
}

}  // namespace fastshape::cpu
