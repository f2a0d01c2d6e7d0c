#include "sparse/sparse_conv3d_loop.h"

namespace fastshape {
FASTSHAPE_DEFINE_CONV_KERNELS(avx512)
}  // namespace fastshape
