#include "core/block.cuh"
#include "core/elementwise.cuh"
#include "quantize/codebook.h"

namespace fastshape::cuda {
namespace {

// A block for each component, a thread for each partial sum.
template <class T>
struct ColumnShared {
  double sums[kMeanLanes];
  T center;
  BlockReduceStorage<T> storage;
};

template <class T>
__global__ void column_kernel(Codebook<T> book, PackedCodebook<T> packed) {
  auto& shared = shared_memory<ColumnShared<T>>();
  const int component = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  if (book.cosine) {
    if (lane == 0) packed.center[component] = packed.largest[component] = T(0);
    return;
  }
  double sum = 0.0;
  for (int64_t code = lane; code < book.num_codes; code += kMeanLanes)
    sum += static_cast<double>(book.codes[code * book.dim + component]);
  shared.sums[lane] = sum;
  __syncthreads();
  for (int width = kMeanLanes / 2; width > 0; width /= 2) {
    if (lane < width) shared.sums[lane] += shared.sums[lane + width];
    __syncthreads();
  }
  if (lane == 0)
    shared.center = static_cast<T>(shared.sums[0] / static_cast<double>(book.num_codes));
  __syncthreads();
  const T center = shared.center;
  T most = T(0);
  for (int64_t code = lane; code < book.num_codes; code += kMeanLanes)
    most = larger_magnitude(most, book.codes[code * book.dim + component] - center);
  most = block_reduce(shared.storage, most, Maximum());
  if (lane == 0) {
    packed.center[component] = center;
    packed.largest[component] = most;
  }
}

template <class T>
__global__ void pack_codes_kernel(Codebook<T> book, PackedCodebook<T> packed) {
  const int64_t code = thread_index();
  const T scale = scale_of_codes(packed);
  if (code == 0) *packed.scale = scale;
  if (code < packed.num_panels * kPanel) pack_code(book, packed, scale, code);
}

}  // namespace

template <class T>
void pack_codebook(const char* op, const Codebook<T>& book, const PackedCodebook<T>& packed,
                   cudaStream_t stream) {
  if (book.num_codes == 0 || book.dim == 0) return;
  launch(op, column_kernel<T>, dim3(static_cast<unsigned>(book.dim)), dim3(kMeanLanes),
         sizeof(ColumnShared<T>), stream, book, packed);
  launch(op, pack_codes_kernel<T>, blocks_for(packed.num_panels * kPanel), dim3(kBlock), 0, stream,
         book, packed);
}

#define FASTSHAPE_INSTANTIATE(T)                                                            \
  template void pack_codebook<T>(const char*, const Codebook<T>&, const PackedCodebook<T>&, \
                                 cudaStream_t);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cuda
