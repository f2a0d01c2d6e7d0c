// What the instruction sets' translation units give to attention_cpu.cpp.
#pragma once

#include "attention/attention.h"

namespace fastshape::cpu {

// Part of a sequence's queries, of one head.
struct AttentionItem {
  int32_t sequence;
  int32_t begin_q, end_q;  // positions
};

constexpr int kQueryChunk = 512;  // positions that are worked on together
constexpr int kKeyChunk = 512;

// `scratch` is aligned to 64 bytes. The backward one takes whole sequences and adds to the two sums
// (head_dim,) of the gammas' gradients, if they are not null.
#define FASTSHAPE_DECLARE(suffix, T)                                                              \
  void attention_item_##suffix(const AttentionForward<T>& task, const AttentionItem& item,        \
                               int64_t head, void* scratch);                                      \
  void attention_backward_item_##suffix(const AttentionBackward<T>& task, int64_t sequence,       \
                                        int64_t head, wide<T>* q_gamma_sum, wide<T>* k_gamma_sum, \
                                        void* scratch);
#define FASTSHAPE_DECLARE_ALL(suffix) \
  FASTSHAPE_DECLARE(suffix, float)    \
  FASTSHAPE_DECLARE(suffix, double)   \
  FASTSHAPE_DECLARE(suffix, BFloat16) \
  FASTSHAPE_DECLARE(suffix, Float16)
FASTSHAPE_DECLARE_ALL(portable)
FASTSHAPE_DECLARE_ALL(avx2)
FASTSHAPE_DECLARE_ALL(avx512)
FASTSHAPE_DECLARE(avx512bf16, BFloat16)  // with the processor's products of bfloat16
#undef FASTSHAPE_DECLARE_ALL
#undef FASTSHAPE_DECLARE

}  // namespace fastshape::cpu
