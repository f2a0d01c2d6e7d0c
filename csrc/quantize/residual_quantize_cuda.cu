#include "quantize/residual_quantize.h"

#include "quantize/search.cuh"

namespace fastshape::cuda {
namespace {

// One packed codebook, made anew for every level that has its own.
template <class T>
struct ResidualWorkspace {
  PackedCodebook<T> packed;
  SearchParts<T> parts;
  T* residual;  // (num_rows, dim)
  size_t bytes;
};

template <class T>
ResidualWorkspace<T> residual_workspace(void* begin, int64_t num_codes, int dim, int64_t num_rows) {
  WorkspaceCutter cutter(begin);
  ResidualWorkspace<T> w{};
  w.packed = take_packed_codebook<T>(cutter, num_codes, dim);
  w.parts = take_search_parts<T>(cutter, num_codes, num_rows);
  w.residual = cutter.take<T>(num_rows * dim);
  w.bytes = cutter.bytes();
  return w;
}

// A warp for each row: picks its code, adds it to the sum, takes it from what is left.
template <class T>
__global__ void level_kernel(LevelCodebooks<T> books, ResidualQuantize<T> task,
                             SearchParts<T> parts, T* residual, int level) {
  const int64_t row = thread_index() / 32;
  if (row >= task.num_rows) return;
  const int lane = static_cast<int>(lane_id());
  const int32_t code = best_of_parts(parts, task.num_rows, row);
  const T* const e = code_of(books, level, code);
  const T* const before = (level == 0 ? task.x : residual) + row * books.dim;
  T* const after = residual + row * books.dim;
  T* const quantized = task.quantized + row * books.dim;
  for (int i = lane; i < books.dim; i += 32) {
    after[i] = before[i] - e[i];
    quantized[i] = (level == 0 ? T(0) : quantized[i]) + e[i];
  }
  __syncwarp();
  if (lane != 0) return;
  T error = T(0);
  for (int i = 0; i < books.dim; ++i) error = error + after[i] * after[i];
  task.codes[row * books.levels + level] = code;
  task.square_error[level * task.num_rows + row] = error;
  if (task.counts != nullptr) count_code(task.counts + level * books.num_codes, code);
}

template <class T>
__global__ void backward_kernel(LevelCodebooks<T> books, ResidualQuantizeBackward<T> task) {
  const int64_t i = thread_index();
  if (i < task.num_rows * books.dim)
    backward_component(books, task, i / books.dim, static_cast<int>(i % books.dim));
}

template <class T>
__global__ void decode_kernel(LevelCodebooks<T> books, ResidualDecode<T> task) {
  const int64_t i = thread_index();
  if (i < task.num_rows * books.dim)
    decode_component(books, task, i / books.dim, static_cast<int>(i % books.dim));
}

}  // namespace

template <class T>
size_t residual_quantize_workspace_bytes(int64_t num_codes, int dim, int, int64_t num_rows) {
  return residual_workspace<T>(nullptr, num_codes, dim, num_rows).bytes;
}

template <class T>
void residual_quantize(const LevelCodebooks<T>& books, const ResidualQuantize<T>& task,
                       void* workspace, cudaStream_t stream) {
  const char* op = "residual_quantize";
  if (task.counts != nullptr)
    fill_bytes(op, task.counts, 0,
               static_cast<size_t>(books.levels * books.num_codes) * sizeof(int64_t), stream);
  if (task.num_rows == 0) return;
  const auto w = residual_workspace<T>(workspace, books.num_codes, books.dim, task.num_rows);
  for (int level = 0; level < books.levels; ++level) {
    if (level == 0 || !books.shared)
      pack_codebook(op, books.book(books.shared ? 0 : level), w.packed, stream);
    search(op, w.packed, level == 0 ? task.x : w.residual, task.num_rows, w.parts, stream);
    launch(op, level_kernel<T>, blocks_for(task.num_rows * 32), dim3(kBlock), 0, stream, books,
           task, w.parts, w.residual, level);
  }
}

template <class T>
void residual_quantize_backward(const LevelCodebooks<T>& books,
                                const ResidualQuantizeBackward<T>& task, cudaStream_t stream) {
  if (task.num_rows * books.dim == 0) return;
  launch("residual_quantize_backward", backward_kernel<T>, blocks_for(task.num_rows * books.dim),
         dim3(kBlock), 0, stream, books, task);
}

template <class T>
void residual_decode(const LevelCodebooks<T>& books, const ResidualDecode<T>& task,
                     cudaStream_t stream) {
  if (task.num_rows * books.dim == 0) return;
  launch("residual_decode", decode_kernel<T>, blocks_for(task.num_rows * books.dim), dim3(kBlock),
         0, stream, books, task);
}

#define FASTSHAPE_INSTANTIATE(T)                                                                  \
  template size_t residual_quantize_workspace_bytes<T>(int64_t, int, int, int64_t);               \
  template void residual_quantize<T>(const LevelCodebooks<T>&, const ResidualQuantize<T>&, void*, \
                                     cudaStream_t);                                               \
  template void residual_quantize_backward<T>(const LevelCodebooks<T>&,                           \
                                              const ResidualQuantizeBackward<T>&, cudaStream_t);  \
  template void residual_decode<T>(const LevelCodebooks<T>&, const ResidualDecode<T>&,            \
                                   cudaStream_t);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cuda
