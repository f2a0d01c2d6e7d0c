#include "isosurface/marching_cubes_cpu.h"
#include "isosurface/marching_cubes_loop.h"

namespace fastshape {
FASTSHAPE_DEFINE_SLABS(avx2)
}  // namespace fastshape
