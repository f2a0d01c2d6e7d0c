#include "isosurface/dual_surface_cpu.h"
#include "isosurface/dual_surface_loop.h"

namespace fastshape {
FASTSHAPE_DEFINE_DUAL_SLABS(avx512)
}  // namespace fastshape
