#include "geometry/winding_number_cpu.h"
#include "core/dispatch.h"
#include "core/parallel.h"
#include "geometry/query_order.h"
#include "geometry/winding_number_loop.h"

namespace fastshape::cpu {

void winding_number_portable(const WindingNumber<float>& task, const uint32_t* order, int64_t begin,
                             int64_t end) {
  winding_number_loop(task, order, begin, end);
}

void winding_number_portable(const WindingNumber<double>& task, const uint32_t* order,
                             int64_t begin, int64_t end) {
  winding_number_loop(task, order, begin, end);
}

template <class T>
void winding_number(const WindingNumber<T>& task) {
  for_points_in_order(task.points, task.num_points,
                      [&](const uint32_t* order, int64_t begin, int64_t end) {
#if defined(FASTSHAPE_X86)
                        switch (instruction_set()) {
                          case InstructionSet::avx512:
                            return winding_number_avx512(task, order, begin, end);
                          case InstructionSet::avx2:
                            return winding_number_avx2(task, order, begin, end);
                          case InstructionSet::portable:
                            break;
                        }
#endif
                        winding_number_portable(task, order, begin, end);
                      });
}

template void winding_number<float>(const WindingNumber<float>&);
template void winding_number<double>(const WindingNumber<double>&);

}  // namespace fastshape::cpu
