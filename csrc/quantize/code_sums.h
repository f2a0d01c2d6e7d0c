// What vectors give to their codes: sums[k] = the sum of the values whose code is k.
//
// A code's values are added in double precision in the order of their rows, without atomics: the
// same bits on every device, on every run, for any number of threads. Codes that are not there are
// left out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"

namespace fastshape {

template <class T>
struct CodeSums {
  const T* values;       // (num_rows, dim)
  const int64_t* codes;  // (num_rows,)
  int64_t num_rows;      // below 2^31
  int dim;
  int64_t num_codes;  // of a codebook
  int levels;         // row n is of codebook n mod levels; 1: there is one codebook
  T* sums;            // (levels * num_codes, dim)
  int64_t* counts;    // (levels * num_codes,), or null
};

// The row of `sums` that row n adds to; -1: none.
template <class T>
FASTSHAPE_HOST_DEVICE int64_t sum_row(const CodeSums<T>& task, int64_t n) {
  const int64_t code = task.codes[n];
  if (code < 0 || code >= task.num_codes) return -1;
  return n % task.levels * task.num_codes + code;
}

namespace cpu {
size_t code_sums_workspace_bytes(int64_t num_rows, int64_t num_sums);
template <class T>
void code_sums(const CodeSums<T>& task, void* workspace);
}  // namespace cpu

namespace cuda {
size_t code_sums_workspace_bytes(int64_t num_rows);
template <class T>
void code_sums(const CodeSums<T>& task, void* workspace, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
