#include "core/parallel.h"
#include "geometry/bvh_moments.h"

namespace fastshape::cpu {

template <class T>
void bvh_moments(const BvhMoments<T>& task) {
  const BvhLevels levels = bvh_levels(task.bvh.num_blocks * kBvhWidth);
  for (int level = 0; level < levels.num_levels; ++level) {
    const int64_t grain = level < 3 ? 1024 >> (3 * level) : 1;
    parallel_for(levels.count[level] * kBvhWidth, grain, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const MomentChild child = moment_child(levels, level, k);
        if (child.first_block >= child.last_block) {
          store_moments(task.moments, child.node, child.lane, no_moments<T>(), T(-1));
          continue;
        }
        const Moments<T> m = child_moments(task, levels, level, k);
        T radius2 = T(0);
        for (int64_t slot = child.first_block * 8; slot < child.last_block * 8; ++slot)
          radius2 = larger(slot_radius2(task.bvh, slot, m.center), radius2);
        store_moments(task.moments, child.node, child.lane, m, radius2);
      }
    });
  }
}

template void bvh_moments<float>(const BvhMoments<float>&);
template void bvh_moments<double>(const BvhMoments<double>&);

}  // namespace fastshape::cpu
