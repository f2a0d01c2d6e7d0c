#include "isosurface/flexicubes_weights.h"

#include "core/parallel.h"

namespace fastshape::cpu {

template <class T>
void flexicubes_weights(const FlexiCubesWeights<T>& task) {
  parallel_for(task.count, 1 << 15, [&](int64_t begin, int64_t end) {
    const T* const raw = task.raw;
    T* const weights = task.weights;
    if (task.sigmoid)
      for (int64_t i = begin; i < end; ++i) weights[i] = activated(raw[i], true);
    else
      for (int64_t i = begin; i < end; ++i) weights[i] = activated(raw[i], false);
  });
}

template void flexicubes_weights<float>(const FlexiCubesWeights<float>&);
template void flexicubes_weights<double>(const FlexiCubesWeights<double>&);

}  // namespace fastshape::cpu
