// Kernels with one planted fault each, to prove that it is caught: test_emulation.py says by whom.
#include <cstdint>
#include <vector>

#include "cases.h"
#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"

namespace fastshape::cuda::test {
namespace {

constexpr cudaStream_t kStream = nullptr;
constexpr int kThreads = 64;

struct Tile {
  int values[kThreads];
};

// ---- Barriers that are not there ---------------------------------------------------------------

// `ahead`: whether the neighbour that is read comes before or after in the ascending order.
__global__ void neighbour(int* out, int ahead) {
  Tile& s = shared_memory<Tile>();
  const int n = kThreads, i = threadIdx.x;
  s.values[i] = i;
  // __syncthreads() is missing
  out[i] = s.values[(i + ahead + n) % n];
}

std::string neighbour_case(int ahead) {
  std::vector<int> out(kThreads), want(kThreads);
  for (int i = 0; i < kThreads; ++i) want[i] = (i + ahead + kThreads) % kThreads;
  launch("missing_barrier", neighbour, 1, kThreads, sizeof(Tile), kStream, out.data(), ahead);
  return compare("value", out, want);
}
std::string missing_barrier() { return neighbour_case(-1); }
std::string missing_barrier_ahead() { return neighbour_case(1); }

// The barrier is there, but the next round's write does not wait for the last round's reads.
__global__ void second_barrier(int* out) {
  Tile& s = shared_memory<Tile>();
  const int i = threadIdx.x;
  int sum = 0;
  for (int round = 0; round < 2; ++round) {
    s.values[i] = 100 * round + i;
    __syncthreads();
    sum += s.values[(i + 32) % kThreads];
  }
  out[i] = sum;
}

std::string missing_second_barrier() {
  std::vector<int> out(kThreads), want(kThreads);
  for (int i = 0; i < kThreads; ++i) want[i] = 100 + 2 * ((i + 32) % kThreads);
  launch("missing_second_barrier", second_barrier, 1, kThreads, sizeof(Tile), kStream, out.data());
  return compare("value", out, want);
}

__global__ void warp_exchange(int* out) {
  Tile& s = shared_memory<Tile>();
  const int i = threadIdx.x;
  s.values[i] = i;
  __shfl_sync(0xffffffffu, i, 0);  // orders nothing; __syncwarp() is missing
  out[i] = s.values[i ^ 1];
}

std::string missing_syncwarp() {
  std::vector<int> out(kThreads), want(kThreads);
  for (int i = 0; i < kThreads; ++i) want[i] = i ^ 1;
  launch("missing_syncwarp", warp_exchange, 1, kThreads, sizeof(Tile), kStream, out.data());
  return compare("value", out, want);
}

// Two blocks, one counter, no atomics.
__global__ void count_blocks(int* counter) {
  if (threadIdx.x == 0) *counter += 1;
}

std::string race_between_blocks() {
  int counter = 0;
  launch("race_between_blocks", count_blocks, 64, 32, 0, kStream, &counter);
  return "";  // right or wrong by luck
}

// A flag without a fence: nothing says that the data is there before the flag.
__global__ void flag(int* data, unsigned* ready, int* out) {
  if (threadIdx.x == 0) {
    *data = 5;
    store_relaxed(ready, 1u);  // store_release is right
  } else if (threadIdx.x == 32) {
    while (load_relaxed(ready) == 0) spin_wait();
    *out = *data;
  }
}

std::string missing_fence() {
  int data = 0, out = 0;
  unsigned ready = 0;
  launch("missing_fence", flag, 1, kThreads, 0, kStream, &data, &ready, &out);
  return compare("value", std::vector<int>{out}, std::vector<int>{5});
}

// The first blocks of the cluster to finish take their memory with them.
__global__ void leave_early(int* out) {
  Tile& s = shared_memory<Tile>();
  s.values[threadIdx.x] = static_cast<int>(cluster_rank());
  cluster_sync();
  out[blockIdx.x * blockDim.x + threadIdx.x] =
      *cluster_map(&s.values[threadIdx.x], cluster_size() - 1 - cluster_rank());
  // cluster_sync() is missing
}

std::string missing_cluster_sync() {
  std::vector<int> out(4 * kThreads), want(out.size());
  for (int i = 0; i < 4 * kThreads; ++i) want[i] = 3 - i / kThreads;
  launch_cluster("missing_cluster_sync", leave_early, 4, 4, kThreads, sizeof(Tile), kStream,
                 out.data());
  return compare("value", out, want);
}

// ---- Memory ------------------------------------------------------------------------------------

__global__ void write_shared(int index) {
  int* values = shared_memory<Tile>().values;
  if (threadIdx.x == 0) values[index] = 1;
}

std::string shared_overflow() {
  launch("shared_overflow", write_shared, 1, kThreads, sizeof(Tile), kStream, kThreads);
  return "";
}
std::string shared_underflow() {
  launch("shared_underflow", write_shared, 1, kThreads, sizeof(Tile), kStream, -1);
  return "";
}

struct TwoArrays {
  int first[8];
  int second[8];
};

__global__ void write_member(int* out, int index) {
  TwoArrays& s = shared_memory<TwoArrays>();
  if (threadIdx.x == 0) {
    s.first[index] = 1;
    *out = s.first[index];
  }
}

std::string member_overflow() {
  int out = 0;
  launch("member_overflow", write_member, 1, kThreads, sizeof(TwoArrays), kStream, &out, 8);
  return "";
}

__global__ void write_global(int* out, int n) { out[n - 32 + static_cast<int>(threadIdx.x)] = 1; }

std::string global_overflow() {
  std::vector<int> out(100);
  launch("global_overflow", write_global, 1, 33, 0, kStream, out.data(), 100);
  return "";
}

__global__ void load_vector(const float* in, float* out) {
  *out = reinterpret_cast<const float4*>(in + threadIdx.x)->x;
}

std::string misaligned() {
  std::vector<float> in(100, 1.0f);
  float out = 0;
  launch("misaligned", load_vector, 1, 2, 0, kStream, in.data(), &out);
  return "";
}

struct Maxima {
  float best[kThreads];
};

// Thread 5 forgets its part.
__global__ void read_unwritten(float* out) {
  Maxima& s = shared_memory<Maxima>();
  if (threadIdx.x != 5) s.best[threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x != 0) return;
  float sum = 0;
  for (float v : s.best) sum += v;
  *out = sum;
}

std::string uninitialized() {
  float out = 0;
  launch("uninitialized", read_unwritten, 1, kThreads, sizeof(Maxima), kStream, &out);
  return compare("sum", std::vector<float>{out},
                 std::vector<float>{63.0f});  // 63 is what zeroed memory would give
}

// ---- Collectives -------------------------------------------------------------------------------

__global__ void shuffle_in_branch(int* out) {
  const int i = threadIdx.x;
  int v = i;
  if (i % 32 < 16) {
    v = __shfl_sync(0xffffffffu, v, 0);
  } else {
    v = __shfl_sync(0xffffffffu, v, 1);
  }
  out[i] = v;
}
std::string divergent_shuffle() {
  std::vector<int> out(kThreads);
  launch("divergent_shuffle", shuffle_in_branch, 1, kThreads, 0, kStream, out.data());
  return "";
}

__global__ void shuffle_by_half(int* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
}
std::string shuffle_with_exited() {
  std::vector<int> out(kThreads);
  launch("shuffle_with_exited", shuffle_by_half, 1, kThreads, 0, kStream, out.data());
  return "";
}

__global__ void shuffle_from_outside(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1, 20);
}
std::string shuffle_outside_mask() {
  std::vector<int> out(kThreads);
  launch("shuffle_outside_mask", shuffle_from_outside, 1, kThreads, 0, kStream, out.data());
  return "";
}

__global__ void vote_without_self(int* out) { out[threadIdx.x] = __any_sync(0xffffu, 1); }
std::string caller_outside_mask() {
  std::vector<int> out(kThreads);
  launch("caller_outside_mask", vote_without_self, 1, kThreads, 0, kStream, out.data());
  return "";
}

__global__ void masks_disagree(int* out) {
  const unsigned mask = threadIdx.x < 16 ? 0xffffffffu : 0xffff8000u;
  out[threadIdx.x] = __shfl_xor_sync(mask, 1, 0);
}
std::string mismatched_masks() {
  std::vector<int> out(32);
  launch("mismatched_masks", masks_disagree, 1, 32, 0, kStream, out.data());
  return "";
}

__global__ void barriers_in_branches() {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
std::string divergent_barrier() {
  launch("divergent_barrier", barriers_in_branches, 1, kThreads, 0, kStream);
  return "";
}

// One half of the warp waits for the block, the other for the warp.
__global__ void wait_for_each_other(int* out) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
  }
}
std::string deadlock() {
  std::vector<int> out(32);
  launch("deadlock", wait_for_each_other, 3, 32, 0, kStream, out.data());
  return "";
}

__global__ void arrive_alone() {
  if (cluster_rank() == 0)
    cluster_sync();
  else
    __syncthreads();
  if (cluster_rank() != 0 && threadIdx.x == 0) {
    unsigned& never = shared_memory<unsigned>();
    store_relaxed(&never, 0u);
    while (load_relaxed(&never) == 0) spin_wait();
  }
}
std::string live_lock() {
  launch_cluster("live_lock", arrive_alone, 2, 2, 32, sizeof(unsigned), kStream);
  return "";
}

__global__ void wait_without_arrive() { cluster_wait(); }
std::string cluster_wait_alone() {
  launch_cluster("cluster_wait_alone", wait_without_arrive, 2, 2, 32, 0, kStream);
  return "";
}

__global__ void map_foreign(int* out) { *cluster_map(out, 1) = 1; }
std::string cluster_map_global() {
  int out = 0;
  launch_cluster("cluster_map_global", map_foreign, 2, 2, 32, sizeof(int), kStream, &out);
  return "";
}

__global__ void sync_grid(GridBarrier* barrier) { grid_sync(barrier); }
std::string grid_sync_without_cooperation() {
  GridBarrier barrier = {0, 0};
  launch("grid_sync_without_cooperation", sync_grid, 3, 32, 0, kStream, &barrier);
  return "";
}

// ---- Sizes -------------------------------------------------------------------------------------

__global__ void nothing() {}
__global__ void use_tile() { shared_memory<Tile>().values[threadIdx.x] = 1; }

std::string too_little_shared() {
  launch("too_little_shared", use_tile, 1, kThreads, sizeof(Tile) - 4, kStream);
  return "";
}
std::string too_much_shared() {
  launch("too_much_shared", nothing, 1, kThreads, 227 * 1024 + 1, kStream);
  return "";
}
std::string block_too_large() {
  launch("block_too_large", nothing, 1, 1025, 0, kStream);
  return "";
}
std::string empty_grid() {
  launch("empty_grid", nothing, 0, 32, 0, kStream);
  return "";
}
std::string cluster_does_not_divide() {
  launch_cluster("cluster_does_not_divide", nothing, 4, 6, 32, 0, kStream);
  return "";
}
std::string cooperative_too_large() {
  const int most = max_cooperative_blocks(nothing, 1024, 0);
  launch_cooperative("cooperative_too_large", nothing, most + 1, 1024, 0, kStream);
  return "";
}
std::string workspace_too_small() {
  std::vector<uint32_t> keys(8), values(8), keys_out(8), values_out(8);
  char workspace[1];
  device_sort_pairs("workspace_too_small", workspace, sizeof(workspace), keys.data(),
                    keys_out.data(), values.data(), values_out.data(), 8, kStream);
  return "";
}

}  // namespace

std::vector<Case> fault_cases() {
  return {{"missing_barrier", missing_barrier},
          {"missing_barrier_ahead", missing_barrier_ahead},
          {"missing_second_barrier", missing_second_barrier},
          {"missing_syncwarp", missing_syncwarp},
          {"race_between_blocks", race_between_blocks},
          {"missing_fence", missing_fence},
          {"missing_cluster_sync", missing_cluster_sync},
          {"shared_overflow", shared_overflow},
          {"shared_underflow", shared_underflow},
          {"member_overflow", member_overflow},
          {"global_overflow", global_overflow},
          {"misaligned", misaligned},
          {"uninitialized", uninitialized},
          {"divergent_shuffle", divergent_shuffle},
          {"shuffle_with_exited", shuffle_with_exited},
          {"shuffle_outside_mask", shuffle_outside_mask},
          {"caller_outside_mask", caller_outside_mask},
          {"mismatched_masks", mismatched_masks},
          {"divergent_barrier", divergent_barrier},
          {"deadlock", deadlock},
          {"live_lock", live_lock},
          {"cluster_wait_alone", cluster_wait_alone},
          {"cluster_map_global", cluster_map_global},
          {"grid_sync_without_cooperation", grid_sync_without_cooperation},
          {"too_little_shared", too_little_shared},
          {"too_much_shared", too_much_shared},
          {"block_too_large", block_too_large},
          {"empty_grid", empty_grid},
          {"cluster_does_not_divide", cluster_does_not_divide},
          {"cooperative_too_large", cooperative_too_large},
          {"workspace_too_small", workspace_too_small}};
}

}  // namespace fastshape::cuda::test
