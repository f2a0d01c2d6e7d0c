#include <algorithm>

#include "core/parallel.h"
#include "quantize/nearest_code.h"
#include "quantize/search_cpu.h"

namespace fastshape::cpu {
namespace {

template <class T>
PackedCodebook<T> packed_in(void* workspace, const Codebook<T>& book) {
  WorkspaceCutter cutter(workspace);
  const auto packed = take_packed_codebook<T>(cutter, book.num_codes, book.dim);
  pack_codebook(book, packed);
  return packed;
}

}  // namespace

template <class T>
size_t nearest_code_workspace_bytes(int64_t num_codes, int dim) {
  WorkspaceCutter cutter(nullptr);
  take_packed_codebook<T>(cutter, num_codes, dim);
  return cutter.bytes();
}

template <class T>
void nearest_code(const Codebook<T>& book, const NearestCode<T>& task, void* workspace) {
  if (task.counts != nullptr) std::fill_n(task.counts, book.num_codes, int64_t{0});
  if (task.num_rows == 0) return;
  const PackedCodebook<T> packed = packed_in(workspace, book);
  const SearchRows<T> search = search_rows<T>();
  parallel_for(task.num_rows, block_rows(book.dim), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += block_rows(book.dim)) {
      const int count = static_cast<int>(std::min(block_rows(book.dim), end - row));
      int32_t index[kMaxBlockRows];
      search(packed, task.x + row * book.dim, count, index);
      for (int i = 0; i < count; ++i) {
        task.indices[row + i] = index[i];
        if (task.counts != nullptr)
          __atomic_fetch_add(task.counts + index[i], int64_t{1}, __ATOMIC_RELAXED);
      }
    }
  });
}

template <class T>
void topk_codes(const Codebook<T>& book, const TopCodes<T>& task, void* workspace) {
  if (task.num_rows == 0 || task.top == 0) return;
  const PackedCodebook<T> packed = packed_in(workspace, book);
  const SearchTop<T> search = search_top<T>();
  parallel_for(task.num_rows, block_rows(book.dim), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += block_rows(book.dim)) {
      const int count = static_cast<int>(std::min(block_rows(book.dim), end - row));
      int32_t index[kMaxBlockRows * kMaxTop];
      search(packed, task.x + row * book.dim, count, task.top, index);
      for (int i = 0; i < count * task.top; ++i) {
        const int64_t out = row * task.top + i;
        task.indices[out] = index[i];
        task.square_distance[out] =
            square_distance(task.x + (row + i / task.top) * book.dim,
                            book.codes + static_cast<int64_t>(index[i]) * book.dim, book.dim);
      }
    }
  });
}

#define FASTSHAPE_INSTANTIATE(T)                                                   \
  template size_t nearest_code_workspace_bytes<T>(int64_t, int);                   \
  template void nearest_code<T>(const Codebook<T>&, const NearestCode<T>&, void*); \
  template void topk_codes<T>(const Codebook<T>&, const TopCodes<T>&, void*);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cpu
