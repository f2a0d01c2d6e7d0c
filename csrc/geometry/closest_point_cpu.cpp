#include "geometry/closest_point_cpu.h"
#include "core/dispatch.h"
#include "core/parallel.h"
#include "geometry/closest_point_loop.h"
#include "geometry/query_order.h"

namespace fastshape::cpu {

void closest_point_portable(const ClosestPoint<float>& task, const uint32_t* order, int64_t begin,
                            int64_t end) {
  closest_point_loop(task, order, begin, end);
}

void closest_point_portable(const ClosestPoint<double>& task, const uint32_t* order, int64_t begin,
                            int64_t end) {
  closest_point_loop(task, order, begin, end);
}

template <class T>
void closest_point(const ClosestPoint<T>& task) {
  for_points_in_order(task.points, task.num_points,
                      [&](const uint32_t* order, int64_t begin, int64_t end) {
#if defined(FASTSHAPE_X86)
                        switch (instruction_set()) {
                          case InstructionSet::avx512:
                            return closest_point_avx512(task, order, begin, end);
                          case InstructionSet::avx2:
                            return closest_point_avx2(task, order, begin, end);
                          case InstructionSet::portable:
                            break;
                        }
#endif
                        closest_point_portable(task, order, begin, end);
                      });
}

template void closest_point<float>(const ClosestPoint<float>&);
template void closest_point<double>(const ClosestPoint<double>&);

}  // namespace fastshape::cpu
