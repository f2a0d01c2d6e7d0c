// What the CUDA kernels of farthest point sampling share: keys, boxes, the curve that points are
// sorted along.
#pragma once

#include "core/block.cuh"
#include "core/cuda_utils.cuh"
#include "sampling/farthest_point_sampling.h"

namespace fastshape::cuda::fps {

// ---- The three ways to sample, each started by its own file
// --------------------------------------------------------- (a) One block holds a cloud in its
// registers. Takes clouds of up to `longest` points, leaves the others alone.
constexpr int64_t kLongestInBlock = 8192;
void sample_in_blocks(const FarthestPointSampling& task, int64_t longest, cudaStream_t stream);

// How blocks share a cloud, see farthest_point_sampling_team.cuh. Offsets count from the beginning
// of the workspace.
struct TeamPlan {
  int32_t size;             // blocks in a team
  int32_t teams;            // at work side by side; team t takes clouds t, t + teams, ...
  int32_t max_published;    // candidates that a block may publish in a round
  int32_t resident_points;  // that fit into a block's shared memory; more are streamed from the
                            // workspace
  int32_t max_level;        // of the curve
  int64_t longer_than;      // clouds of up to so many points belong to (a)
  int64_t rows;             // of the columns
  int64_t rows_per_team;    // of the columns; 0: a cloud has the rows that it has in `points`
  size_t columns, cells, boxes, sums, records, flags;
};

size_t team_shared_bytes(int64_t resident_points);

// (b) A thread-block cluster is the team: blocks read each other's shared memory. sm_90 and later.
void sample_in_clusters(const FarthestPointSampling& task, const TeamPlan& plan,
                        cudaStream_t stream);

// (c) Blocks of a co-operative grid are the team: they meet in global memory.
void sample_in_grid(const FarthestPointSampling& task, const TeamPlan& plan, cudaStream_t stream);

#if defined(__CUDACC__) || defined(FASTSHAPE_EMULATION)

// ---- Keys --------------------------------------------------------------------------------------
// A candidate as one number whose maximum is the next pick: the running minimum (non-negative, so
// that its bits order like its value) above the complement of the index, so that ties go to the
// lowest index. 0 is no point.
using Key = unsigned long long;

__device__ __forceinline__ Key make_key(float nearest, unsigned index) {
  return static_cast<Key>(__float_as_uint(nearest)) << 32 | (~index);
}
__device__ __forceinline__ float key_nearest(Key key) {
  return __uint_as_float(static_cast<unsigned>(key >> 32));
}
__device__ __forceinline__ unsigned key_index(Key key) { return ~static_cast<unsigned>(key); }

// The lane with the largest key; the lowest lane where nobody has one. Equal distances are rare:
// one reduction is the fast way.
__device__ __forceinline__ int warp_winner(Key key) {
  const unsigned mine = static_cast<unsigned>(key >> 32);
  const unsigned high = __reduce_max_sync(kAllLanes, mine);
  unsigned lanes = __ballot_sync(kAllLanes, mine == high);
  if ((lanes & (lanes - 1)) != 0) {
    const unsigned rest = mine == high ? static_cast<unsigned>(key) : 0u;
    const unsigned low = __reduce_max_sync(kAllLanes, rest);
    lanes = __ballot_sync(kAllLanes, mine == high && rest == low);
  }
  return __ffs(static_cast<int>(lanes)) - 1;
}

// ---- Boxes -------------------------------------------------------------------------------------
// Integers that order like the floats; its own inverse. The hardware reduces integers only.
__device__ __forceinline__ int ordered_bits(int bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }
__device__ __forceinline__ float warp_min(float v) {
  return __int_as_float(
      ordered_bits(__reduce_min_sync(kAllLanes, ordered_bits(__float_as_int(v)))));
}
__device__ __forceinline__ float warp_max(float v) {
  return __int_as_float(
      ordered_bits(__reduce_max_sync(kAllLanes, ordered_bits(__float_as_int(v)))));
}

constexpr float kLargestFloat = 3.402823466e+38f;

struct Box {
  float low[3], high[3];
};

__device__ __forceinline__ Box empty_box() {
  return {{kLargestFloat, kLargestFloat, kLargestFloat},
          {-kLargestFloat, -kLargestFloat, -kLargestFloat}};
}
__device__ __forceinline__ void extend(Box& box, float x, float y, float z) {
  box.low[0] = fminf(box.low[0], x);
  box.low[1] = fminf(box.low[1], y);
  box.low[2] = fminf(box.low[2], z);
  box.high[0] = fmaxf(box.high[0], x);
  box.high[1] = fmaxf(box.high[1], y);
  box.high[2] = fmaxf(box.high[2], z);
}
__device__ __forceinline__ void extend(Box& box, const Box& other) {
  for (int axis = 0; axis < 3; ++axis) {
    box.low[axis] = fminf(box.low[axis], other.low[axis]);
    box.high[axis] = fmaxf(box.high[axis], other.high[axis]);
  }
}
__device__ __forceinline__ Box warp_box(Box box) {
  for (int axis = 0; axis < 3; ++axis) {
    box.low[axis] = warp_min(box.low[axis]);
    box.high[axis] = warp_max(box.high[axis]);
  }
  return box;
}

// The box of the whole block, in every thread. `boxes`: one for each warp, free to be overwritten.
template <int kWarps>
__device__ __forceinline__ Box block_box(const Box& mine, Box* boxes) {
  const Box of_warp = warp_box(mine);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) boxes[warp] = of_warp;
  __syncthreads();
  return warp_box(lane < kWarps ? boxes[lane] : empty_box());
}

// ---- The curve ---------------------------------------------------------------------------------
// Cubical cells, 2^level along the cloud's longest side, numbered in Z-order: consecutive points
// make small boxes. The order inside a cell is left to chance. It decides which boxes can be
// skipped, never what is picked.
struct Curve {
  float low[3];
  float scale;
  float last;  // cell of an axis
};

__device__ __forceinline__ Curve make_curve(const Box& box, int level) {
  Curve curve;
  float side = 0.0f;
  for (int axis = 0; axis < 3; ++axis) {
    curve.low[axis] = box.low[axis];
    side = fmaxf(side, box.high[axis] - box.low[axis]);
  }
  const float scale = static_cast<float>(1 << level) / side;
  // A cloud of one place, or too wide for a float: a single cell, or whatever comes; no NaN, see
  // below.
  curve.scale = scale < kLargestFloat ? scale : 0.0f;
  curve.last = static_cast<float>((1 << level) - 1);
  return curve;
}
__device__ __forceinline__ unsigned curve_cell(float v, float low, float scale, float last) {
  const float cell = (v - low) * scale;  // NaN where inf * 0: the comparison sends it to cell 0
  return cell > 0.0f ? static_cast<unsigned>(fminf(cell, last)) : 0u;
}
__device__ __forceinline__ unsigned spread_bits(
    unsigned v) {  // bit i goes to bit 3 i, for the low 8 bits
  v = (v | v << 8) & 0x0000F00Fu;
  v = (v | v << 4) & 0x000C30C3u;
  return (v | v << 2) & 0x00249249u;
}
__device__ __forceinline__ unsigned curve_code(const Curve& curve, float x, float y, float z) {
  return spread_bits(curve_cell(x, curve.low[0], curve.scale, curve.last)) << 2 |
         spread_bits(curve_cell(y, curve.low[1], curve.scale, curve.last)) << 1 |
         spread_bits(curve_cell(z, curve.low[2], curve.scale, curve.last));
}

// ---- A cloud and its results -------------------------------------------------------------------
struct Cloud {
  const float* points;
  int64_t begin;
  unsigned length;
  int64_t num;
  int64_t start;
  int64_t offset;  // of the indices
  int64_t* indices;
  float* distances;  // may be null
};

__device__ __forceinline__ Cloud read_cloud(const FarthestPointSampling& task, int64_t cloud) {
  const int64_t begin = task.begin[cloud], out = task.out_begin[cloud];
  const int64_t length = task.length[cloud];
  Cloud c;
  c.points = task.points + 3 * begin;
  c.begin = begin;
  c.length = static_cast<unsigned>(length < 0 ? 0 : min(length, task.max_length));
  c.num = task.num[cloud];
  c.start = task.start[cloud];
  c.offset = task.global_indices ? begin : 0;
  c.indices = task.indices + out;
  c.distances = task.distances == nullptr ? nullptr : task.distances + out;
  return c;
}

struct Point {
  float x, y, z;
};
__device__ __forceinline__ Point read_point(const float* points, int64_t i) {
  return {points[3 * i], points[3 * i + 1], points[3 * i + 2]};
}

// Whether the cloud's `start` may start; if so, it is the first pick.
__device__ __forceinline__ bool starts_there(const Cloud& cloud, Point* start) {
  if (cloud.start < 0 || cloud.start >= static_cast<int64_t>(cloud.length)) return false;
  *start = read_point(cloud.points, cloud.start);
  return is_finite_point(start->x, start->y, start->z);
}

__device__ __forceinline__ void write_pick(const Cloud& cloud, int64_t k, unsigned index,
                                           float nearest) {
  cloud.indices[k] = cloud.offset + index;
  if (cloud.distances != nullptr) cloud.distances[k] = sqrtf(nearest);
}

// Picks [from, to) of the cloud, all alike: -1, or the point that everything coincides with.
// `thread` of `threads`.
__device__ __forceinline__ void fill_picks(const Cloud& cloud, int64_t from, int64_t to,
                                           int64_t index, int thread, int threads) {
  for (int64_t k = from + thread; k < to; k += threads) {
    cloud.indices[k] = index;
    if (cloud.distances != nullptr) cloud.distances[k] = 0.0f;
  }
}

#endif

}  // namespace fastshape::cuda::fps
