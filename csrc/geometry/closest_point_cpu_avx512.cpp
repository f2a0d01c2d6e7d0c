#include "geometry/closest_point_cpu.h"
#include "geometry/closest_point_loop.h"

namespace fastshape::cpu {

void closest_point_avx512(const ClosestPoint<float>& task, const uint32_t* order, int64_t begin,
                          int64_t end) {
  closest_point_loop(task, order, begin, end);
}

void closest_point_avx512(const ClosestPoint<double>& task, const uint32_t* order, int64_t begin,
                          int64_t end) {
  closest_point_loop(task, order, begin, end);
}

}  // namespace fastshape::cpu
