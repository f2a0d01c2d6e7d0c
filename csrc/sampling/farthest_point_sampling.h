// Farthest point sampling: pick, again and again, the point farthest from everything picked so far.
//
// The rule, which every backend, instruction set and thread count follows to the bit:
//  - squared distances in float32, d = (dx*dx + dy*dy) + dz*dz, each operation rounded on its own;
//  - the running minimum of every point begins at +inf; the next pick has the largest running
//    minimum, ties go to the lowest index. Picked points stay candidates with 0, so a cloud whose
//    distinct points are used up yields its lowest finite index from then on;
//  - a point with a non-finite coordinate is never picked and changes nothing. Where `start` is
//    one, or lies outside the cloud, the lowest finite index starts;
//  - picks beyond the number of finite points are -1, with distance 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"

namespace fastshape {

// All pointers lie on the device that runs the operation. Cloud b is rows begin[b] .. begin[b] +
// length[b] of `points`; it gives num[b] picks, written from indices[out_begin[b]] on.
struct FarthestPointSampling {
  const float* points;  // (total, 3)
  const int64_t* begin;
  const int64_t* length;
  const int64_t* num;
  const int64_t* start;  // local to the cloud
  const int64_t* out_begin;
  int64_t batch;
  int64_t total;       // rows of `points`; clouds do not overlap
  int64_t max_length;  // upper bounds that the host knows, for choosing the algorithm
  int64_t max_num;
  bool global_indices;  // rows of `points`, or local to the cloud
  int64_t* indices;
  float* distances;  // null: not wanted. Euclidean, from each pick to the nearest earlier one; +inf
                     // for the first
  void* workspace;
  size_t workspace_bytes;
};

FASTSHAPE_HOST_DEVICE float squared_distance(float ax, float ay, float az, float bx, float by,
                                             float bz) {
  const float dx = ax - bx, dy = ay - by, dz = az - bz;
  return (dx * dx + dy * dy) + dz * dz;
}

// Distance from `v` to the interval [low, high] along one axis, rounded.
FASTSHAPE_HOST_DEVICE float interval_distance(float v, float low, float high) {
  const float below = low - v, above = v - high;
  const float outside = below > above ? below : above;
  return outside > 0.0f ? outside : 0.0f;
}

// A lower bound of the *rounded* squared_distance from (x, y, z) to every point of the box.
// Rounding to nearest is monotone and symmetric in the sign. For low <= p <= high and v < low, p -
// v >= low - v >= 0 holds exactly, hence after rounding; likewise above. So each |rounded
// difference| is at least the rounded clamp difference, and the squares and sums, rounded in the
// same order as in squared_distance, keep the order. A box may be skipped when this bound is at
// least the largest running minimum inside it: min() would change none of them.
FASTSHAPE_HOST_DEVICE float box_distance_bound(float x, float y, float z, const float low[3],
                                               const float high[3]) {
  const float ex = interval_distance(x, low[0], high[0]);
  const float ey = interval_distance(y, low[1], high[1]);
  const float ez = interval_distance(z, low[2], high[2]);
  return (ex * ex + ey * ey) + ez * ez;
}

FASTSHAPE_HOST_DEVICE bool is_finite_point(float x, float y, float z) {
  // v - v is 0 for a finite v and NaN otherwise.
  return (x - x) == 0.0f && (y - y) == 0.0f && (z - z) == 0.0f;
}

namespace cpu {
// Needs no workspace. Clouds of up to 2^31 - 1 points.
void farthest_point_sampling(const FarthestPointSampling& task);
}  // namespace cpu

namespace cuda {
size_t farthest_point_sampling_workspace_bytes(int64_t batch, int64_t total, int64_t max_length,
                                               int64_t max_num);
void farthest_point_sampling(const FarthestPointSampling& task, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
