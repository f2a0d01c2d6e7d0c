#include "quantize/code_sums.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/workspace.h"
#include "quantize/codebook.h"

namespace fastshape::cpu {
namespace {

struct Lists {
  int32_t* begin;  // (num_sums + 1,)
  int32_t* rows;   // (num_rows,), those of a sum together and in order
  size_t bytes;
};

Lists lists(void* workspace, int64_t num_rows, int64_t num_sums) {
  WorkspaceCutter cutter(workspace);
  Lists w{};
  w.begin = cutter.take<int32_t>(num_sums + 1);
  w.rows = cutter.take<int32_t>(num_rows);
  w.bytes = cutter.bytes();
  return w;
}

}  // namespace

size_t code_sums_workspace_bytes(int64_t num_rows, int64_t num_sums) {
  return lists(nullptr, num_rows, num_sums).bytes;
}

template <class T>
void code_sums(const CodeSums<T>& task, void* workspace) {
  const int64_t num_sums = task.levels * task.num_codes;
  const Lists w = lists(workspace, task.num_rows, num_sums);
  // A counting sort: after it begin[k] is where the list of k + 1 began, so that it shifts by one.
  std::fill_n(w.begin, num_sums + 1, 0);
  for (int64_t n = 0; n < task.num_rows; ++n) {
    const int64_t sum = sum_row(task, n);
    if (sum >= 0) ++w.begin[sum + 1];
  }
  for (int64_t k = 0; k < num_sums; ++k) w.begin[k + 1] += w.begin[k];
  if (task.counts != nullptr)
    for (int64_t k = 0; k < num_sums; ++k) task.counts[k] = w.begin[k + 1] - w.begin[k];
  for (int64_t n = 0; n < task.num_rows; ++n) {
    const int64_t sum = sum_row(task, n);
    if (sum >= 0) w.rows[w.begin[sum]++] = static_cast<int32_t>(n);
  }
  parallel_for(num_sums, 256, [&](int64_t first, int64_t last) {
    double total[kMaxCodeDim];
    for (int64_t k = first; k < last; ++k) {
      std::fill_n(total, task.dim, 0.0);
      for (int32_t i = k == 0 ? 0 : w.begin[k - 1]; i < w.begin[k]; ++i) {
        const T* const value = task.values + static_cast<int64_t>(w.rows[i]) * task.dim;
        for (int c = 0; c < task.dim; ++c) total[c] += static_cast<double>(value[c]);
      }
      for (int c = 0; c < task.dim; ++c) task.sums[k * task.dim + c] = static_cast<T>(total[c]);
    }
  });
}

template void code_sums<float>(const CodeSums<float>&, void*);
template void code_sums<double>(const CodeSums<double>&, void*);

}  // namespace fastshape::cpu
