// Farthest point sampling of small clouds: one block a cloud, everything in its registers.
//
// A cloud of 8192 points has 8192 x 9 operations a pick, under a microsecond for one
// multiprocessor, so what counts is the chain from one pick to the next. It is kept short in three
// ways:
//  - Points are sorted along a curve once (a counting sort in shared memory), so that each warp
//  owns a small box. A
//    warp whose box is farther from the pick than its own farthest point has nothing to do: soon
//    nearly all of them.
//  - Coordinates and running minima never leave the registers, and the winner's coordinates travel
//  with its key, so
//    that no pick waits for memory.
//  - One __syncthreads a pick: each warp writes its candidate into one of two sets of slots, and
//  after the barrier
//    every warp finds the winner for itself. Whoever is fast may write the other set, never the one
//    still being read.
#include "sampling/farthest_point_sampling_cuda.cuh"

namespace fastshape::cuda::fps {
namespace {

template <int kThreads, int kPoints>
struct BlockShared {
  static constexpr int kCapacity = kThreads * kPoints;
  static constexpr int kLevel = kCapacity <= 1024 ? 3 : 4;
  static constexpr int kCells = 1 << (3 * kLevel);

  float4 slot_point[2][kMaxWarps];
  Key slot_key[2][kMaxWarps];
  Box boxes[kMaxWarps];
  BlockReduceStorage<int> sums;
  union {  // in turn
    int cells[kCells];
    float coordinate[kCapacity];
  };
  unsigned index[kCapacity];
};

template <int kThreads, int kPoints>
__global__ void __launch_bounds__(kThreads, 1)
    farthest_point_sampling_block_kernel(FarthestPointSampling task, int64_t longest) {
  using Shared = BlockShared<kThreads, kPoints>;
  constexpr int kWarps = kThreads / 32;
  Shared& shared = shared_memory<Shared>();
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;

  const Cloud cloud = read_cloud(task, blockIdx.x);
  if (cloud.length > longest || cloud.num <= 0) return;  // the same for the whole block

  // Read; non-finite points are left out from here on.
  float x[kPoints], y[kPoints], z[kPoints];
  unsigned finite = 0;
  Box box = empty_box();
#pragma unroll
  for (int j = 0; j < kPoints; ++j) {
    const unsigned i = j * kThreads + thread;
    x[j] = y[j] = z[j] = 0.0f;
    if (i < cloud.length) {
      const Point p = read_point(cloud.points, i);
      if (is_finite_point(p.x, p.y, p.z)) {
        x[j] = p.x;
        y[j] = p.y;
        z[j] = p.z;
        finite |= 1u << j;
        extend(box, p.x, p.y, p.z);
      }
    }
  }

  // Sort along the curve: count, scan, place.
  for (int c = thread; c < Shared::kCells; c += kThreads) shared.cells[c] = 0;
  const Curve curve = make_curve(block_box<kWarps>(box, shared.boxes), Shared::kLevel);
  int place[kPoints];  // within its cell at first
#pragma unroll
  for (int j = 0; j < kPoints; ++j)
    place[j] =
        finite >> j & 1 ? atomicAdd(&shared.cells[curve_code(curve, x[j], y[j], z[j])], 1) : 0;
  __syncthreads();
  constexpr int kRun = Shared::kCells / kThreads;
  int count = 0, total;
  for (int c = 0; c < kRun; ++c) count += shared.cells[thread * kRun + c];
  int before = block_exclusive_scan(shared.sums, count, total);
  for (int c = 0; c < kRun; ++c) {
    const int in_cell = shared.cells[thread * kRun + c];
    shared.cells[thread * kRun + c] = before;
    before += in_cell;
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kPoints; ++j)
    if (finite >> j & 1) place[j] += shared.cells[curve_code(curve, x[j], y[j], z[j])];
  __syncthreads();

  // Each warp takes an equal share, `rows` x 32 consecutive points. Through shared memory, one
  // coordinate at a time.
  const int rows = (total + kThreads - 1) / kThreads;
  const int first = warp * rows * 32 + lane;
  const auto permute = [&](float (&v)[kPoints]) {
#pragma unroll
    for (int j = 0; j < kPoints; ++j)
      if (finite >> j & 1) shared.coordinate[place[j]] = v[j];
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kPoints; ++j) {
      const int at = first + j * 32;
      v[j] = j < rows && at < total ? shared.coordinate[at] : 0.0f;
    }
    __syncthreads();
  };
#pragma unroll
  for (int j = 0; j < kPoints; ++j)
    if (finite >> j & 1) shared.index[place[j]] = j * kThreads + thread;
  permute(x);
  permute(y);
  permute(z);

  float nearest[kPoints];  // -1: no point
  box = empty_box();
#pragma unroll
  for (int j = 0; j < kPoints; ++j) {
    const bool taken = j < rows && first + j * 32 < total;
    nearest[j] = taken ? __int_as_float(0x7f800000) : -1.0f;
    if (taken) extend(box, x[j], y[j], z[j]);
  }
  box = warp_box(box);

  const int target = static_cast<int>(min(cloud.num, static_cast<int64_t>(total)));
  fill_picks(cloud, target, cloud.num, -1, thread, kThreads);
  if (target == 0) return;

  Point pick{0.0f, 0.0f, 0.0f};
  int k = 0;
  if (starts_there(cloud, &pick)) {
    if (thread == 0)
      write_pick(cloud, 0, static_cast<unsigned>(cloud.start), __int_as_float(0x7f800000));
    k = 1;
  }

  // The warp's candidate; one lane owns it.
  float farthest = __int_as_float(0x7f800000);
  bool stale = true, owner = false;
  unsigned complement = 0;  // of the candidate's index
  Point candidate{0.0f, 0.0f, 0.0f};

  for (; k < target; ++k) {
    if (k > 0 && box_distance_bound(pick.x, pick.y, pick.z, box.low, box.high) < farthest) {
#pragma unroll
      for (int j = 0; j < kPoints; ++j)
        nearest[j] = fminf(nearest[j], squared_distance(x[j], y[j], z[j], pick.x, pick.y, pick.z));
      stale = true;
    }
    if (stale) {  // the same for the whole warp
      stale = false;
      float top = nearest[0];
#pragma unroll
      for (int j = 1; j < kPoints; ++j) top = fmaxf(top, nearest[j]);
      // As signed integers: -1 stays below every distance.
      const int bits = __reduce_max_sync(kAllLanes, __float_as_int(top));
      farthest = __int_as_float(bits);
      owner = bits < 0 ? lane == 0 : __float_as_int(top) == bits;
      if (owner && bits >= 0) {
        complement = 0;
#pragma unroll
        for (int j = 0; j < kPoints; ++j) {
          if (nearest[j] != farthest) continue;
          const unsigned other = ~shared.index[first + j * 32];
          if (other > complement) {
            complement = other;
            candidate = {x[j], y[j], z[j]};
          }
        }
      }
      const unsigned owners = __ballot_sync(kAllLanes, owner);
      if ((owners & (owners - 1)) != 0) {  // a tie
        const unsigned lowest = __reduce_max_sync(kAllLanes, owner ? complement : 0u);
        owner = owner && complement == lowest;
      }
    }
    const int set = k & 1;
    if (owner) {
      shared.slot_key[set][warp] = farthest < 0.0f ? 0 : make_key(farthest, ~complement);
      shared.slot_point[set][warp] = make_float4(candidate.x, candidate.y, candidate.z, 0.0f);
    }
    __syncthreads();
    const Key slot = lane < kWarps ? shared.slot_key[set][lane] : 0;
    const int winner = warp_winner(slot);
    const Key best = shared.slot_key[set][winner];
    const float4 p = shared.slot_point[set][winner];
    pick = {p.x, p.y, p.z};
    if (thread == 0) write_pick(cloud, k, key_index(best), key_nearest(best));
    if (key_nearest(best) == 0.0f) {  // every distinct point is taken: nothing can change any more
      fill_picks(cloud, k + 1, target, cloud.offset + key_index(best), thread, kThreads);
      return;
    }
  }
}

template <int kThreads, int kPoints>
void launch_block(const FarthestPointSampling& task, int64_t longest, cudaStream_t stream) {
  launch("farthest_point_sampling", farthest_point_sampling_block_kernel<kThreads, kPoints>,
         dim3(static_cast<unsigned>(task.batch)), dim3(kThreads),
         sizeof(BlockShared<kThreads, kPoints>), stream, task, longest);
}

}  // namespace

void sample_in_blocks(const FarthestPointSampling& task, int64_t longest, cudaStream_t stream) {
  if (longest <= 512) return launch_block<128, 4>(task, longest, stream);
  if (longest <= 1024) return launch_block<256, 4>(task, longest, stream);
  if (longest <= 2048) return launch_block<512, 4>(task, longest, stream);
  if (longest <= 4096) return launch_block<1024, 4>(task, longest, stream);
  return launch_block<1024, 8>(task, longest, stream);
}

}  // namespace fastshape::cuda::fps
