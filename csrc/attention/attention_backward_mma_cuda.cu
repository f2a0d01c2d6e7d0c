// On CUDA, of 16-bit floats. A block has a tile of keys, or all tiles of a sequence one after the
// other, and goes through the queries: scores are computed with keys as rows, so that the keys'
// gradients are sums in registers.
//
// Where sequences are many (windows), one block makes all gradients of a sequence and head: with
// more than one tile of keys the queries' gradients are summed in the workspace, by the same thread
// every time. Where they are few and long, a second kernel makes the queries' gradients, a block
// for a tile of queries.
#include "attention/attention_mma.cuh"
#include "core/workspace.h"

namespace fastshape::cuda {
namespace {

// Queries that are worked on together: with 128 features there are registers for half as many.
template <int kDim>
constexpr int kQueries = kDim <= 64 ? 64 : 32;

// ---- The end of a gradient ---------------------------------------------------------------------

template <int kDim>
struct GammaSums {
  float warp[kThreads / 32][kDim];
};
template <int kDim>
__device__ __forceinline__ void clear_sums(GammaSums<kDim>& sums) {
  for (int i = static_cast<int>(threadIdx.x); i < kThreads / 32 * kDim; i += kThreads)
    sums.warp[i / kDim][i % kDim] = 0;
}
template <int kDim>
__device__ __forceinline__ void write_sums(const GammaSums<kDim>& sums, float* to, int head_dim) {
  for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += kThreads) {
    float sum = 0;
    for (int w = 0; w < kThreads / 32; ++w) sum = sum + sums.warp[w][d];
    to[d] = sum;
  }
}

// 16 rows of gradients with respect to prepared rows to those with respect to the raw ones;
// `row_at(r)` is -1 where there is none. Gamma's are added to the warp's sums, if wanted.
template <int kDim, class T, class RowAt>
__device__ __forceinline__ void write_gradient(float (&grad)[kDim / 8][4],
                                               const HeadRows<const T>& from, const HeadRows<T>& to,
                                               int head, const Preparation<float>& how,
                                               float factor, GammaSums<kDim>* sums,
                                               RowAt&& row_at) {
  const int n = how.head_dim;
  const int64_t rows[2] = {row_at(fragment_row()), row_at(fragment_row() + 8)};
#pragma unroll
  for (int d = 0; d < kDim / 8; ++d)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float &low = grad[d][2 * r], &high = grad[d][2 * r + 1];
      low = low * factor;
      high = high * factor;
      if (how.rope != nullptr && rows[r] >= 0)
        turn(how, rows[r], 4 * d + fragment_column() / 2, -1.0f, low, high);
    }
  if (how.gamma != nullptr) {
    const float most = root(static_cast<float>(n));
    uint32_t raw[kDim / 8][2];
    float squares[2] = {0, 0}, along[2] = {0, 0};
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int column = 8 * d + fragment_column();
        raw[d][r] = rows[r] >= 0 && column < n
                        ? *reinterpret_cast<const uint32_t*>(head_row(from, rows[r], head) + column)
                        : 0u;
        const float low = low_of<T>(raw[d][r]), high = high_of<T>(raw[d][r]);
        squares[r] = fused(low, low, fused(high, high, squares[r]));
        if (column >= n) continue;
        const float* const gamma = how.gamma + head * n + column;
        along[r] = fused(grad[d][2 * r] * gamma[0], low, along[r]);
        along[r] = fused(grad[d][2 * r + 1] * gamma[1], high, along[r]);
      }
    float scale[2], back[2];
    for (int r = 0; r < 2; ++r) {
      const float norm = root(sum_of_four(squares[r]));
      along[r] = sum_of_four(along[r]);
      scale[r] = most / max(norm, 1e-12f);
      back[r] = norm > 1e-12f ? along[r] / norm / norm : 0.0f;
    }
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      const int column = 8 * d + fragment_column();
      float sum[2] = {0, 0};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float x[2] = {low_of<T>(raw[d][r]), high_of<T>(raw[d][r])};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& g = grad[d][2 * r + i];
          if (rows[r] >= 0) sum[i] = fused(g * scale[r], x[i], sum[i]);
          const float gamma = column < n ? how.gamma[head * n + column + i] : 0.0f;
          g = fused(g, gamma, -(x[i] * back[r])) * scale[r];
        }
      }
      if (sums == nullptr) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        for (int bit = 4; bit < 32; bit *= 2)
          sum[i] = sum[i] + __shfl_xor_sync(kAllLanes, sum[i], bit);
        if (lane_id() < 4) sums->warp[warp_id()][column + i] += sum[i];
      }
    }
  }
#pragma unroll
  for (int d = 0; d < kDim / 8; ++d)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int column = 8 * d + fragment_column();
      if (rows[r] >= 0 && column < n)
        *reinterpret_cast<uint32_t*>(head_row(to, rows[r], head) + column) =
            pack_pair<T>(grad[d][2 * r], grad[d][2 * r + 1]);
    }
}

// ---- Keys, and queries with them ---------------------------------------------------------------

template <class T, int kDim>
struct KeysShared {
  T k[kRows * kStride<kDim>];
  T v[kRows * kStride<kDim>];
  T q[kQueries<kDim> * kStride<kDim>];
  T grad_out[kQueries<kDim> * kStride<kDim>];
  T ds[kRows * kStride<kQueries<kDim>>];  // keys are rows
  float lse[kQueries<kDim>], delta[kQueries<kDim>];
  int32_t key_rows[kRows], query_rows[kQueries<kDim>];
  GammaSums<kDim> q_gamma, k_gamma;
};

// Of the tile's queries: the logarithm of the sum as a power of two, and result times gradient.
template <int kDim, int kTileRows, class T, class RowAt>
__device__ __forceinline__ void load_numbers(const AttentionBackward<T>& task, int head,
                                             const T* grad_out, float* lse, float* delta,
                                             RowAt&& row_at) {
  const int n = task.in.head_dim;
  for (int r = loader_row(); r < kTileRows; r += kRowsAtOnce) {
    const int64_t row = row_at(r);
    float sum = 0;
    for (int d = 8 * loader_piece(); d < n && row >= 0; d += 64) {
      const Piece out = load_piece(head_row(task.out, row, head) + d);
      const Piece grad = load_piece(grad_out + r * kStride<kDim> + d);
      for (int i = 0; i < 4; ++i) {
        sum = fused(low_of<T>(out.pair[i]), low_of<T>(grad.pair[i]), sum);
        sum = fused(high_of<T>(out.pair[i]), high_of<T>(grad.pair[i]), sum);
      }
    }
    sum = sum_of_eight(sum);
    if (loader_piece() == 0) {
      delta[r] = sum;
      lse[r] = row < 0 ? infinite<float>() : task.lse[head * task.in.queries.total + row] * kLog2E;
    }
  }
}

// kFused: a slot is a sequence, and the queries' gradients are made too.
template <class T, int kDim, bool kFused>
__global__ void __launch_bounds__(kThreads)
    attention_grad_keys_mma_kernel(AttentionBackward<T> task, int64_t slots, float* grad_sums) {
  auto& s = shared_memory<KeysShared<T, kDim>>();
  constexpr int kTileQueries = kQueries<kDim>;
  const Attention<T>& in = task.in;
  const int n = in.head_dim, head = static_cast<int>(blockIdx.x % in.num_heads);
  const int warp = static_cast<int>(warp_id());
  const Preparation<float> query_how = query_preparation(in), key_how = key_preparation(in);
  const float scale = in.scale * kLog2E;
  const int64_t part = blockIdx.x / in.num_heads, parts = gridDim.x / in.num_heads;
  GammaSums<kDim>* const q_sums = task.q_gamma_grad == nullptr ? nullptr : &s.q_gamma;
  GammaSums<kDim>* const k_sums = task.k_gamma_grad == nullptr ? nullptr : &s.k_gamma;
  clear_sums(s.q_gamma);
  clear_sums(s.k_gamma);

  for (int64_t slot = part; slot < slots; slot += parts) {
    int64_t sequence = slot;
    int32_t begin_key, end_key;
    if (kFused) {
      begin_key = in.keys.offsets[slot];
      end_key = in.keys.offsets[slot + 1];
    } else {
      const Tile tile = find_tile(in.keys, in.num_sequences, slot, kRows);
      sequence = tile.sequence;
      begin_key = tile.begin;
      end_key = tile.end;
    }
    const int32_t first_query = in.queries.offsets[sequence];
    const int32_t end_query = in.queries.offsets[sequence + 1];

    for (int32_t key = begin_key; key < end_key; key += kRows) {
      const int num_keys = min(end_key - key, kRows);
      __syncthreads();  // everything of the former tile has been read
      for (int i = static_cast<int>(threadIdx.x); i < num_keys; i += kThreads)
        s.key_rows[i] = static_cast<int32_t>(row_of(in.keys, sequence, key + i));
      __syncthreads();
      const auto key_row = [&](int r) -> int64_t { return r < num_keys ? s.key_rows[r] : -1; };
      copy_rows<kDim, kRows>(s.k, in.k, head, n, key_row);
      copy_rows<kDim, kRows>(s.v, in.v, head, n, key_row);
      async_commit();
      float grad_k[kDim / 8][4], grad_v[kDim / 8][4];
      clear(grad_k);
      clear(grad_v);
      for (int32_t query = first_query; query < end_query; query += kTileQueries) {
        const int num_queries = min(end_query - query, kTileQueries);
        __syncthreads();
        for (int i = static_cast<int>(threadIdx.x); i < num_queries; i += kThreads)
          s.query_rows[i] = static_cast<int32_t>(row_of(in.queries, sequence, query + i));
        __syncthreads();
        const auto query_row = [&](int r) -> int64_t {
          return r < num_queries ? s.query_rows[r] : -1;
        };
        copy_rows<kDim, kTileQueries>(s.q, in.q, head, n, query_row);
        copy_rows<kDim, kTileQueries>(s.grad_out, task.grad_out, head, n, query_row);
        async_commit();
        async_wait<0>();
        if (query == first_query) prepare_rows<kDim, kRows>(s.k, key_how, head, key_row);
        prepare_rows<kDim, kTileQueries>(s.q, query_how, head, query_row);
        load_numbers<kDim, kTileQueries>(task, head, s.grad_out, s.lse, s.delta, query_row);
        __syncthreads();

        float p[kTileQueries / 8][4], ds[kTileQueries / 8][4];
        clear(p);
        clear(ds);
        if (16 * warp < num_keys) {
          multiply_rows<kDim>(p, s.k + 16 * warp * kStride<kDim>, s.q, num_queries);
          multiply_rows<kDim>(ds, s.v + 16 * warp * kStride<kDim>, s.grad_out, num_queries);
#pragma unroll
          for (int j = 0; j < kTileQueries / 8; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int at = 8 * j + fragment_column() + (i & 1);
              const bool there = 16 * warp + fragment_row() + 8 * (i / 2) < num_keys;
              p[j][i] = there ? power_of_two(fused(p[j][i], scale, -s.lse[at])) : 0.0f;
              ds[j][i] = p[j][i] * (ds[j][i] - s.delta[at]);
            }
          add_weighted_rows<kDim>(grad_v, p, s.grad_out, num_queries);
          add_weighted_rows<kDim>(grad_k, ds, s.q, num_queries);
        }
        if constexpr (kFused) {
#pragma unroll
          for (int j = 0; j < kTileQueries / 8; ++j)
#pragma unroll
            for (int r = 0; r < 2; ++r)
              *reinterpret_cast<uint32_t*>(
                  s.ds + (16 * warp + fragment_row() + 8 * r) * kStride<kTileQueries> + 8 * j +
                  fragment_column()) = pack_pair<T>(ds[j][2 * r], ds[j][2 * r + 1]);
          __syncthreads();
          if (16 * warp >= num_queries) continue;
          float grad_q[kDim / 8][4];
          clear(grad_q);
#pragma unroll
          for (int j = 0; j < kRows; j += 16) {
            if (j >= num_keys) break;
            uint32_t left[4];
            load_a_transposed(left, s.ds + j * kStride<kTileQueries> + 16 * warp,
                              kStride<kTileQueries>);
#pragma unroll
            for (int d = 0; d < kDim / 8; ++d) {
              uint32_t right[2];
              load_b(right, s.k + j * kStride<kDim> + 8 * d, kStride<kDim>);
              mma_m16n8k16<T>(grad_q[d], left, right);
            }
          }
          const bool first = key == begin_key, last = key + kRows >= end_key;
          if (!(first && last)) {
#pragma unroll
            for (int d = 0; d < kDim / 8; ++d)
#pragma unroll
              for (int r = 0; r < 2; ++r) {
                const int at = 16 * warp + fragment_row() + 8 * r,
                          column = 8 * d + fragment_column();
                if (at >= num_queries || column >= n) continue;
                auto* const sum = reinterpret_cast<float2*>(
                    grad_sums + (head * in.queries.total + query + at) * n + column);
                if (!first) {
                  const float2 former = *sum;
                  grad_q[d][2 * r] = former.x + grad_q[d][2 * r];
                  grad_q[d][2 * r + 1] = former.y + grad_q[d][2 * r + 1];
                }
                if (!last) *sum = make_float2(grad_q[d][2 * r], grad_q[d][2 * r + 1]);
              }
          }
          if (last)
            write_gradient<kDim>(grad_q, in.q, task.grad_q, head, query_how, in.scale, q_sums,
                                 [&](int r) { return query_row(16 * warp + r); });
        }
      }
      if (16 * warp >= num_keys) continue;
      write_gradient<kDim>(grad_k, in.k, task.grad_k, head, key_how, in.scale, k_sums,
                           [&](int r) { return key_row(16 * warp + r); });
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int64_t row = key_row(16 * warp + fragment_row() + 8 * r);
          const int column = 8 * d + fragment_column();
          if (row >= 0 && column < n)
            *reinterpret_cast<uint32_t*>(head_row(task.grad_v, row, head) + column) =
                pack_pair<T>(grad_v[d][2 * r], grad_v[d][2 * r + 1]);
        }
    }
    if (kFused && begin_key == end_key) {  // queries without keys
      for (int32_t query = first_query + static_cast<int32_t>(threadIdx.x); query < end_query;
           query += kThreads) {
        T* const to = head_row(task.grad_q, row_of(in.queries, sequence, query), head);
        for (int d = 0; d < n; ++d) narrow(0.0f, to + d);
      }
    }
  }
  __syncthreads();
  const int64_t at = (part * in.num_heads + head) * n;
  if (kFused && task.q_gamma_grad != nullptr) write_sums(s.q_gamma, task.q_gamma_grad + at, n);
  if (task.k_gamma_grad != nullptr) write_sums(s.k_gamma, task.k_gamma_grad + at, n);
}

// ---- Queries alone -----------------------------------------------------------------------------

template <class T, int kDim>
struct QueriesShared {
  T q[kRows * kStride<kDim>];
  T grad_out[kRows * kStride<kDim>];
  T k[kRows * kStride<kDim>];
  T v[kRows * kStride<kDim>];
  float lse[kRows], delta[kRows];
  int32_t query_rows[kRows];
  GammaSums<kDim> q_gamma;
};

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads)
    attention_grad_queries_mma_kernel(AttentionBackward<T> task, int64_t slots) {
  auto& s = shared_memory<QueriesShared<T, kDim>>();
  const Attention<T>& in = task.in;
  const int n = in.head_dim, head = static_cast<int>(blockIdx.x % in.num_heads);
  const int warp = static_cast<int>(warp_id());
  const Preparation<float> query_how = query_preparation(in), key_how = key_preparation(in);
  const float scale = in.scale * kLog2E;
  const int64_t part = blockIdx.x / in.num_heads, parts = gridDim.x / in.num_heads;
  clear_sums(s.q_gamma);
  for (int64_t slot = part; slot < slots; slot += parts) {
    const Tile queries = find_tile(in.queries, in.num_sequences, slot, kRows);
    const int num_queries = queries.end - queries.begin;
    if (num_queries <= 0) continue;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < num_queries; i += kThreads)
      s.query_rows[i] =
          static_cast<int32_t>(row_of(in.queries, queries.sequence, queries.begin + i));
    __syncthreads();
    const auto query_row = [&](int r) -> int64_t { return r < num_queries ? s.query_rows[r] : -1; };
    copy_rows<kDim, kRows>(s.q, in.q, head, n, query_row);
    copy_rows<kDim, kRows>(s.grad_out, task.grad_out, head, n, query_row);
    async_commit();
    float grad_q[kDim / 8][4];
    clear(grad_q);
    const int32_t first_key = in.keys.offsets[queries.sequence];
    const int32_t end_key = in.keys.offsets[queries.sequence + 1];
    for (int32_t key = first_key; key < end_key; key += kRows) {
      const int num_keys = min(end_key - key, kRows);
      const auto key_row = [&](int r) -> int64_t {
        return r < num_keys ? row_of(in.keys, queries.sequence, key + r) : -1;
      };
      __syncthreads();
      copy_rows<kDim, kRows>(s.k, in.k, head, n, key_row);
      copy_rows<kDim, kRows>(s.v, in.v, head, n, key_row);
      async_commit();
      async_wait<0>();
      if (key == first_key) {
        prepare_rows<kDim, kRows>(s.q, query_how, head, query_row);
        load_numbers<kDim, kRows>(task, head, s.grad_out, s.lse, s.delta, query_row);
      }
      prepare_rows<kDim, kRows>(s.k, key_how, head, key_row);
      __syncthreads();
      if (16 * warp >= num_queries) continue;
      // Half of the keys at a time: registers.
#pragma unroll 1
      for (int half = 0; half < num_keys; half += kRows / 2) {
        float p[kRows / 16][4], ds[kRows / 16][4];
        clear(p);
        clear(ds);
        const int count = min(num_keys - half, kRows / 2);
        const T *const k = s.k + half * kStride<kDim>, *const v = s.v + half * kStride<kDim>;
        multiply_rows<kDim>(p, s.q + 16 * warp * kStride<kDim>, k, count);
        multiply_rows<kDim>(ds, s.grad_out + 16 * warp * kStride<kDim>, v, count);
#pragma unroll
        for (int j = 0; j < kRows / 16; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int at = 16 * warp + fragment_row() + 8 * (i / 2);
            const bool there = 8 * j + fragment_column() + (i & 1) < count;
            const float here = there ? power_of_two(fused(p[j][i], scale, -s.lse[at])) : 0.0f;
            ds[j][i] = here * (ds[j][i] - s.delta[at]);
          }
        add_weighted_rows<kDim>(grad_q, ds, k, count);
      }
    }
    async_wait<0>();  // without keys nobody did
    if (16 * warp < num_queries)
      write_gradient<kDim>(grad_q, in.q, task.grad_q, head, query_how, in.scale,
                           task.q_gamma_grad == nullptr ? nullptr : &s.q_gamma,
                           [&](int r) { return query_row(16 * warp + r); });
  }
  __syncthreads();
  if (task.q_gamma_grad != nullptr)
    write_sums(s.q_gamma, task.q_gamma_grad + (part * in.num_heads + head) * n, n);
}

// ---- Launches ----------------------------------------------------------------------------------

// By the sizes alone, so that sums are made in one order on every device.
constexpr int64_t kManySequences = 64;

template <class T, int kDim>
void launch_backward(const AttentionBackward<T>& task, float* grad_sums, cudaStream_t stream) {
  const char* op = "attention_backward";
  const Attention<T>& in = task.in;
  const bool sums = task.q_gamma_grad != nullptr || task.k_gamma_grad != nullptr;
  const auto blocks = [&](int64_t slots) {
    return dim3(static_cast<unsigned>((sums ? task.gamma_parts : slots) * in.num_heads));
  };
  if (in.num_sequences >= kManySequences) {
    launch(op, attention_grad_keys_mma_kernel<T, kDim, true>, blocks(in.num_sequences),
           dim3(kThreads), sizeof(KeysShared<T, kDim>), stream, task, in.num_sequences, grad_sums);
    return;
  }
  const int64_t key_slots = tile_slots(in.keys, in.num_sequences, kRows);
  const int64_t query_slots = tile_slots(in.queries, in.num_sequences, kRows);
  launch(op, attention_grad_keys_mma_kernel<T, kDim, false>, blocks(key_slots), dim3(kThreads),
         sizeof(KeysShared<T, kDim>), stream, task, key_slots, grad_sums);
  launch(op, attention_grad_queries_mma_kernel<T, kDim>, blocks(query_slots), dim3(kThreads),
         sizeof(QueriesShared<T, kDim>), stream, task, query_slots);
}

}  // namespace

size_t attention_backward_workspace_bytes(int64_t num_queries, int64_t num_sequences,
                                          int64_t num_heads, int64_t head_dim, bool is_wide) {
  if (is_wide || num_sequences < kManySequences) return 0;
  WorkspaceCutter cutter(nullptr);
  cutter.take<float>(num_heads * num_queries * head_dim);
  return cutter.bytes();
}

template <class T>
void attention_backward_mma(const AttentionBackward<T>& task, void* workspace,
                            size_t workspace_bytes, cudaStream_t stream) {
  const Attention<T>& in = task.in;
  const int n = in.head_dim;
  const size_t bytes = attention_backward_workspace_bytes(in.queries.total, in.num_sequences,
                                                          in.num_heads, n, false);
  FASTSHAPE_CHECK_VALUE(workspace_bytes >= bytes, "attention_backward: the workspace has ",
                        workspace_bytes, " bytes, ", bytes, " are needed");
  if (in.num_heads == 0 || in.num_sequences == 0) return;
  auto* const sums = static_cast<float*>(workspace);
  if (n <= 32) return launch_backward<T, 32>(task, sums, stream);
  if (n <= 64) return launch_backward<T, 64>(task, sums, stream);
  if (n <= 96) return launch_backward<T, 96>(task, sums, stream);
  launch_backward<T, 128>(task, sums, stream);
}

template void attention_backward_mma<BFloat16>(const AttentionBackward<BFloat16>&, void*, size_t,
                                               cudaStream_t);
template void attention_backward_mma<Float16>(const AttentionBackward<Float16>&, void*, size_t,
                                              cudaStream_t);

}  // namespace fastshape::cuda
