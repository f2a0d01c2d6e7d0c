#include "quantize/search.cuh"

namespace fastshape::cuda {
namespace {

template <class T>
struct SearchWorkspace {
  PackedCodebook<T> packed;
  SearchParts<T> parts;
  size_t bytes;
};

template <class T>
SearchWorkspace<T> search_workspace(void* begin, int64_t num_codes, int dim, int64_t num_rows) {
  WorkspaceCutter cutter(begin);
  SearchWorkspace<T> w{};
  w.packed = take_packed_codebook<T>(cutter, num_codes, dim);
  w.parts = take_search_parts<T>(cutter, num_codes, num_rows);
  w.bytes = cutter.bytes();
  return w;
}

// A warp for each row.
template <class T>
__global__ void pick_kernel(NearestCode<T> task, SearchParts<T> parts) {
  const int64_t row = thread_index() / 32;
  if (row >= task.num_rows) return;
  const int32_t code = best_of_parts(parts, task.num_rows, row);
  if (lane_id() != 0) return;
  task.indices[row] = code;
  if (task.counts != nullptr) count_code(task.counts, code);
}

// A warp for each row; lane k keeps the k-th of the list. Shared memory: the rows.
template <class T>
__global__ void top_kernel(PackedCodebook<T> book, const T* codes, TopCodes<T> task) {
  T* const x = shared_tail<T>(0) + warp_id() * book.dim;
  const int64_t row = thread_index() / 32;
  if (row >= task.num_rows) return;
  const int lane = static_cast<int>(lane_id()), dim = book.dim, last = task.top - 1;
  for (int i = lane; i < dim; i += 32) x[i] = shifted(book, task.x[row * dim + i], i);
  __syncwarp();
  const T infinity = static_cast<T>(HUGE_VAL);
  T kept = infinity;
  int32_t kept_code = 0;
  for (int64_t first = 0; first < book.num_panels * kPanel; first += 32) {  // panels are in pairs
    const int64_t place = first + lane;
    const T* const e = book.panels + place / kPanel * kPanel * dim + place % kPanel;
    T score = book.half[place];
    for (int i = 0; i < dim; ++i) score = score - x[i] * e[i * kPanel];
    const T bound = __shfl_sync(kAllLanes, kept, last);
    for (unsigned left = __ballot_sync(kAllLanes, score < bound); left != 0; left &= left - 1) {
      const int from = __ffs(static_cast<int>(left)) - 1;
      const T value = __shfl_sync(kAllLanes, score, from);
      const T before = __shfl_up_sync(kAllLanes, kept, 1);
      const int32_t before_code = __shfl_up_sync(kAllLanes, kept_code, 1);
      // Lanes whose value is higher move up by one; the first of them takes the new one.
      if (value < kept) {
        const bool mine = lane == 0 || !(value < before);
        kept = mine ? value : before;
        kept_code = mine ? static_cast<int32_t>(first + from) : before_code;
      }
    }
  }
  if (lane > last) return;
  task.indices[row * task.top + lane] = kept_code;
  task.square_distance[row * task.top + lane] =
      square_distance(task.x + row * dim, codes + static_cast<int64_t>(kept_code) * dim, dim);
}

}  // namespace

template <class T>
size_t nearest_code_workspace_bytes(int64_t num_codes, int dim, int64_t num_rows) {
  return search_workspace<T>(nullptr, num_codes, dim, num_rows).bytes;
}

template <class T>
void nearest_code(const Codebook<T>& book, const NearestCode<T>& task, void* workspace,
                  cudaStream_t stream) {
  const char* op = "nearest_code";
  if (task.counts != nullptr)
    fill_bytes(op, task.counts, 0, static_cast<size_t>(book.num_codes) * sizeof(int64_t), stream);
  if (task.num_rows == 0) return;
  const auto w = search_workspace<T>(workspace, book.num_codes, book.dim, task.num_rows);
  pack_codebook(op, book, w.packed, stream);
  search(op, w.packed, task.x, task.num_rows, w.parts, stream);
  launch(op, pick_kernel<T>, blocks_for(task.num_rows * 32), dim3(kBlock), 0, stream, task,
         w.parts);
}

template <class T>
void topk_codes(const Codebook<T>& book, const TopCodes<T>& task, void* workspace,
                cudaStream_t stream) {
  const char* op = "topk_codes";
  if (task.num_rows == 0 || task.top == 0) return;
  const auto w = search_workspace<T>(workspace, book.num_codes, book.dim, task.num_rows);
  pack_codebook(op, book, w.packed, stream);
  launch(op, top_kernel<T>, blocks_for(task.num_rows * 32), dim3(kBlock),
         kBlock / 32 * static_cast<size_t>(book.dim) * sizeof(T), stream, w.packed, book.codes,
         task);
}

#define FASTSHAPE_INSTANTIATE(T)                                                                 \
  template size_t nearest_code_workspace_bytes<T>(int64_t, int, int64_t);                        \
  template void nearest_code<T>(const Codebook<T>&, const NearestCode<T>&, void*, cudaStream_t); \
  template void topk_codes<T>(const Codebook<T>&, const TopCodes<T>&, void*, cudaStream_t);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cuda
