#include "geometry/ray_parity_cpu.h"
#include "geometry/ray_parity_loop.h"

namespace fastshape::cpu {

void ray_parity_avx2(const RayParity<float>& task, const uint32_t* order, int64_t begin,
                     int64_t end) {
  ray_parity_loop(task, order, begin, end);
}

void ray_parity_avx2(const RayParity<double>& task, const uint32_t* order, int64_t begin,
                     int64_t end) {
  ray_parity_loop(task, order, begin, end);
}

}  // namespace fastshape::cpu
