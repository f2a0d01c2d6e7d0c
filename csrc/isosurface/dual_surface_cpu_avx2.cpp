#include "isosurface/dual_surface_cpu.h"
#include "isosurface/dual_surface_loop.h"

namespace fastshape {
FASTSHAPE_DEFINE_DUAL_SLABS(avx2)
}  // namespace fastshape
