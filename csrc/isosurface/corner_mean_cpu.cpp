#include "isosurface/corner_mean.h"

#include <algorithm>

#include "core/parallel.h"

namespace fastshape::cpu {

// Every thread walks all voxels and sums its own share of the corners.
template <class T>
void corner_mean(const CornerMean<T>& task) {
  const int threads = task.num_voxels < 4096 ? 1 : num_threads();
  parallel_team(threads, [&](int rank, int count) {
    const int64_t begin = task.num_corners * rank / count;
    const int64_t end = task.num_corners * (rank + 1) / count;
    std::fill(task.mean + task.width * begin, task.mean + task.width * end, T(0));
    std::fill(task.counts + begin, task.counts + end, 0);
    for (int64_t slot = 0; slot < 8 * task.num_voxels; ++slot) {
      const int64_t corner = task.index[slot];
      if (corner >= begin && corner < end) add_to_mean(task, slot, corner);
    }
    for (int64_t corner = begin; corner < end; ++corner)
      if (task.counts[corner] > 1) finish_mean(task, corner);
  });
}

template void corner_mean<float>(const CornerMean<float>&);
template void corner_mean<double>(const CornerMean<double>&);

}  // namespace fastshape::cpu
