#include <algorithm>
#include <atomic>
#include <memory>
#include <type_traits>
#include <vector>

#include "attention/attention_loop.h"
#include "core/dispatch.h"
#include "core/parallel.h"

namespace fastshape::cpu {

FASTSHAPE_DEFINE_ATTENTION(portable)

namespace {

template <class T>
using ForwardItem = void (*)(const AttentionForward<T>&, const AttentionItem&, int64_t, void*);
template <class T>
using BackwardItem = void (*)(const AttentionBackward<T>&, int64_t, int64_t, wide<T>*, wide<T>*,
                              void*);

#if defined(FASTSHAPE_X86)
// A processor with the other AVX-512 sets may not have this one.
bool has_bfloat16_products() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
}
#endif

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

// f(begin, end, head, scratch) for shares of [0, count) and every head.
template <class F>
void for_shares(int64_t count, int64_t shares, int64_t heads, size_t scratch, F&& f) {
  if (count == 0 || heads == 0) return;
  const int threads = num_threads();
  std::atomic<int64_t> next{0};
  parallel_team(static_cast<int>(std::min<int64_t>(threads, shares * heads)), [&](int, int) {
    ThreadScratch memory(scratch);
    for (;;) {
      const int64_t at = next.fetch_add(1, std::memory_order_relaxed);
      if (at >= shares * heads) return;
      const int64_t share = at / heads;
      f(share * count / shares, (share + 1) * count / shares, at % heads, share, memory.data());
    }
  });
}

constexpr int64_t kForwardShares = 512;

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
  const ForwardItem<T> forward = forward_function<T>();
  for_shares(count, std::min(count, kForwardShares), in.num_heads,
             scratch_bytes(sizeof(wide<T>), 0),
             [&](int64_t begin, int64_t end, int64_t head, int64_t, void* scratch) {
               for (int64_t i = begin; i < end; ++i)
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
  for_shares(
      in.num_sequences, task.gamma_parts, in.num_heads, scratch_bytes(sizeof(wide<T>), longest),
      [&](int64_t begin, int64_t end, int64_t head, int64_t share, void* scratch) {
        const auto sum_of = [&](wide<T>* parts) -> wide<T>* {
          if (parts == nullptr) return nullptr;
          wide<T>* sum = parts + (share * in.num_heads + head) * in.head_dim;
          std::fill(sum, sum + in.head_dim, wide<T>(0));
          return sum;
        };
        wide<T>*const q_sum = sum_of(task.q_gamma_grad), *const k_sum = sum_of(task.k_gamma_grad);
        for (int64_t s = begin; s < end; ++s) backward(task, s, head, q_sum, k_sum, scratch);
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
