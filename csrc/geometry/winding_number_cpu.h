// What the instruction sets' translation units give to winding_number_cpu.cpp.
#pragma once

#include "geometry/winding_number.h"

namespace fastshape::cpu {

#define FASTSHAPE_DECLARE(suffix)                                                        \
  void winding_number_##suffix(const WindingNumber<float>& task, const uint32_t* order,  \
                               int64_t begin, int64_t end);                              \
  void winding_number_##suffix(const WindingNumber<double>& task, const uint32_t* order, \
                               int64_t begin, int64_t end);
FASTSHAPE_DECLARE(portable)
FASTSHAPE_DECLARE(avx2)
FASTSHAPE_DECLARE(avx512)
#undef FASTSHAPE_DECLARE

}  // namespace fastshape::cpu
