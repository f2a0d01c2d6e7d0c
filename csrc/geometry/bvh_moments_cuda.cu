#include "core/cuda_utils.cuh"
#include "geometry/bvh_moments.h"
#include "geometry/hilbert_order.cuh"

namespace fastshape::cuda {
namespace {

// One warp, one child: every lane computes its moments, then they share the search for the farthest
// vertex.
template <class T>
__global__ void bvh_moments_kernel(BvhMoments<T> task, BvhLevels levels, int level) {
  const int64_t k = thread_index() / 32;
  if (k >= levels.count[level] * kBvhWidth) return;
  const unsigned lane = lane_id();
  const MomentChild child = moment_child(levels, level, k);
  if (child.first_block >= child.last_block) {
    if (lane == 0) store_moments(task.moments, child.node, child.lane, no_moments<T>(), T(-1));
    return;
  }
  const Moments<T> m = child_moments(task, levels, level, k);
  T radius2 = T(0);
  for (int64_t slot = child.first_block * 8 + lane; slot < child.last_block * 8; slot += 32)
    radius2 = larger(slot_radius2(task.bvh, slot, m.center), radius2);
  for (int bit = 16; bit > 0; bit /= 2)
    radius2 = larger(__shfl_xor_sync(0xffffffffu, radius2, bit), radius2);
  if (lane == 0) store_moments(task.moments, child.node, child.lane, m, radius2);
}

}  // namespace

template <class T>
void bvh_moments(const BvhMoments<T>& task, cudaStream_t stream) {
  const BvhLevels levels = bvh_levels(task.bvh.num_blocks * kBvhWidth);
  for (int level = 0; level < levels.num_levels; ++level)
    launch("bvh_moments", bvh_moments_kernel<T>, blocks_for(levels.count[level] * kBvhWidth * 32),
           dim3(kBlock), 0, stream, task, levels, level);
}

template void bvh_moments<float>(const BvhMoments<float>&, cudaStream_t);
template void bvh_moments<double>(const BvhMoments<double>&, cudaStream_t);

}  // namespace fastshape::cuda
