// What the instruction sets' translation units give to the CPU's searches.
#pragma once

#include "core/dispatch.h"
#include "quantize/codebook.h"

namespace fastshape::cpu {

constexpr int kMaxBlockRows = 96;
constexpr int kBlockElements = 96 * 48;  // of the rows of a block

// How many rows of `dim` components one call takes: their copy stays in the first cache.
inline int64_t block_rows(int dim) {
  const int64_t rows = kBlockElements / (dim < 1 ? 1 : dim);
  return rows > kMaxBlockRows ? kMaxBlockRows : rows;
}

// `index`: the nearest code of each of at most block_rows(dim) rows; `top` indices a row, nearest
// first.
#define FASTSHAPE_DECLARE(suffix, T)                                                            \
  void search_rows_##suffix(const PackedCodebook<T>& book, const T* rows, int num_rows,         \
                            int32_t* index);                                                    \
  void search_top_##suffix(const PackedCodebook<T>& book, const T* rows, int num_rows, int top, \
                           int32_t* index);
#define FASTSHAPE_DECLARE_BOTH(suffix) \
  FASTSHAPE_DECLARE(suffix, float)     \
  FASTSHAPE_DECLARE(suffix, double)
FASTSHAPE_DECLARE_BOTH(portable)
FASTSHAPE_DECLARE_BOTH(avx2)
FASTSHAPE_DECLARE_BOTH(avx512)
#undef FASTSHAPE_DECLARE_BOTH
#undef FASTSHAPE_DECLARE

// The best that this build and this machine have.
template <class T>
using SearchRows = void (*)(const PackedCodebook<T>&, const T*, int, int32_t*);
template <class T>
using SearchTop = void (*)(const PackedCodebook<T>&, const T*, int, int, int32_t*);

template <class T>
SearchRows<T> search_rows();
template <class T>
SearchTop<T> search_top();

}  // namespace fastshape::cpu
