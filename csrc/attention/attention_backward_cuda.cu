// On CUDA: scores are computed again, once for the keys' gradients and once for the queries', so
// that every gradient is summed by one block.
#include "attention/attention_plain.cuh"

namespace fastshape::cuda {

// attention_backward_mma_cuda.cu
template <class T>
void attention_backward_mma(const AttentionBackward<T>& task, void* workspace,
                            size_t workspace_bytes, cudaStream_t stream);

namespace {

// Of rows 2 ty + r of `a` and tx + 8 c of `b`, one of which are queries: p and its gradient times
// p. `of_query(r, c)` is the query's place in its tile.
template <class W, class OfQuery>
__device__ __forceinline__ void score_gradients(const W* a, const W* b, const W* grad_a,
                                                const W* grad_b, int head_dim, const W* lse,
                                                const W* delta, OfQuery&& of_query, W* p, W* ds) {
  const Place at = place();
  W scores[2][4], products[2][4];
  row_products(a, b, head_dim, scores);
  row_products(grad_a, grad_b, head_dim, products);
  for (int r = 0; r < 2; ++r) {
    for (int c = 0; c < 4; ++c) {
      const int i = of_query(r, c), to = (2 * at.ty + r) * (kTile + 1) + at.tx + 8 * c;
      const W here = exponential(scores[r][c] - lse[i]);
      if (p != nullptr) p[to] = here;
      ds[to] = here * (products[r][c] - delta[i]);
    }
  }
}

// The queries' logarithm of the sum, and the product of result and gradient. Behind the end of the
// tile: such that p is zero.
template <class T>
__device__ __forceinline__ void load_numbers(const AttentionBackward<T>& task, const int64_t* rows,
                                             int head, const wide<T>* grad_out, wide<T>* lse,
                                             wide<T>* delta) {
  using W = wide<T>;
  const Place at = place();
  const int n = task.in.head_dim;
  for (int r = at.ty; r < kTile; r += kThreads / 8) {
    const int64_t row = rows[r];
    const T* out = head_row(task.out, row < 0 ? 0 : row, head);
    W sum = 0;
    for (int i = 2 * at.tx; i < n && row >= 0; i += 16)
      for (int j = i; j < i + 2; ++j) sum = fused(widen(out[j]), grad_out[r * pitch(n) + j], sum);
    sum = sum_of_eight(sum);
    if (at.tx == 0) {
      delta[r] = sum;
      lse[r] = row < 0 ? infinite<W>() : task.lse[head * task.in.queries.total + row];
    }
  }
}

// Adds the rows of a tile to thread d's sum of feature d.
template <class W>
__device__ __forceinline__ void add_rows(const W* tile, int head_dim, W& sum) {
  const int d = static_cast<int>(threadIdx.x);
  if (d >= head_dim) return;
  for (int r = 0; r < kTile; ++r) sum = sum + tile[r * pitch(head_dim) + d];
}

template <class T, int kSteps>
__global__ void __launch_bounds__(kThreads)
    attention_grad_keys_kernel(AttentionBackward<T> task, int64_t slots) {
  using W = wide<T>;
  const Attention<T>& in = task.in;
  const int n = in.head_dim, head = static_cast<int>(blockIdx.x % in.num_heads);
  const PlainShared<W> s = plain_shared<W>(n, 4, 2);
  W *const k = s.tile[0], *const v = s.tile[1], *const q = s.tile[2], *const g = s.tile[3];
  const Place at = place();
  const Preparation<W> query_how = query_preparation(in), key_how = key_preparation(in);
  const Preparation<W>* const plain = nullptr;
  const int64_t part = blockIdx.x / in.num_heads, parts = gridDim.x / in.num_heads;
  W gamma_sum = 0;
  for (int64_t slot = part; slot < slots; slot += parts) {
    const Tile keys = find_tile(in.keys, in.num_sequences, slot, kTile);
    if (keys.begin == keys.end) continue;
    __syncthreads();
    load_tile(in.k, in.keys, keys, head, &key_how, n, k, s.rows[0]);
    load_tile(in.v, in.keys, keys, head, plain, n, v, nullptr);
    RowSums<W, kSteps> grad_k, grad_v;
    grad_k.clear();
    grad_v.clear();
    const int32_t end_query = in.queries.offsets[keys.sequence + 1];
    for (int32_t begin = in.queries.offsets[keys.sequence]; begin < end_query; begin += kTile) {
      const Tile queries{keys.sequence, begin, min(begin + kTile, end_query)};
      __syncthreads();
      load_tile(in.q, in.queries, queries, head, &query_how, n, q, s.rows[1]);
      load_tile(task.grad_out, in.queries, queries, head, plain, n, g, nullptr);
      __syncthreads();
      load_numbers(task, s.rows[1], head, g, s.number[0], s.number[1]);
      __syncthreads();
      score_gradients(
          k, q, v, g, n, s.number[0], s.number[1], [&](int, int c) { return at.tx + 8 * c; },
          s.square[0], s.square[1]);
      __syncwarp();
      grad_v.add(s.square[0], g, n, queries.end - queries.begin);
      grad_k.add(s.square[1], q, n, queries.end - queries.begin);
    }
    __syncthreads();
    grad_k.store(q, n);
    grad_v.store(g, n);
    __syncthreads();
    write_gradient(in.k, task.grad_k, s.rows[0], head, key_how, q);
    for (int r = at.ty; r < kTile; r += kThreads / 8) {
      if (s.rows[0][r] < 0) continue;
      T* const to = head_row(task.grad_v, s.rows[0][r], head);
      for (int i = at.tx; i < n; i += 8) narrow(g[r * pitch(n) + i], to + i);
    }
    if (task.k_gamma_grad == nullptr) continue;
    __syncthreads();
    add_rows(q, n, gamma_sum);
  }
  if (task.k_gamma_grad != nullptr && static_cast<int>(threadIdx.x) < n)
    task.k_gamma_grad[(part * in.num_heads + head) * n + threadIdx.x] = gamma_sum;
}

template <class T, int kSteps>
__global__ void __launch_bounds__(kThreads)
    attention_grad_queries_kernel(AttentionBackward<T> task, int64_t slots) {
  using W = wide<T>;
  const Attention<T>& in = task.in;
  const int n = in.head_dim, head = static_cast<int>(blockIdx.x % in.num_heads);
  const PlainShared<W> s = plain_shared<W>(n, 4, 1);
  W *const q = s.tile[0], *const g = s.tile[1], *const k = s.tile[2], *const v = s.tile[3];
  const Place at = place();
  const Preparation<W> query_how = query_preparation(in), key_how = key_preparation(in);
  const Preparation<W>* const plain = nullptr;
  const int64_t part = blockIdx.x / in.num_heads, parts = gridDim.x / in.num_heads;
  W gamma_sum = 0;
  for (int64_t slot = part; slot < slots; slot += parts) {
    const Tile queries = find_tile(in.queries, in.num_sequences, slot, kTile);
    if (queries.begin == queries.end) continue;
    __syncthreads();
    load_tile(in.q, in.queries, queries, head, &query_how, n, q, s.rows[0]);
    load_tile(task.grad_out, in.queries, queries, head, plain, n, g, nullptr);
    __syncthreads();
    load_numbers(task, s.rows[0], head, g, s.number[0], s.number[1]);
    RowSums<W, kSteps> grad_q;
    grad_q.clear();
    const int32_t end_key = in.keys.offsets[queries.sequence + 1];
    for (int32_t begin = in.keys.offsets[queries.sequence]; begin < end_key; begin += kTile) {
      const Tile keys{queries.sequence, begin, min(begin + kTile, end_key)};
      __syncthreads();
      load_tile(in.k, in.keys, keys, head, &key_how, n, k, nullptr);
      load_tile(in.v, in.keys, keys, head, plain, n, v, nullptr);
      __syncthreads();
      score_gradients(
          q, k, g, v, n, s.number[0], s.number[1], [&](int r, int) { return 2 * at.ty + r; },
          static_cast<W*>(nullptr), s.square[0]);
      __syncwarp();
      grad_q.add(s.square[0], k, n, keys.end - keys.begin);
    }
    __syncthreads();
    grad_q.store(k, n);
    __syncthreads();
    write_gradient(in.q, task.grad_q, s.rows[0], head, query_how, k);
    if (task.q_gamma_grad == nullptr) continue;
    __syncthreads();
    add_rows(k, n, gamma_sum);
  }
  if (task.q_gamma_grad != nullptr && static_cast<int>(threadIdx.x) < n)
    task.q_gamma_grad[(part * in.num_heads + head) * n + threadIdx.x] = gamma_sum;
}

}  // namespace

template <class T>
void attention_backward(const AttentionBackward<T>& task, void*, size_t, cudaStream_t stream) {
  const char* op = "attention_backward";
  const Attention<T>& in = task.in;
  const bool narrow_heads = in.head_dim <= 64;
  const auto blocks = [&](int64_t slots, bool sums) {
    return dim3(static_cast<unsigned>((sums ? task.gamma_parts : slots) * in.num_heads));
  };
  const int64_t key_slots = tile_slots(in.keys, in.num_sequences, kTile);
  const int64_t query_slots = tile_slots(in.queries, in.num_sequences, kTile);
  if (in.num_heads == 0 || in.num_sequences == 0) return;
  launch(op, narrow_heads ? attention_grad_keys_kernel<T, 8> : attention_grad_keys_kernel<T, 16>,
         blocks(key_slots, task.k_gamma_grad != nullptr), dim3(kThreads),
         plain_shared_bytes(sizeof(wide<T>), in.head_dim, 4, 2), stream, task, key_slots);
  launch(op,
         narrow_heads ? attention_grad_queries_kernel<T, 8> : attention_grad_queries_kernel<T, 16>,
         blocks(query_slots, task.q_gamma_grad != nullptr), dim3(kThreads),
         plain_shared_bytes(sizeof(wide<T>), in.head_dim, 4, 1), stream, task, query_slots);
}

template <>
void attention_backward<BFloat16>(const AttentionBackward<BFloat16>& task, void* workspace,
                                  size_t workspace_bytes, cudaStream_t stream) {
  attention_backward_mma(task, workspace, workspace_bytes, stream);
}
template <>
void attention_backward<Float16>(const AttentionBackward<Float16>& task, void* workspace,
                                 size_t workspace_bytes, cudaStream_t stream) {
  attention_backward_mma(task, workspace, workspace_bytes, stream);
}
template void attention_backward<float>(const AttentionBackward<float>&, void*, size_t,
                                        cudaStream_t);
template void attention_backward<double>(const AttentionBackward<double>&, void*, size_t,
                                         cudaStream_t);

}  // namespace fastshape::cuda
