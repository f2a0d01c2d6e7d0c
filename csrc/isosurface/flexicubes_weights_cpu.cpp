#include "isosurface/flexicubes_weights.h"

#include <algorithm>

#include "core/parallel.h"

namespace fastshape::cpu {
namespace {

// A piece's rows, gathered and then activated in a loop of which compilers make vectors.
template <class T, int width>
void weights_of(const FlexiCubesWeights<T>& task, int64_t begin, int64_t end) {
  T* const out = task.weights + width * begin;
  for (int64_t i = begin; i < end; ++i)
    std::copy_n(task.raw + width * task.rows[i], width, out + width * (i - begin));
  const int64_t count = width * (end - begin);
  if (task.sigmoid)
    for (int64_t i = 0; i < count; ++i) out[i] = activated(out[i], true);
  else
    for (int64_t i = 0; i < count; ++i) out[i] = activated(out[i], false);
}

}  // namespace

template <class T>
void flexicubes_weights(const FlexiCubesWeights<T>& task) {
  const auto piece = task.width == 1   ? weights_of<T, 1>
                     : task.width == 8 ? weights_of<T, 8>
                                       : weights_of<T, 12>;
  parallel_for(task.num_rows, 1024, [&](int64_t begin, int64_t end) { piece(task, begin, end); });
}

template void flexicubes_weights<float>(const FlexiCubesWeights<float>&);
template void flexicubes_weights<double>(const FlexiCubesWeights<double>&);

}  // namespace fastshape::cpu
