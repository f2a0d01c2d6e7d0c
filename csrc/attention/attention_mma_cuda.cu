// On CUDA, of 16-bit floats: a block has a tile of queries and goes through some heads and, for
// each, the keys in chunks; while one chunk is worked on, the next is on its way. Scores stay in
// registers.
#include "attention/attention_mma.cuh"

namespace fastshape::cuda {
namespace {

template <class T, int kDim>
struct ForwardShared {
  T q[2][kRows * kStride<kDim>];
  T k[2][kRows * kStride<kDim>];
  T v[2][kRows * kStride<kDim>];
  int32_t query_rows[kRows];
  int32_t key_rows[kCachedRows];
};

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads)
    attention_mma_kernel(AttentionForward<T> task, int heads_at_once) {
  auto& s = shared_memory<ForwardShared<T, kDim>>();
  const Attention<T>& in = task.in;
  const int n = in.head_dim;
  const int groups = (static_cast<int>(in.num_heads) + heads_at_once - 1) / heads_at_once;
  const int first_head = static_cast<int>(blockIdx.x % groups) * heads_at_once;
  const int heads = min(heads_at_once, static_cast<int>(in.num_heads) - first_head);
  const Tile queries = find_tile(in.queries, in.num_sequences, blockIdx.x / groups, kRows);
  const int num_queries = queries.end - queries.begin;
  if (num_queries <= 0) return;
  const int32_t first_key = in.keys.offsets[queries.sequence];
  const int num_keys = in.keys.offsets[queries.sequence + 1] - first_key;

  for (int i = static_cast<int>(threadIdx.x); i < num_queries; i += kThreads)
    s.query_rows[i] = static_cast<int32_t>(row_of(in.queries, queries.sequence, queries.begin + i));
  for (int i = static_cast<int>(threadIdx.x); i < min(num_keys, kCachedRows); i += kThreads)
    s.key_rows[i] = static_cast<int32_t>(row_of(in.keys, queries.sequence, first_key + i));
  __syncthreads();
  const auto query_row = [&](int r) -> int64_t { return r < num_queries ? s.query_rows[r] : -1; };
  const auto key_row = [&](int i) -> int64_t {
    if (i >= num_keys) return -1;
    return i < kCachedRows ? s.key_rows[i] : row_of(in.keys, queries.sequence, first_key + i);
  };

  const int chunks = max(1, (num_keys + kRows - 1) / kRows), stages = heads * chunks;
  const auto start_stage = [&](int stage) {
    const int head = first_head + stage / chunks, chunk = stage % chunks;
    const auto row_at = [&](int r) { return key_row(chunk * kRows + r); };
    if (chunk == 0) copy_rows<kDim, kRows>(s.q[stage / chunks % 2], in.q, head, n, query_row);
    copy_rows<kDim, kRows>(s.k[stage % 2], in.k, head, n, row_at);
    copy_rows<kDim, kRows>(s.v[stage % 2], in.v, head, n, row_at);
    async_commit();
  };

  const Preparation<float> query_how = query_preparation(in), key_how = key_preparation(in);
  const float scale = in.scale * kLog2E;
  const int warp = static_cast<int>(warp_id());
  const bool active = 16 * warp < num_queries;
  float largest[2], sum[2], out[kDim / 8][4];
  start_stage(0);
  for (int stage = 0; stage < stages; ++stage) {
    const int head = first_head + stage / chunks, chunk = stage % chunks;
    T *const q = s.q[stage / chunks % 2], *const k = s.k[stage % 2], *const v = s.v[stage % 2];
    if (stage + 1 < stages) {
      start_stage(stage + 1);
      async_wait<1>();
    } else {
      async_wait<0>();
    }
    // What a thread copied it may change before the others see it.
    if (chunk == 0) prepare_rows<kDim, kRows>(q, query_how, head, query_row);
    prepare_rows<kDim, kRows>(k, key_how, head, [&](int r) { return key_row(chunk * kRows + r); });
    __syncthreads();
    if (active) {
      if (chunk == 0) {
        largest[0] = largest[1] = -infinite<float>();
        sum[0] = sum[1] = 0;
        clear(out);
      }
      const int count = min(num_keys - chunk * kRows, kRows);
      if (count > 0) {
        float scores[kRows / 8][4];
        clear(scores);
        multiply_rows<kDim>(scores, q + 16 * warp * kStride<kDim>, k, count);
        float top[2] = {largest[0], largest[1]};
#pragma unroll
        for (int j = 0; j < kRows / 8; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const bool there = 8 * j + fragment_column() + (i & 1) < count;
            scores[j][i] = there ? scores[j][i] * scale : -infinite<float>();
            top[i / 2] = max(top[i / 2], scores[j][i]);
          }
        float shrink[2], total[2] = {0, 0};
        for (int r = 0; r < 2; ++r) {
          top[r] = largest_of_four(top[r]);
          shrink[r] = power_of_two(largest[r] - top[r]);
          largest[r] = top[r];
        }
#pragma unroll
        for (int j = 0; j < kRows / 8; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            scores[j][i] = power_of_two(scores[j][i] - top[i / 2]);
            total[i / 2] = total[i / 2] + scores[j][i];
          }
        for (int r = 0; r < 2; ++r) sum[r] = fused(sum[r], shrink[r], sum_of_four(total[r]));
        if (chunk > 0) {
#pragma unroll
          for (int d = 0; d < kDim / 8; ++d)
#pragma unroll
            for (int i = 0; i < 4; ++i) out[d][i] = out[d][i] * shrink[i / 2];
        }
        add_weighted_rows<kDim>(out, scores, v, count);
      }
      if (chunk == chunks - 1) {
        // Through the warp's own rows of q, which nobody else reads, to whole pieces.
        T* const rows = q + 16 * warp * kStride<kDim>;
        __syncwarp();
        for (int r = 0; r < 2; ++r) {
          const int at = fragment_row() + 8 * r;
          const float inverse = sum[r] == 0 ? 0.0f : 1.0f / sum[r];
#pragma unroll
          for (int d = 0; d < kDim / 8; ++d)
            *reinterpret_cast<uint32_t*>(rows + at * kStride<kDim> + 8 * d + fragment_column()) =
                pack_pair<T>(out[d][2 * r] * inverse, out[d][2 * r + 1] * inverse);
          const int64_t row = query_row(16 * warp + at);
          if (row >= 0 && lane_id() % 4 == 0)
            task.lse[head * in.queries.total + row] =
                sum[r] == 0 ? -infinite<float>() : (largest[r] + log2f(sum[r])) * kLn2;
        }
        __syncwarp();
        for (int r = static_cast<int>(lane_id()) / 8; r < 16; r += 4) {
          const int64_t row = query_row(16 * warp + r);
          if (row < 0) break;
          T* const to = head_row(task.out, row, head);
          for (int d = 8 * (static_cast<int>(lane_id()) % 8); d < n; d += 64)
            store_piece(to + d, load_piece(rows + r * kStride<kDim> + d));
        }
      }
    }
    __syncthreads();  // the buffers of this stage are free
  }
}

template <class T, int kDim>
void launch_attention(const AttentionForward<T>& task, cudaStream_t stream) {
  const Attention<T>& in = task.in;
  const int64_t slots = tile_slots(in.queries, in.num_sequences, kRows);
  // Enough blocks to fill a GPU come first, then work to overlap within a block.
  int64_t heads_at_once = 1;
  while (heads_at_once < 4 && slots * in.num_heads >= 4096 * heads_at_once) heads_at_once *= 2;
  const int64_t groups = (in.num_heads + heads_at_once - 1) / heads_at_once;
  launch("attention", attention_mma_kernel<T, kDim>, dim3(static_cast<unsigned>(slots * groups)),
         dim3(kThreads), sizeof(ForwardShared<T, kDim>), stream, task,
         static_cast<int>(heads_at_once));
}

}  // namespace

template <class T>
void attention_mma(const AttentionForward<T>& task, cudaStream_t stream) {
  const int n = task.in.head_dim;
  if (task.in.queries.total == 0 || task.in.num_heads == 0 || task.in.num_sequences == 0) return;
  if (n <= 32) return launch_attention<T, 32>(task, stream);
  if (n <= 64) return launch_attention<T, 64>(task, stream);
  if (n <= 96) return launch_attention<T, 96>(task, stream);
  launch_attention<T, 128>(task, stream);
}

template void attention_mma<BFloat16>(const AttentionForward<BFloat16>&, cudaStream_t);
template void attention_mma<Float16>(const AttentionForward<Float16>&, cudaStream_t);

}  // namespace fastshape::cuda
