// What the instruction sets' translation units give to depth_carve_cpu.cpp.
#pragma once

#include "carving/depth_carve.h"

namespace fastshape::cpu {

// The mask of voxels [begin, end); *bad_row becomes the first that is not in the extent if that is
// below what is there.
#define FASTSHAPE_DECLARE(suffix)                                                      \
  void carve_rows_##suffix(const DepthCarve<float>& task, int64_t begin, int64_t end,  \
                           int64_t* bad_row);                                          \
  void carve_rows_##suffix(const DepthCarve<double>& task, int64_t begin, int64_t end, \
                           int64_t* bad_row);
FASTSHAPE_DECLARE(portable)
FASTSHAPE_DECLARE(avx2)
FASTSHAPE_DECLARE(avx512)
#undef FASTSHAPE_DECLARE

}  // namespace fastshape::cpu
