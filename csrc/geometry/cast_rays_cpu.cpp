#include "geometry/cast_rays_cpu.h"
#include "core/dispatch.h"
#include "core/parallel.h"
#include "geometry/cast_rays_loop.h"
#include "geometry/query_order.h"

namespace fastshape::cpu {

void cast_rays_portable(const CastRays<float>& task, const uint32_t* order, int64_t begin,
                        int64_t end) {
  cast_rays_loop(task, order, begin, end);
}

void cast_rays_portable(const CastRays<double>& task, const uint32_t* order, int64_t begin,
                        int64_t end) {
  cast_rays_loop(task, order, begin, end);
}

template <class T>
void cast_rays(const CastRays<T>& task) {
  for_points_in_order(task.origins, task.num_rays,
                      [&](const uint32_t* order, int64_t begin, int64_t end) {
#if defined(FASTSHAPE_X86)
                        switch (instruction_set()) {
                          case InstructionSet::avx512:
                            return cast_rays_avx512(task, order, begin, end);
                          case InstructionSet::avx2:
                            return cast_rays_avx2(task, order, begin, end);
                          case InstructionSet::portable:
                            break;
                        }
#endif
                        cast_rays_portable(task, order, begin, end);
                      });
}

template void cast_rays<float>(const CastRays<float>&);
template void cast_rays<double>(const CastRays<double>&);

}  // namespace fastshape::cpu
