#include "attention/attention_loop.h"

namespace fastshape::cpu {
FASTSHAPE_DEFINE_ATTENTION(avx2)
}  // namespace fastshape::cpu
