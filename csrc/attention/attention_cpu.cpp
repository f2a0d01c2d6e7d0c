#include <algorithm>
#include <atomic>
#include <memory>
#include <type_traits>
#include <vector>

#include "attention/attention_loop.h"
#include "core/dispatch.h"
#include "core/huge_pages.h"
#include "core/parallel.h"

namespace fastshape::cpu {

FASTSHAPE_DEFINE_ATTENTION(portable)

namespace {

template <class T>
using ForwardItem = void (*)(const AttentionForward<T>&, const AttentionItem&, int64_t, void*);
template <class T>
using BackwardItem = void (*)(const AttentionBackward<T>&, int64_t, int64_t, wide<T>*, wide<T>*,
                              void*);

template <class T>
ForwardItem<T> forward_function() {
#if defined(FASTSHAPE_X86)
  switch (instruction_set()) {
    case InstructionSet::avx512:
      if constexpr (std::is_same<T, BFloat16>::value)
        if (has_bfloat16_products()) return attention_item_avx512bf16;
      return attention_item_avx512;
    case InstructionSet::avx2:
      return attention_item_avx2;
    case InstructionSet::portable:
      break;
  }
#endif
  return attention_item_portable;
}

template <class T>
BackwardItem<T> backward_function() {
#if defined(FASTSHAPE_X86)
  switch (instruction_set()) {
    case InstructionSet::avx512:
      if constexpr (std::is_same<T, BFloat16>::value)
        if (has_bfloat16_products()) return attention_backward_item_avx512bf16;
      return attention_backward_item_avx512;
    case InstructionSet::avx2:
      return attention_backward_item_avx2;
    case InstructionSet::portable:
      break;
  }
#endif
  return attention_backward_item_portable;
}

// More than any instruction set's kernels take: panels of at most 64 columns, rows of whole
// registers.
constexpr int64_t kSpare = 64;

size_t scratch_bytes(size_t wide_bytes, int64_t more_rows) {
  const int64_t rows = 8 * (kQueryChunk + kKeyChunk + kSpare) + more_rows;
  const int64_t scores = 2 * kBackwardQueryBlock * kKeyChunk;
  return wide_bytes * static_cast<size_t>(rows * kMaxHeadDim + scores);
}

struct ThreadScratch {
  explicit ThreadScratch(size_t bytes) : bytes_(new unsigned char[bytes + 64]) {}
  void* data() {
    auto address = reinterpret_cast<uintptr_t>(bytes_.get());
    return bytes_.get() + (64 - address % 64) % 64;
  }

 private:
  std::unique_ptr<unsigned char[]> bytes_;
};

struct Share {
  int64_t number;
  int64_t begin, end;  // of what is shared out
  int64_t first_head, end_head;
};

// f(share, scratch) for shares of [0, count) and every head. Where there are enough that are not
// empty one thread has all heads of a share: their features lie side by side in memory.
template <class F>
void for_shares(int64_t count, int64_t shares, int64_t heads, size_t scratch, F&& f) {
  if (count == 0 || heads == 0) return;
  const int threads = num_threads();
  const int64_t groups = std::min(count, shares) >= 16 * threads ? 1 : heads;
  const int64_t group = heads / groups;
  std::atomic<int64_t> next{0};
  parallel_team(static_cast<int>(std::min<int64_t>(threads, shares * groups)), [&](int, int) {
    ThreadScratch memory(scratch);
    for (;;) {
      const int64_t at = next.fetch_add(1, std::memory_order_relaxed);
      if (at >= shares * groups) return;
      const int64_t number = at / groups, head = at % groups * group;
      f(Share{number, number * count / shares, (number + 1) * count / shares, head, head + group},
        memory.data());
    }
  });
}

constexpr int64_t kForwardShares = 512;

// Of rows that are all going to be written.
template <class T>
void advise(const HeadRows<T>& rows, int64_t count, int64_t heads, int head_dim) {
  if (count == 0 || heads == 0) return;
  const int64_t span = (count - 1) * rows.row_stride + (heads - 1) * rows.head_stride + head_dim;
  advise_huge_pages(rows.data, static_cast<size_t>(span) * sizeof(T));
}

}  // namespace

template <class T>
void attention(const AttentionForward<T>& task) {
  const Attention<T>& in = task.in;
  std::vector<AttentionItem> items;
  items.reserve(static_cast<size_t>(in.num_sequences));
  for (int64_t s = 0; s < in.num_sequences; ++s) {
    const int64_t end = in.queries.offsets[s + 1];
    for (int64_t p = in.queries.offsets[s]; p < end; p += kQueryChunk)
      items.push_back({static_cast<int32_t>(s), static_cast<int32_t>(p),
                       static_cast<int32_t>(std::min(end, p + kQueryChunk))});
  }
  const auto count = static_cast<int64_t>(items.size());
  advise(task.out, in.queries.total, in.num_heads, in.head_dim);
  const ForwardItem<T> forward = forward_function<T>();
  for_shares(count, std::min(count, kForwardShares), in.num_heads,
             scratch_bytes(sizeof(wide<T>), 0), [&](const Share& share, void* scratch) {
               for (int64_t i = share.begin; i < share.end; ++i)
                 for (int64_t head = share.first_head; head < share.end_head; ++head)
                   forward(task, items[static_cast<size_t>(i)], head, scratch);
             });
}

template <class T>
void attention_backward(const AttentionBackward<T>& task) {
  const Attention<T>& in = task.in;
  int64_t longest = 0;
  for (int64_t s = 0; s < in.num_sequences; ++s)
    longest = std::max<int64_t>(longest, in.queries.offsets[s + 1] - in.queries.offsets[s]);
  const BackwardItem<T> backward = backward_function<T>();
  advise(task.grad_q, in.queries.total, in.num_heads, in.head_dim);
  advise(task.grad_k, in.keys.total, in.num_heads, in.head_dim);
  advise(task.grad_v, in.keys.total, in.num_heads, in.head_dim);
  for_shares(
      in.num_sequences, task.gamma_parts, in.num_heads, scratch_bytes(sizeof(wide<T>), longest),
      [&](const Share& share, void* scratch) {
        const auto sum_of = [&](wide<T>* parts, int64_t head) {
          return parts == nullptr ? nullptr
                                  : parts + (share.number * in.num_heads + head) * in.head_dim;
        };
        for (wide<T>* parts : {task.q_gamma_grad, task.k_gamma_grad})
          if (parts != nullptr)
            std::fill(sum_of(parts, share.first_head), sum_of(parts, share.end_head), wide<T>(0));
        for (int64_t s = share.begin; s < share.end; ++s)
          for (int64_t head = share.first_head; head < share.end_head; ++head)
            backward(task, s, head, sum_of(task.q_gamma_grad, head),
                     sum_of(task.k_gamma_grad, head), scratch);
      });
}

#define FASTSHAPE_INSTANTIATE(T)                          \
  template void attention<T>(const AttentionForward<T>&); \
  template void attention_backward<T>(const AttentionBackward<T>&);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
FASTSHAPE_INSTANTIATE(BFloat16)
FASTSHAPE_INSTANTIATE(Float16)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cpu
