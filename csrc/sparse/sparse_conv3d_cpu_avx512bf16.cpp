#include "sparse/sparse_conv3d_loop.h"

namespace fastshape {
void cpu::conv_kernels_avx512bf16(ConvKernels<BFloat16>* out) { conv_kernels(out); }
}  // namespace fastshape
