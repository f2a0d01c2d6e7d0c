#include <vector>

#include "core/parallel.h"
#include "quantize/codebook.h"

namespace fastshape::cpu {
namespace {

// The mean by 256 partial sums in double, code k in sum k mod 256, then halves upon halves.
template <class T>
void mean_code(const Codebook<T>& book, T* mean) {
  const int dim = book.dim;
  std::vector<double> sums(static_cast<size_t>(kMeanLanes) * static_cast<size_t>(dim), 0.0);
  for (int64_t code = 0; code < book.num_codes; ++code) {
    double* const sum = sums.data() + code % kMeanLanes * dim;
    const T* const e = book.codes + code * dim;
    for (int i = 0; i < dim; ++i) sum[i] += static_cast<double>(e[i]);
  }
  for (int width = kMeanLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width * dim; ++i) sums[i] += sums[i + width * dim];
  for (int i = 0; i < dim; ++i)
    mean[i] = static_cast<T>(sums[i] / static_cast<double>(book.num_codes));
}

}  // namespace

template <class T>
void pack_codebook(const Codebook<T>& book, const PackedCodebook<T>& packed) {
  for (int i = 0; i < book.dim; ++i) packed.center[i] = packed.largest[i] = T(0);
  if (!book.cosine && book.num_codes > 0) {
    mean_code(book, packed.center);
    for (int64_t code = 0; code < book.num_codes; ++code)
      for (int i = 0; i < book.dim; ++i)
        packed.largest[i] =
            larger_magnitude(packed.largest[i], book.codes[code * book.dim + i] - packed.center[i]);
  }
  const T scale = *packed.scale = scale_of_codes(packed);
  parallel_for(packed.num_panels, 64, [&](int64_t begin, int64_t end) {
    for (int64_t code = begin * kPanel; code < end * kPanel; ++code)
      pack_code(book, packed, scale, code);
  });
}

#define FASTSHAPE_INSTANTIATE(T) \
  template void pack_codebook<T>(const Codebook<T>&, const PackedCodebook<T>&);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cpu
