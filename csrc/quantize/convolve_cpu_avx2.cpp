#include "quantize/convolve_loop.h"

namespace fastshape {
FASTSHAPE_DEFINE_CONVOLVE(avx2)
}  // namespace fastshape
