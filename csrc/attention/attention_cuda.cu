// On CUDA: a block for a tile of queries and one head, over tiles of keys with an online softmax.
#include "attention/attention_plain.cuh"

namespace fastshape::cuda {

// attention_mma_cuda.cu
template <class T>
void attention_mma(const AttentionForward<T>& task, cudaStream_t stream);

namespace {

template <class T, int kSteps>
__global__ void __launch_bounds__(kThreads) attention_kernel(AttentionForward<T> task) {
  using W = wide<T>;
  const Attention<T>& in = task.in;
  const int n = in.head_dim, head = static_cast<int>(blockIdx.x % in.num_heads);
  const Tile queries = find_tile(in.queries, in.num_sequences, blockIdx.x / in.num_heads, kTile);
  if (queries.begin == queries.end) return;
  const PlainShared<W> s = plain_shared<W>(n, 3, 1);
  W *const q = s.tile[0], *const k = s.tile[1], *const v = s.tile[2], *const p = s.square[0];
  const Place at = place();
  const Preparation<W> query_how = query_preparation(in), key_how = key_preparation(in);
  load_tile(in.q, in.queries, queries, head, &query_how, n, q, s.rows[0]);

  W largest[2] = {-infinite<W>(), -infinite<W>()}, sum[2] = {0, 0};
  RowSums<W, kSteps> out;
  out.clear();
  const int32_t end_key = in.keys.offsets[queries.sequence + 1];
  for (int32_t begin = in.keys.offsets[queries.sequence]; begin < end_key; begin += kTile) {
    const Tile keys{queries.sequence, begin, min(begin + kTile, end_key)};
    __syncthreads();  // the former tile is no longer read
    load_tile(in.k, in.keys, keys, head, &key_how, n, k, nullptr);
    load_tile(in.v, in.keys, keys, head, static_cast<const Preparation<W>*>(nullptr), n, v,
              nullptr);
    __syncthreads();
    W scores[2][4];
    row_products(q, k, n, scores);
    for (int r = 0; r < 2; ++r) {
      W top = largest[r];
      for (int c = 0; c < 4; ++c)
        if (begin + at.tx + 8 * c < end_key) top = max(top, scores[r][c]);
      top = largest_of_eight(top);
      const W shrink = exponential(largest[r] - top);
      W total = 0;
      for (int c = 0; c < 4; ++c) {
        const W here = begin + at.tx + 8 * c < end_key ? exponential(scores[r][c] - top) : W(0);
        p[(2 * at.ty + r) * (kTile + 1) + at.tx + 8 * c] = here;
        total = total + here;
      }
      sum[r] = fused(sum[r], shrink, sum_of_eight(total));
      largest[r] = top;
      for (int j = 0; j < kSteps; ++j) out.sum[r][j] = out.sum[r][j] * shrink;
    }
    __syncwarp();  // a warp writes the rows of p that it reads
    out.add(p, v, n, keys.end - keys.begin);
  }

  __syncthreads();
  for (int r = 0; r < 2; ++r) {
    const int64_t row = s.rows[0][2 * at.ty + r];
    if (row < 0) continue;
    const bool empty = sum[r] == 0;
    T* const to = head_row(task.out, row, head);
    for (int j = 0; j < kSteps; ++j)
      if (at.tx + 8 * j < n) narrow(empty ? W(0) : out.sum[r][j] / sum[r], to + at.tx + 8 * j);
    if (at.tx == 0)
      task.lse[head * in.queries.total + row] =
          empty ? -infinite<W>() : largest[r] + logarithm(sum[r]);
  }
}

}  // namespace

template <class T>
void attention(const AttentionForward<T>& task, cudaStream_t stream) {
  const Attention<T>& in = task.in;
  const int64_t blocks = tile_slots(in.queries, in.num_sequences, kTile) * in.num_heads;
  if (blocks == 0 || in.queries.total == 0) return;
  const size_t bytes = plain_shared_bytes(sizeof(wide<T>), in.head_dim, 3, 1);
  launch("attention", in.head_dim <= 64 ? attention_kernel<T, 8> : attention_kernel<T, 16>,
         dim3(static_cast<unsigned>(blocks)), dim3(kThreads), bytes, stream, task);
}

template <>
void attention<BFloat16>(const AttentionForward<BFloat16>& task, cudaStream_t stream) {
  attention_mma(task, stream);
}
template <>
void attention<Float16>(const AttentionForward<Float16>& task, cudaStream_t stream) {
  attention_mma(task, stream);
}
template void attention<float>(const AttentionForward<float>&, cudaStream_t);
template void attention<double>(const AttentionForward<double>&, cudaStream_t);

}  // namespace fastshape::cuda
