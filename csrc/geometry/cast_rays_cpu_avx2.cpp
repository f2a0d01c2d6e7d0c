#include "geometry/cast_rays_cpu.h"
#include "geometry/cast_rays_loop.h"

namespace fastshape::cpu {

void cast_rays_avx2(const CastRays<float>& task, const uint32_t* order, int64_t begin,
                    int64_t end) {
  cast_rays_loop(task, order, begin, end);
}

void cast_rays_avx2(const CastRays<double>& task, const uint32_t* order, int64_t begin,
                    int64_t end) {
  cast_rays_loop(task, order, begin, end);
}

}  // namespace fastshape::cpu
