#include "geometry/winding_number_cpu.h"
#include "geometry/winding_number_loop.h"

namespace fastshape::cpu {

void winding_number_avx512(const WindingNumber<float>& task, const uint32_t* order, int64_t begin,
                           int64_t end) {
  winding_number_loop(task, order, begin, end);
}

void winding_number_avx512(const WindingNumber<double>& task, const uint32_t* order, int64_t begin,
                           int64_t end) {
  winding_number_loop(task, order, begin, end);
}

}  // namespace fastshape::cpu
