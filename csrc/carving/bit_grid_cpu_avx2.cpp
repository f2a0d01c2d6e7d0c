#include "carving/bit_grid_cpu.h"
#include "carving/bit_grid_loop.h"

namespace fastshape {
FASTSHAPE_DEFINE_BIT_LOOPS(avx2)
}  // namespace fastshape
