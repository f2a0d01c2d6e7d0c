// What the instruction sets' translation units give to cast_rays_cpu.cpp.
#pragma once

#include "geometry/cast_rays.h"

namespace fastshape::cpu {

#define FASTSHAPE_DECLARE(suffix)                                                             \
  void cast_rays_##suffix(const CastRays<float>& task, const uint32_t* order, int64_t begin,  \
                          int64_t end);                                                       \
  void cast_rays_##suffix(const CastRays<double>& task, const uint32_t* order, int64_t begin, \
                          int64_t end);
FASTSHAPE_DECLARE(portable)
FASTSHAPE_DECLARE(avx2)
FASTSHAPE_DECLARE(avx512)
#undef FASTSHAPE_DECLARE

}  // namespace fastshape::cpu
