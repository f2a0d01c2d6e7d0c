#include "geometry/ray_parity_cpu.h"
#include "core/dispatch.h"
#include "core/parallel.h"
#include "geometry/query_order.h"
#include "geometry/ray_parity_loop.h"

namespace fastshape::cpu {

void ray_parity_portable(const RayParity<float>& task, const uint32_t* order, int64_t begin,
                         int64_t end) {
  ray_parity_loop(task, order, begin, end);
}

void ray_parity_portable(const RayParity<double>& task, const uint32_t* order, int64_t begin,
                         int64_t end) {
  ray_parity_loop(task, order, begin, end);
}

template <class T>
void ray_parity(const RayParity<T>& task) {
  for_points_in_order(task.points, task.num_points,
                      [&](const uint32_t* order, int64_t begin, int64_t end) {
#if defined(FASTSHAPE_X86)
                        switch (instruction_set()) {
                          case InstructionSet::avx512:
                            return ray_parity_avx512(task, order, begin, end);
                          case InstructionSet::avx2:
                            return ray_parity_avx2(task, order, begin, end);
                          case InstructionSet::portable:
                            break;
                        }
#endif
                        ray_parity_portable(task, order, begin, end);
                      });
}

template void ray_parity<float>(const RayParity<float>&);
template void ray_parity<double>(const RayParity<double>&);

}  // namespace fastshape::cpu
