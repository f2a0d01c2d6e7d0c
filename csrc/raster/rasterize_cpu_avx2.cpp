#include "raster/rasterize_cpu.h"
#include "raster/rasterize_loop.h"

namespace fastshape {
FASTSHAPE_DEFINE_BANDS(avx2)
}  // namespace fastshape
