// What the instruction sets' translation units give to ray_parity_cpu.cpp.
#pragma once

#include "geometry/ray_parity.h"

namespace fastshape::cpu {

#define FASTSHAPE_DECLARE(suffix)                                                               \
  void ray_parity_##suffix(const RayParity<float>& task, const uint32_t* order, int64_t begin,  \
                           int64_t end);                                                        \
  void ray_parity_##suffix(const RayParity<double>& task, const uint32_t* order, int64_t begin, \
                           int64_t end);
FASTSHAPE_DECLARE(portable)
FASTSHAPE_DECLARE(avx2)
FASTSHAPE_DECLARE(avx512)
#undef FASTSHAPE_DECLARE

}  // namespace fastshape::cpu
