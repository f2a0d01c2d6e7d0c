// What the instruction sets' translation units give to closest_point_cpu.cpp.
#pragma once

#include "geometry/closest_point.h"

namespace fastshape::cpu {

#define FASTSHAPE_DECLARE(suffix)                                                      \
  void closest_point_##suffix(const ClosestPoint<float>& task, const uint32_t* order,  \
                              int64_t begin, int64_t end);                             \
  void closest_point_##suffix(const ClosestPoint<double>& task, const uint32_t* order, \
                              int64_t begin, int64_t end);
FASTSHAPE_DECLARE(portable)
FASTSHAPE_DECLARE(avx2)
FASTSHAPE_DECLARE(avx512)
#undef FASTSHAPE_DECLARE

}  // namespace fastshape::cpu
