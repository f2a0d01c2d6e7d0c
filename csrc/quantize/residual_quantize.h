// Level after level the nearest code of what the former levels left.
//
// r_0 = x, r_l+1 = r_l - e_l with e_l the code nearest to r_l, quantized = ((e_0 + e_1) + e_2) ...:
// one subtraction and one addition a level, the same on every device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "quantize/codebook.h"

namespace fastshape {

// The codebooks of the levels; one for all where `shared`.
template <class T>
struct LevelCodebooks {
  const T* codes;  // (levels or 1, num_codes, dim)
  int64_t num_codes;
  int dim;
  int levels;
  bool shared, cosine;

  int num_books() const { return shared ? 1 : levels; }
  Codebook<T> book(int index) const {
    return {codes + index * num_codes * dim, num_codes, dim, cosine};
  }
};

template <class T>
FASTSHAPE_HOST_DEVICE const T* code_of(const LevelCodebooks<T>& books, int level, int64_t code) {
  return books.codes + ((books.shared ? 0 : level) * books.num_codes + code) * books.dim;
}

template <class T>
struct ResidualQuantize {
  const T* x;  // (num_rows, dim)
  int64_t num_rows;
  int64_t* codes;   // (num_rows, levels)
  T* quantized;     // (num_rows, dim)
  T* square_error;  // (levels, num_rows): |r_l+1|^2
  int64_t* counts;  // (levels, num_codes), or null
};

// The gradients of sum_l (code_weights[l] * |e_l - r_l|^2, r_l held fast, and
// residual_weights[l] * |r_l - e_l|^2, e_l and what was subtracted held fast), each halved.
template <class T>
struct ResidualQuantizeBackward {
  const T* x;  // (num_rows, dim)
  int64_t num_rows;
  const int64_t* codes;       // (num_rows, levels)
  const T* residual_weights;  // (levels,)
  const T* code_weights;      // (levels,)
  T* grad_x;                  // (num_rows, dim)
  T* grad_codes;              // (num_rows, levels, dim): what each row gives to its codes; or null
};

template <class T>
struct ResidualDecode {
  const int64_t* codes;  // (num_rows, levels)
  int64_t num_rows;
  T* quantized;  // (num_rows, dim)
};

// One component of one row.
template <class T>
FASTSHAPE_HOST_DEVICE void backward_component(const LevelCodebooks<T>& books,
                                              const ResidualQuantizeBackward<T>& task, int64_t row,
                                              int component) {
  T residual = task.x[row * books.dim + component], grad = T(0);
  for (int level = 0; level < books.levels; ++level) {
    const int64_t at = row * books.levels + level;
    residual = residual - code_of(books, level, task.codes[at])[component];
    grad = grad + task.residual_weights[level] * residual;
    if (task.grad_codes != nullptr)
      task.grad_codes[at * books.dim + component] = -(task.code_weights[level] * residual);
  }
  task.grad_x[row * books.dim + component] = grad;
}

// A code that is not there adds nothing.
template <class T>
FASTSHAPE_HOST_DEVICE void decode_component(const LevelCodebooks<T>& books,
                                            const ResidualDecode<T>& task, int64_t row,
                                            int component) {
  T sum = T(0);
  for (int level = 0; level < books.levels; ++level) {
    const int64_t code = task.codes[row * books.levels + level];
    if (code >= 0 && code < books.num_codes) sum = sum + code_of(books, level, code)[component];
  }
  task.quantized[row * books.dim + component] = sum;
}

namespace cpu {
template <class T>
size_t residual_quantize_workspace_bytes(int64_t num_codes, int dim, int num_books);
template <class T>
void residual_quantize(const LevelCodebooks<T>& books, const ResidualQuantize<T>& task,
                       void* workspace);
template <class T>
void residual_quantize_backward(const LevelCodebooks<T>& books,
                                const ResidualQuantizeBackward<T>& task);
template <class T>
void residual_decode(const LevelCodebooks<T>& books, const ResidualDecode<T>& task);
}  // namespace cpu

namespace cuda {
template <class T>
size_t residual_quantize_workspace_bytes(int64_t num_codes, int dim, int num_books,
                                         int64_t num_rows);
template <class T>
void residual_quantize(const LevelCodebooks<T>& books, const ResidualQuantize<T>& task,
                       void* workspace, cudaStream_t stream);
template <class T>
void residual_quantize_backward(const LevelCodebooks<T>& books,
                                const ResidualQuantizeBackward<T>& task, cudaStream_t stream);
template <class T>
void residual_decode(const LevelCodebooks<T>& books, const ResidualDecode<T>& task,
                     cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
