#include "quantize/search_loop.h"

namespace fastshape {
FASTSHAPE_DEFINE_SEARCH(avx2)
}  // namespace fastshape
