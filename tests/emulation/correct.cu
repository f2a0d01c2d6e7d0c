// Kernels that keep the rules: the same result under every schedule, and nothing for a sanitizer to
// report.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cases.h"
#include "core/block.cuh"
#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"
#include "core/mma.cuh"

namespace fastshape::cuda::test {
namespace {

constexpr cudaStream_t kStream = nullptr;

// A fixed sequence of small numbers that looks random.
std::vector<int> numbers(size_t n, unsigned seed = 1) {
  std::vector<int> out(n);
  for (int& v : out) {
    seed = seed * 1664525u + 1013904223u;
    v = static_cast<int>(seed >> 20) - 2048;
  }
  return out;
}

// ---- Indices -----------------------------------------------------------------------------------

__global__ void write_indices(unsigned* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] =
      1000 * block + thread + (warp_id() != thread / 32) + (lane_id() != thread % 32);
}

std::string indices() {
  const dim3 grid(3, 2, 2), block(5, 4, 3);
  std::vector<unsigned> out(12 * 60), want(out.size());
  for (unsigned i = 0; i < want.size(); ++i) want[i] = 1000 * (i / 60) + i % 60;
  launch("indices", write_indices, grid, block, 0, kStream, out.data());
  return compare("index", out, want);
}

// ---- Blocks ------------------------------------------------------------------------------------

struct ReduceShared {
  BlockReduceStorage<int> integers;
  BlockReduceStorage<float> floats;
  BlockReduceStorage<unsigned long long> packed;
  BlockReduceTurns<int> turns;
};

__global__ void reduce_block(const int* in, int* out) {
  ReduceShared& s = shared_memory<ReduceShared>();
  const int v = in[threadIdx.x];
  const int sum = block_reduce(s.integers, v, Sum());
  const int least = block_reduce(s.integers, v, Minimum());
  const int most = block_reduce(s.integers, v, Maximum());
  const float sum_of_floats = block_reduce(s.floats, static_cast<float>(v), Sum());
  const unsigned long long best =
      block_reduce(s.packed, pack_argmax(static_cast<float>(v), threadIdx.x), Maximum());
  int repeated = 0;
  for (unsigned turn = 0; turn < 5; ++turn)
    repeated += block_reduce(s.turns, turn, v * static_cast<int>(turn), Maximum());
  // Every thread has every result.
  int* mine = out + 7 * threadIdx.x;
  mine[0] = sum, mine[1] = least, mine[2] = most, mine[3] = static_cast<int>(sum_of_floats);
  mine[4] = static_cast<int>(argmax_index(best)), mine[5] = static_cast<int>(argmax_value(best)),
  mine[6] = repeated;
}

std::string block_reduce_case() {
  for (unsigned threads : {32u, 64u, 96u, 256u, 1024u}) {
    const std::vector<int> in = numbers(threads, threads);
    std::vector<int> out(7 * threads), want;
    const auto most = std::max_element(in.begin(), in.end());  // the first of equal ones
    const int row[7] = {std::accumulate(in.begin(), in.end(), 0),
                        *std::min_element(in.begin(), in.end()),
                        *most,
                        std::accumulate(in.begin(), in.end(), 0),
                        static_cast<int>(most - in.begin()),
                        *most,
                        10 * *most};
    for (unsigned i = 0; i < threads; ++i) want.insert(want.end(), row, row + 7);
    launch("block_reduce", reduce_block, 1, threads, sizeof(ReduceShared), kStream, in.data(),
           out.data());
    const std::string wrong = compare("result", out, want);
    if (!wrong.empty()) return wrong;
  }
  return "";
}

__global__ void scan_block(const int* in, int* out, int* totals) {
  auto& storage = shared_memory<BlockReduceStorage<int>>();
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  int total = 0, again = 0;
  out[i] = block_exclusive_scan(storage, in[i], total);
  out[i] += block_exclusive_scan(storage, 1, again);
  if (threadIdx.x == blockDim.x - 1) totals[blockIdx.x] = total + again;
}

std::string block_scan() {
  const unsigned threads = 224, blocks = 7;
  const std::vector<int> in = numbers(threads * blocks);
  std::vector<int> out(in.size()), totals(blocks), want(in.size()), want_totals(blocks);
  for (unsigned b = 0; b < blocks; ++b) {
    int sum = 0;
    for (unsigned t = 0; t < threads; ++t) {
      want[b * threads + t] = sum + static_cast<int>(t);
      sum += in[b * threads + t];
    }
    want_totals[b] = sum + static_cast<int>(threads);
  }
  launch("block_scan", scan_block, blocks, threads, sizeof(BlockReduceStorage<int>), kStream,
         in.data(), out.data(), totals.data());
  return compare("sum", out, want) + compare("total", totals, want_totals);
}

__global__ void vote_block(const int* in, int* out) {
  const int v = in[threadIdx.x];
  if (threadIdx.x >= 90) return;  // threads that are gone no longer count
  const int any = __syncthreads_or(v > 2000), all = __syncthreads_and(v > -3000),
            count = __syncthreads_count(v > 0);
  out[threadIdx.x] = 10000 * any + 1000 * all + count;
}

std::string block_votes() {
  const std::vector<int> in = numbers(100);
  std::vector<int> out(90);
  int any = 0, count = 0;
  for (int i = 0; i < 90; ++i) any |= in[i] > 2000, count += in[i] > 0;
  launch("block_votes", vote_block, 1, 100, 0, kStream, in.data(), out.data());
  return compare("vote", out, std::vector<int>(90, 10000 * any + 1000 + count));
}

struct TailShared {
  int head[3];
};

__global__ void use_tail(const int* in, int* out, int n) {
  TailShared& s = shared_memory<TailShared>();
  int* tail = shared_tail<int>(sizeof(TailShared));
  if (threadIdx.x < 3) s.head[threadIdx.x] = in[threadIdx.x];
  for (int i = threadIdx.x; i < n; i += blockDim.x) tail[i] = in[n - 1 - i];
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = tail[i] + s.head[i % 3];
}

std::string shared_array() {
  const int n = 50000;  // 200 kB: more than a kernel gets without asking
  const std::vector<int> in = numbers(n);
  std::vector<int> out(n), want(n);
  for (int i = 0; i < n; ++i) want[i] = in[n - 1 - i] + in[i % 3];
  launch("shared_array", use_tail, 1, 128, sizeof(TailShared) + n * sizeof(int), kStream, in.data(),
         out.data(), n);
  return compare("value", out, want);
}

// ---- Warps -------------------------------------------------------------------------------------

template <class T>
__global__ void shuffle_all(T* out, int amount, int width) {
  const T v = static_cast<T>(threadIdx.x) * 3 + 1;
  T* mine = out + 4 * threadIdx.x;
  mine[0] = __shfl_sync(kAllLanes, v, static_cast<int>(threadIdx.x) + amount, width);
  mine[1] = __shfl_up_sync(kAllLanes, v, static_cast<unsigned>(amount), width);
  mine[2] = __shfl_down_sync(kAllLanes, v, static_cast<unsigned>(amount), width);
  mine[3] = __shfl_xor_sync(kAllLanes, v, amount, width);
}

template <class T>
std::string shuffles_of() {
  for (int width : {1, 8, 32}) {
    for (int amount : {0, 1, 5, 16, 31}) {
      std::vector<T> out(4 * 64), want(out.size());
      for (int i = 0; i < 64; ++i) {
        const int begin = i / width * width, end = begin + width;
        const int up = i - amount < begin ? i : i - amount,
                  down = i + amount >= end ? i : i + amount;
        // xor may read from an earlier segment, not from a later one
        const int lane = i % 32, partner = lane ^ amount;
        const int other = partner >= lane / width * width + width ? i : i - lane + partner;
        const int sources[4] = {begin + (lane + amount) % width, up, down, other};
        for (int k = 0; k < 4; ++k) want[4 * i + k] = static_cast<T>(sources[k]) * 3 + 1;
      }
      launch("shuffles", shuffle_all<T>, 1, 64, 0, kStream, out.data(), amount, width);
      const std::string wrong = compare("lane", out, want);
      if (!wrong.empty())
        return wrong + ", width " + std::to_string(width) + ", amount " + std::to_string(amount);
    }
  }
  return "";
}

std::string shuffles() {
  return shuffles_of<int>() + shuffles_of<unsigned>() + shuffles_of<float>() +
         shuffles_of<double>() + shuffles_of<unsigned long long>();
}

__global__ void vote_warp(const int* in, int* out) {
  const int v = in[threadIdx.x];
  int* mine = out + 10 * threadIdx.x;
  mine[0] = static_cast<int>(__ballot_sync(kAllLanes, v > 0));
  mine[1] = __any_sync(kAllLanes, v > 2000);
  mine[2] = __all_sync(kAllLanes, v > -2000);
  mine[3] = __reduce_add_sync(kAllLanes, v);
  mine[4] = __reduce_min_sync(kAllLanes, v);
  mine[5] = __reduce_max_sync(kAllLanes, v);
  mine[6] = static_cast<int>(__reduce_min_sync(kAllLanes, static_cast<unsigned>(v)));
  mine[7] = static_cast<int>(__reduce_max_sync(kAllLanes, static_cast<unsigned>(v)));
  mine[8] = static_cast<int>(__match_any_sync(kAllLanes, v % 4));
  mine[9] = static_cast<int>(__reduce_or_sync(kAllLanes, static_cast<unsigned>(v)) ^
                             __reduce_and_sync(kAllLanes, static_cast<unsigned>(v)));
}

std::string warp_votes() {
  const std::vector<int> in = numbers(128);
  std::vector<int> out(10 * in.size()), want(out.size());
  for (int i = 0; i < 128; ++i) {
    const int* first = in.data() + i / 32 * 32;
    unsigned ballot = 0, match = 0, low = ~0u, high = 0, all_or = 0, all_and = ~0u;
    int any = 0, all = 1, sum = 0, least = first[0], most = first[0];
    for (int j = 0; j < 32; ++j) {
      const int v = first[j];
      const unsigned u = static_cast<unsigned>(v);
      ballot |= static_cast<unsigned>(v > 0) << j,
          match |= static_cast<unsigned>(v % 4 == in[i] % 4) << j;
      any |= v > 2000, all &= v > -2000, sum += v, least = std::min(least, v),
                                                   most = std::max(most, v);
      low = std::min(low, u), high = std::max(high, u), all_or |= u, all_and &= u;
    }
    const int row[10] = {static_cast<int>(ballot),
                         any,
                         all,
                         sum,
                         least,
                         most,
                         static_cast<int>(low),
                         static_cast<int>(high),
                         static_cast<int>(match),
                         static_cast<int>(all_or ^ all_and)};
    std::copy(row, row + 10, want.begin() + 10 * i);
  }
  launch("warp_votes", vote_warp, 1, 128, 0, kStream, in.data(), out.data());
  return compare("vote", out, want);
}

struct PartsShared {
  int values[64];
};

// The two halves of each warp go different ways, with masks of their own, and meet again.
__global__ void split_warp(int* out) {
  PartsShared& s = shared_memory<PartsShared>();
  int v = static_cast<int>(threadIdx.x);
  if (lane_id() < 16) {
    for (int i = 0; i < 3; ++i) v += __shfl_xor_sync(0x0000ffffu, v, 1 << i);
  } else {
    for (int i = 0; i < 4; ++i) v = max(v, __shfl_xor_sync(0xffff0000u, v, 1 << i));
  }
  s.values[threadIdx.x] = v;
  __syncwarp();
  out[threadIdx.x] = s.values[threadIdx.x ^ 31] + __shfl_sync(kAllLanes, v, 20);
}

std::string warp_parts() {
  std::vector<int> out(64), value(64), want(64);
  for (int i = 0; i < 64; ++i) {
    const int eighth = i / 8 * 8;
    value[i] = i % 32 < 16 ? 8 * eighth + 28 : i / 32 * 32 + 31;
  }
  for (int i = 0; i < 64; ++i) want[i] = value[i ^ 31] + value[i / 32 * 32 + 20];
  launch("warp_parts", split_warp, 1, 64, sizeof(PartsShared), kStream, out.data());
  return compare("value", out, want);
}

// ---- Clusters ----------------------------------------------------------------------------------

struct RingShared {
  int value;
  int inbox[32];
};

// Each block writes into the next one's memory and reads from all.
__global__ void ring(int* out) {
  RingShared& s = shared_memory<RingShared>();
  const unsigned rank = cluster_rank(), size = cluster_size();
  if (threadIdx.x == 0) s.value = static_cast<int>(100 * blockIdx.x);
  cluster_sync();
  cluster_map(s.inbox, (rank + 1) % size)[threadIdx.x] =
      static_cast<int>(rank * 1000 + threadIdx.x);
  int sum = 0;
  for (unsigned i = 0; i < size; ++i) sum += *cluster_map(&s.value, i);
  cluster_arrive();
  sum += 1;  // work of its own between the two halves of the barrier
  cluster_wait();
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum + s.inbox[threadIdx.x];
}

std::string cluster() {
  for (unsigned size : {1u, 2u, 4u, 8u, 16u}) {
    std::vector<int> out(32 * 32), want(out.size());
    for (unsigned i = 0; i < want.size(); ++i) {
      const unsigned block = i / 32, first = block / size * size,
                     before = (block - first + size - 1) % size;
      want[i] = 1 + static_cast<int>(before * 1000 + i % 32);
      for (unsigned j = 0; j < size; ++j) want[i] += static_cast<int>(100 * (first + j));
    }
    launch_cluster("cluster", ring, size, 32, 32, sizeof(RingShared), kStream, out.data());
    const std::string wrong = compare("value", out, want);
    if (!wrong.empty()) return wrong + " in clusters of " + std::to_string(size);
  }
  return "";
}

// ---- Grids -------------------------------------------------------------------------------------

// Prefix doubling through global memory: every round reads what all blocks wrote in the round
// before.
__global__ void grid_scan(GridBarrier* barrier, int* even, int* odd, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  for (int step = 1; step < n; step *= 2) {
    grid_sync(barrier);
    odd[i] = even[i] + (i >= step ? even[i - step] : 0);
    grid_sync(barrier);
    even[i] = odd[i];
  }
}

std::string grid_barrier() {
  const dim3 block(96);
  const int blocks = std::min(7, max_cooperative_blocks(grid_scan, block, 0)), n = 96 * blocks;
  std::vector<int> values = numbers(n), odd(n), want(n);
  std::partial_sum(values.begin(), values.end(), want.begin());
  GridBarrier barrier = {0, 0};
  launch_cooperative("grid_barrier", grid_scan, blocks, block, 0, kStream, &barrier, values.data(),
                     odd.data(), n);
  return compare("sum", values, want);
}

// ---- Atomics and messages ----------------------------------------------------------------------

struct Totals {
  int sum, least, most, exchanged, bits_and, bits_or, bits_xor, swaps;
  unsigned count, down;
  unsigned long long wide, wide_most;
  float real;
  double precise;
};

__global__ void count_all(const int* in, Totals* t) {
  const int v = in[blockIdx.x * blockDim.x + threadIdx.x];
  atomicAdd(&t->sum, v);
  atomicMin(&t->least, v);
  atomicMax(&t->most, v);
  atomicExch(&t->exchanged, 7);
  atomicAnd(&t->bits_and, v | 0x70000);
  atomicOr(&t->bits_or, v & 0xff);
  atomicXor(&t->bits_xor, v);
  atomicAdd(&t->count, 1u);
  atomicSub(&t->down, 1u);
  atomicAdd(&t->wide, 1ull << 33);
  atomicMax(&t->wide_most, static_cast<unsigned long long>(v + 4096) << 20);
  atomicAdd(&t->real, static_cast<float>(v));
  atomicAdd(&t->precise, static_cast<double>(v));
  int old = load_relaxed(&t->swaps);
  for (int seen = old; (seen = atomicCAS(&t->swaps, old, old + 2)) != old; old = seen) {
  }
}

std::string atomics() {
  const std::vector<int> in = numbers(4 * 96);
  Totals t = {}, w = {};
  t.bits_and = w.bits_and = -1;
  t.down = w.down = 1000;
  for (int v : in) {
    w.sum += v, w.least = std::min(w.least, v), w.most = std::max(w.most, v), w.exchanged = 7;
    w.bits_and &= v | 0x70000, w.bits_or |= v & 0xff, w.bits_xor ^= v, ++w.count, --w.down,
        w.wide += 1ull << 33;
    w.wide_most = std::max(w.wide_most, static_cast<unsigned long long>(v + 4096) << 20);
    w.real += static_cast<float>(v), w.precise += v, w.swaps += 2;
  }
  launch("atomics", count_all, 4, 96, 0, kStream, in.data(), &t);
  const auto list = [](const Totals& x) {
    return std::vector<double>{double(x.sum),       double(x.least),    double(x.most),
                               double(x.exchanged), double(x.bits_and), double(x.bits_or),
                               double(x.bits_xor),  double(x.swaps),    double(x.count),
                               double(x.down),      double(x.wide),     double(x.wide_most),
                               double(x.real),      x.precise};
  };
  return compare("total", list(t), list(w));
}

// A lock around plain memory: fences and atomics order it.
__global__ void locked(int* lock, int* value) {
  for (int i = 0; i < 3; ++i) {
    while (atomicCAS(lock, 0, 1) != 0) spin_wait();
    __threadfence();
    *value += 1;
    __threadfence();
    atomicExch(lock, 0);
  }
}

std::string spin_lock() {
  int lock = 0, value = 0;
  launch("spin_lock", locked, 4, 40, 0, kStream, &lock, &value);
  return compare("value", std::vector<int>{value}, std::vector<int>{4 * 40 * 3});
}

struct PipeShared {
  int data[2][32];
  unsigned filled, emptied;
};

// Warp 0 hands buffers to warp 1 through flags alone.
__global__ void pipe(int* out, int rounds) {
  PipeShared& s = shared_memory<PipeShared>();
  if (threadIdx.x == 0) s.filled = s.emptied = 0;
  __syncthreads();
  const unsigned lane = lane_id();
  int sum = 0;
  for (unsigned round = 0; round < static_cast<unsigned>(rounds); ++round) {
    if (warp_id() == 0) {
      while (round >= load_acquire(&s.emptied) + 2) spin_wait();
      s.data[round & 1][lane] = static_cast<int>(round * lane);
      __syncwarp();
      if (lane == 0) store_release(&s.filled, round + 1);
    } else {
      while (load_acquire(&s.filled) <= round) spin_wait();
      sum += s.data[round & 1][31 - lane];
      __syncwarp();
      if (lane == 0) store_release(&s.emptied, round + 1);
    }
  }
  if (warp_id() == 1) out[lane] = sum;
}

std::string messages() {
  std::vector<int> out(32), want(32);
  for (int i = 0; i < 32; ++i) want[i] = 45 * (31 - i);
  launch("messages", pipe, 1, 64, sizeof(PipeShared), kStream, out.data(), 10);
  return compare("sum", out, want);
}

// Blocks take tickets and each waits for the one before: legal in any order, since a ticket's
// holder runs.
__global__ void chain(unsigned* ticket, unsigned* sums) {
  auto& mine = shared_memory<unsigned>();
  if (threadIdx.x == 0) mine = atomicAdd(ticket, 1u);
  __syncthreads();
  if (threadIdx.x != 0) return;
  const unsigned number = mine;
  unsigned before = 0;
  if (number > 0) {
    while ((before = load_acquire(sums + number - 1)) == 0) spin_wait();
  }
  store_release(sums + number, before + number + 1);
}

std::string ticket_chain() {
  std::vector<unsigned> sums(50), want(50);
  for (unsigned i = 0; i < 50; ++i) want[i] = (i + 1) * (i + 2) / 2;
  unsigned ticket = 0;
  launch("ticket_chain", chain, 50, 33, sizeof(unsigned), kStream, &ticket, sums.data());
  return compare("sum", sums, want);
}

// ---- Whole arrays ------------------------------------------------------------------------------

template <class Key>
std::string sort_with(int begin_bit, int end_bit) {
  const size_t n = 1000;
  const std::vector<int> in = numbers(n);
  std::vector<Key> keys(n), keys_out(n), want_keys(n);
  std::vector<uint32_t> values(n), values_out(n), want(n);
  for (size_t i = 0; i < n; ++i)
    keys[i] = static_cast<Key>(static_cast<uint64_t>(in[i]) * 0x100000001ull);
  std::iota(values.begin(), values.end(), 0u);
  const size_t bytes = device_sort_pairs_workspace_bytes<Key>("sort", n, begin_bit, end_bit);
  std::vector<char> workspace(bytes);
  device_sort_pairs("sort", workspace.data(), bytes, keys.data(), keys_out.data(), values.data(),
                    values_out.data(), n, kStream, begin_bit, end_bit);
  want = values;
  const Key mask = (Key{2} << (end_bit - 1 - begin_bit)) - 1;
  std::stable_sort(want.begin(), want.end(), [&](uint32_t a, uint32_t b) {
    return (keys[a] >> begin_bit & mask) < (keys[b] >> begin_bit & mask);
  });
  for (size_t i = 0; i < n; ++i) want_keys[i] = keys[want[i]];
  return compare("value", values_out, want) + compare("key", keys_out, want_keys);
}

std::string sort_and_scan() {
  const std::string wrong =
      sort_with<uint32_t>(0, 32) + sort_with<uint64_t>(0, 64) + sort_with<uint64_t>(4, 37);
  if (!wrong.empty()) return wrong;
  const std::vector<int> in = numbers(777);
  std::vector<int64_t> values(in.begin(), in.end()), want(in.size());
  for (size_t i = 1; i < in.size(); ++i) want[i] = want[i - 1] + in[i - 1];
  const size_t bytes = device_exclusive_scan_workspace_bytes<int64_t>("scan", 777);
  std::vector<char> workspace(bytes);
  device_exclusive_scan("scan", workspace.data(), bytes, values.data(), values.data(), 777,
                        kStream);
  return compare("sum", values, want);
}

// ---- Bits --------------------------------------------------------------------------------------

__global__ void bits(long long* out) {
  int i = 0;
  out[i++] = __popc(0xf0f0u), out[i++] = __popcll(0xf0f0f0f0f0ull);
  out[i++] = __clz(1), out[i++] = __clz(0), out[i++] = __clzll(1), out[i++] = __clzll(0),
  out[i++] = __clz(-1);
  out[i++] = __ffs(0), out[i++] = __ffs(8), out[i++] = __ffsll(1ll << 40);
  out[i++] = __brev(1u), out[i++] = static_cast<long long>(__brevll(2ull) >> 1);
  out[i++] = __float_as_int(1.0f), out[i++] = __float_as_uint(-0.0f),
  out[i++] = __double_as_longlong(1.0);
  out[i++] = static_cast<long long>(__int_as_float(0x40000000)),
  out[i++] = static_cast<long long>(min(3.0f, __uint_as_float(0x7fc00000u)));
  out[i++] = max(-1, 2), out[i++] = min(7u, 9u), out[i++] = max(-1ll, -5ll),
  out[i++] = __umulhi(1u << 31, 6u);
  out[i++] = static_cast<long long>(__umul64hi(1ull << 63, 6ull));
}

std::string bit_builtins() {
  std::vector<long long> out(22);
  const std::vector<long long> want = {8,
                                       20,
                                       31,
                                       32,
                                       63,
                                       64,
                                       0,
                                       0,
                                       4,
                                       41,
                                       0x80000000ll,
                                       0x2000000000000000ll,
                                       0x3f800000,
                                       0x80000000ll,
                                       0x3ff0000000000000ll,
                                       2,
                                       3,
                                       2,
                                       7,
                                       -1,
                                       3,
                                       3};
  launch("bit_builtins", bits, 1, 1, 0, kStream, out.data());
  return compare("result", out, want);
}

// ---- Tensor cores
// --------------------------------------------------------------------------------

constexpr int kStride = 24;  // elements from row to row of a tile

template <class T>
struct MmaShared {
  __align__(16) T a[16 * kStride], b[16 * kStride];
};

// D = A B, where each of them may lie transposed.
template <class T>
__global__ void multiply(const T* a, const T* b, float* out, int transposed_a, int transposed_b) {
  auto& s = shared_memory<MmaShared<T>>();
  for (unsigned i = threadIdx.x; i < 2 * 16 * kStride / 8; i += 32) {
    const unsigned half = 16 * kStride / 8, at = 8 * (i % half);
    const bool there = at % kStride < 16;
    if (i < half)
      async_copy16(s.a + at, a + (there ? at / kStride * 16 + at % kStride : 0), there);
    else
      async_copy16(s.b + at, b + (there ? at / kStride * 16 + at % kStride : 0), there);
  }
  async_commit();
  async_wait<0>();
  __syncthreads();
  for (int right = 0; right < 2; ++right) {
    float d[4] = {1, 2, 3, 4};
    uint32_t x[4], y[2];
    if (transposed_a)
      load_a_transposed(x, s.a, kStride);
    else
      load_a(x, s.a, kStride);
    if (transposed_b)
      load_b_transposed(y, s.b + 8 * right * kStride, kStride);
    else
      load_b(y, s.b + 8 * right, kStride);
    mma_m16n8k16<T>(d, x, y);
    const unsigned row = threadIdx.x / 4, column = threadIdx.x % 4 * 2 + 8 * right;
    for (unsigned i = 0; i < 4; ++i)
      out[(row + 8 * (i / 2)) * 16 + column + i % 2] = d[i] - static_cast<float>(i + 1);
  }
}

template <class T>
std::string tensor_cores_of() {
  const std::vector<int> in = numbers(512);
  std::vector<float> a(256), b(256), want(256), out(256);
  for (size_t i = 0; i < 256; ++i) {
    a[i] = static_cast<float>(in[i] % 8);
    b[i] = static_cast<float>(in[256 + i] % 8);
  }
  for (size_t i = 0; i < 256; ++i)
    for (size_t k = 0; k < 16; ++k) want[i] += a[i / 16 * 16 + k] * b[16 * k + i % 16];
  std::string wrong;
  for (int kind = 0; kind < 4; ++kind) {
    std::vector<T> x(256), y(256);
    for (size_t i = 0; i < 256; ++i) {
      const size_t other = i % 16 * 16 + i / 16;
      narrow(a[kind & 1 ? other : i], &x[i]);
      narrow(b[kind & 2 ? other : i], &y[i]);
    }
    launch("tensor_cores", multiply<T>, 1, 32, sizeof(MmaShared<T>), kStream, x.data(), y.data(),
           out.data(), kind & 1, kind & 2);
    wrong += compare("product", out, want);
  }
  return wrong;
}

std::string tensor_cores() { return tensor_cores_of<Float16>() + tensor_cores_of<BFloat16>(); }

// ---- 16-bit floats
// -------------------------------------------------------------------------------

std::string half_floats() {
  // Every number of 16 bits comes back from float, and what lies between two goes to the nearer
  // one.
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float f = to_float(Float16{static_cast<uint16_t>(bits)});
    const float b = to_float(BFloat16{static_cast<uint16_t>(bits)});
    if (f == f && to_float16(f).bits != bits) return "float16 " + std::to_string(bits);
    if (b == b && to_bfloat16(b).bits != bits) return "bfloat16 " + std::to_string(bits);
    if (f != f && to_float(to_float16(f)) == to_float(to_float16(f))) return "NaN of float16";
    if (b != b && to_float(to_bfloat16(b)) == to_float(to_bfloat16(b))) return "NaN of bfloat16";
    if ((bits & 0x7fff) >= 0x7bff) continue;
    const float next = to_float(Float16{static_cast<uint16_t>(bits + 1)}), middle = (f + next) / 2;
    const uint32_t even = bits + (bits & 1);
    if (to_float16(middle).bits != even) return "the middle above " + std::to_string(bits);
    if (to_float16(middle + (f - next) / 8).bits != bits) return "below " + std::to_string(bits);
    if (to_float16(middle - (f - next) / 8).bits != bits + 1)
      return "above " + std::to_string(bits);
  }
  const std::vector<float> in = {65519.0f, 65520.0f, 1e30f, -1e30f, 1e-30f};
  const std::vector<uint32_t> want = {0x7bff, 0x7c00, 0x7c00, 0xfc00, 0};
  std::vector<uint32_t> out;
  for (float v : in) out.push_back(to_float16(v).bits);
  return compare("rounded", out, want);
}

}  // namespace

std::vector<Case> correct_cases() {
  return {{"indices", indices},
          {"block_reduce", block_reduce_case},
          {"block_scan", block_scan},
          {"block_votes", block_votes},
          {"shared_array", shared_array},
          {"shuffles", shuffles},
          {"warp_votes", warp_votes},
          {"warp_parts", warp_parts},
          {"cluster", cluster},
          {"grid_barrier", grid_barrier},
          {"atomics", atomics},
          {"spin_lock", spin_lock},
          {"messages", messages},
          {"ticket_chain", ticket_chain},
          {"sort_and_scan", sort_and_scan},
          {"bit_builtins", bit_builtins},
          {"tensor_cores", tensor_cores},
          {"half_floats", half_floats}};
}

}  // namespace fastshape::cuda::test
