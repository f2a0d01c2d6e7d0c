#include "carving/depth_carve_cpu.h"
#include "carving/depth_carve_loop.h"

namespace fastshape {
FASTSHAPE_DEFINE_CARVE_ROWS(avx512)
}  // namespace fastshape
