// The nearest code of each vector, or the nearest few.
//
// The score of code e for x is half - x_0 e_0 - x_1 e_1 - ..., from left to right, of the packed
// codes and of x shifted and scaled as they are. The lowest score wins, of equal scores the lowest
// index. A score of NaN or +infinity never wins; where all are, the index is 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "quantize/codebook.h"

namespace fastshape {

template <class T>
struct NearestCode {
  const T* x;  // (num_rows, dim)
  int64_t num_rows;
  int64_t* indices;  // (num_rows,)
  int64_t* counts;   // (num_codes,), or null: how many rows have each code
};

template <class T>
struct TopCodes {
  const T* x;  // (num_rows, dim)
  int64_t num_rows;
  int top;             // at most kMaxTop and at most num_codes
  int64_t* indices;    // (num_rows, top), nearest first
  T* square_distance;  // (num_rows, top), of the codes as they were given
};

template <class T>
FASTSHAPE_HOST_DEVICE T shifted(const PackedCodebook<T>& packed, T value, int component) {
  return (value - packed.center[component]) * *packed.scale;
}

template <class T>
FASTSHAPE_HOST_DEVICE T square_distance(const T* a, const T* b, int dim) {
  T sum = T(0);
  for (int i = 0; i < dim; ++i) {
    const T difference = a[i] - b[i];
    sum = sum + difference * difference;
  }
  return sum;
}

namespace cpu {
template <class T>
size_t nearest_code_workspace_bytes(int64_t num_codes, int dim);
template <class T>
void nearest_code(const Codebook<T>& book, const NearestCode<T>& task, void* workspace);
template <class T>
void topk_codes(const Codebook<T>& book, const TopCodes<T>& task, void* workspace);
}  // namespace cpu

namespace cuda {
template <class T>
size_t nearest_code_workspace_bytes(int64_t num_codes, int dim, int64_t num_rows);
template <class T>
void nearest_code(const Codebook<T>& book, const NearestCode<T>& task, void* workspace,
                  cudaStream_t stream);
template <class T>
void topk_codes(const Codebook<T>& book, const TopCodes<T>& task, void* workspace,
                cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
