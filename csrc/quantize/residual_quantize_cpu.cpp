#include "quantize/residual_quantize.h"

#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "quantize/search_cpu.h"

namespace fastshape::cpu {
namespace {

template <class T>
std::vector<PackedCodebook<T>> take_packed(WorkspaceCutter& cutter, int64_t num_codes, int dim,
                                           int num_books) {
  std::vector<PackedCodebook<T>> packed;
  for (int i = 0; i < num_books; ++i)
    packed.push_back(take_packed_codebook<T>(cutter, num_codes, dim));
  return packed;
}

// Rows [begin, begin + count) through all levels: what is left of them never leaves the cache.
template <class T>
void quantize_block(const LevelCodebooks<T>& books, const std::vector<PackedCodebook<T>>& packed,
                    const ResidualQuantize<T>& task, SearchRows<T> search, int64_t begin,
                    int count) {
  const int dim = books.dim;
  T residual[kBlockElements];
  int32_t index[kMaxBlockRows];
  std::copy_n(task.x + begin * dim, count * dim, residual);
  T* const quantized = task.quantized + begin * dim;
  std::fill_n(quantized, count * dim, T(0));
  for (int level = 0; level < books.levels; ++level) {
    search(packed[static_cast<size_t>(books.shared ? 0 : level)], residual, count, index);
    for (int row = 0; row < count; ++row) {
      const T* const e = code_of(books, level, index[row]);
      T error = T(0);
      for (int i = 0; i < dim; ++i) {
        T& left = residual[row * dim + i];
        left = left - e[i];
        quantized[row * dim + i] = quantized[row * dim + i] + e[i];
        error = error + left * left;
      }
      task.codes[(begin + row) * books.levels + level] = index[row];
      task.square_error[level * task.num_rows + begin + row] = error;
      if (task.counts != nullptr)
        __atomic_fetch_add(task.counts + level * books.num_codes + index[row], int64_t{1},
                           __ATOMIC_RELAXED);
    }
  }
}

}  // namespace

template <class T>
size_t residual_quantize_workspace_bytes(int64_t num_codes, int dim, int num_books) {
  WorkspaceCutter cutter(nullptr);
  take_packed<T>(cutter, num_codes, dim, num_books);
  return cutter.bytes();
}

template <class T>
void residual_quantize(const LevelCodebooks<T>& books, const ResidualQuantize<T>& task,
                       void* workspace) {
  if (task.counts != nullptr) std::fill_n(task.counts, books.levels * books.num_codes, int64_t{0});
  if (task.num_rows == 0) return;
  WorkspaceCutter cutter(workspace);
  const auto packed = take_packed<T>(cutter, books.num_codes, books.dim, books.num_books());
  for (int i = 0; i < books.num_books(); ++i)
    pack_codebook(books.book(i), packed[static_cast<size_t>(i)]);
  const SearchRows<T> search = search_rows<T>();
  const int64_t rows = block_rows(books.dim);
  parallel_for(task.num_rows, rows, [&](int64_t begin, int64_t end) {
    for (; begin < end; begin += rows)
      quantize_block(books, packed, task, search, begin,
                     static_cast<int>(std::min(rows, end - begin)));
  });
}

template <class T>
void residual_quantize_backward(const LevelCodebooks<T>& books,
                                const ResidualQuantizeBackward<T>& task) {
  parallel_for(task.num_rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int i = 0; i < books.dim; ++i) backward_component(books, task, row, i);
  });
}

template <class T>
void residual_decode(const LevelCodebooks<T>& books, const ResidualDecode<T>& task) {
  parallel_for(task.num_rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int i = 0; i < books.dim; ++i) decode_component(books, task, row, i);
  });
}

#define FASTSHAPE_INSTANTIATE(T)                                                                   \
  template size_t residual_quantize_workspace_bytes<T>(int64_t, int, int);                         \
  template void residual_quantize<T>(const LevelCodebooks<T>&, const ResidualQuantize<T>&, void*); \
  template void residual_quantize_backward<T>(const LevelCodebooks<T>&,                            \
                                              const ResidualQuantizeBackward<T>&);                 \
  template void residual_decode<T>(const LevelCodebooks<T>&, const ResidualDecode<T>&);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cpu
