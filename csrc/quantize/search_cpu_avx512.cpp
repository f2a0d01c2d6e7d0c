#include "quantize/search_loop.h"

namespace fastshape {
FASTSHAPE_DEFINE_SEARCH(avx512)
}  // namespace fastshape
