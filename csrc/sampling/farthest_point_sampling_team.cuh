// Farthest point sampling of clouds too large for one block: a team of blocks shares a cloud.
//
// A pick depends on the one before, so a team that finds one pick at a time pays one meeting of all
// its blocks for each of them: about a microsecond, whatever the cloud's size. Three ideas make
// that rare, and the rest cheap:
//
//  - Many exact picks per meeting. In a round, each block publishes its best candidates: all its
//  points at or above a
//    threshold, and a bound that none of its other points passes. After the meeting every block
//    goes on alone, and all of them do the same: the best candidate is the next pick; it lowers the
//    others' minima; the best of them is the pick after that, as long as its key is above the
//    largest bound. For keys only fall: a point that was not published cannot have risen above the
//    bound, so the best candidate above it is the best of the whole cloud, ties included (keys are
//    unique). When the candidates run out, the next round begins. The threshold follows the number
//    of candidates it gave; it decides how many picks a round finds, never which.
//  - Tiles. The cloud is sorted along a curve (by the team, on the way in) and cut into tiles of
//  consecutive points;
//    tile t belongs to block t % team, so that every block gets a fair sample of the cloud. A
//    round's picks are tested against a tile's box, 32 at a time, and only those nearer than the
//    tile's farthest point touch its points.
//  - Points live in shared memory where they fit, and are streamed from the workspace otherwise.
//  The code is the same,
//    the pointers differ.
//
// What a team is, how it meets and where it publishes is the template parameter: the cluster and
// the co-operative kernel are the two.
#pragma once

#include "sampling/farthest_point_sampling_cuda.cuh"

namespace fastshape::cuda::fps {

constexpr int kTeamThreads = 512;
constexpr int kTeamWarps = kTeamThreads / 32;
constexpr int kTileRows = 4;
constexpr int kTileStep = kTileRows * 32;  // a tile is a multiple of so many points
constexpr int kMaxTiles = kTeamThreads;    // of a block
constexpr int kMaxAccepted = 256;          // picks of a round
constexpr int kMaxTeam = 256;              // blocks
constexpr int kMaxRecord = 256;            // candidates of a block
constexpr int kMaxSlots = 2048;            // blocks x candidates of a block
constexpr int kMaxCandidates = 1024;       // of the team
constexpr int kBytesPerPoint = 5 * sizeof(float);

// What a block tells the others in a round.
struct alignas(16) Record {
  Key bound;                 // no point of the block outside `point` has a larger key
  int count;                 // candidates; the first has the block's largest key
  int wanted;                // points at or above the threshold
  float4 point[kMaxRecord];  // w: the running minimum
  unsigned index[kMaxRecord];
};

struct TeamShared {
  Record record[2];  // for teams that publish in shared memory
  float4 candidate[kMaxCandidates];
  float4 accepted[kMaxAccepted];
  float4 slot_point[2][kTeamWarps];
  Key accepted_key[kMaxAccepted];
  Key slot_key[2][kTeamWarps];
  Key tile_key[kMaxTiles];
  Key unpublished, dropped;
  unsigned candidate_index[kMaxCandidates];
  float tile_low[3][kMaxTiles], tile_high[3][kMaxTiles];
  Box boxes[kTeamWarps];
  BlockReduceStorage<int> sums;
  int wanted[kTeamWarps];
  int member_count[kMaxTeam], member_offset[kMaxTeam];
  int published;
};

constexpr size_t kResidentOffset = (sizeof(TeamShared) + 15) / 16 * 16;

#if defined(__CUDACC__) || defined(FASTSHAPE_EMULATION)

// The points of the team's cloud, in curve order: columns of the workspace or of shared memory.
struct Columns {
  float *x, *y, *z, *nearest;
  unsigned* index;
};

__device__ __forceinline__ Columns make_columns(float* p, int64_t rows, int64_t first) {
  p += first;
  return {p, p + rows, p + 2 * rows, p + 3 * rows, reinterpret_cast<unsigned*>(p + 4 * rows)};
}

// What a team has in the workspace while it is at one cloud.
struct TeamWorkspace {
  Columns columns;
  int* cells;
  Box* boxes;
  int* sums;
};

__device__ __forceinline__ TeamWorkspace make_workspace(char* memory, const TeamPlan& plan,
                                                        int team, const Cloud& cloud) {
  TeamWorkspace w;
  w.columns = make_columns(reinterpret_cast<float*>(memory + plan.columns), plan.rows,
                           plan.rows_per_team > 0 ? team * plan.rows_per_team : cloud.begin);
  w.cells = reinterpret_cast<int*>(memory + plan.cells) +
            (static_cast<int64_t>(team) << (3 * plan.max_level));
  w.boxes = reinterpret_cast<Box*>(memory + plan.boxes) + team * plan.size;
  w.sums = reinterpret_cast<int*>(memory + plan.sums) + team * plan.size;
  return w;
}

// The part of a cloud that one block holds.
struct Share {
  Columns columns;
  int tiles;
  unsigned tile_points;  // of a full tile
  unsigned tile_stride;  // in the columns, from one tile of this block to the next
  unsigned first;        // of the block's first tile, in the columns
  unsigned cloud_first, cloud_stride, cloud_total;  // the same in the cloud's curve order
};
__device__ __forceinline__ unsigned tile_begin(const Share& share, int tile) {
  return share.first + tile * share.tile_stride;
}
__device__ __forceinline__ unsigned tile_count(const Share& share, int tile) {
  return min(share.tile_points,
             share.cloud_total - (share.cloud_first + tile * share.cloud_stride));
}

// Sorts the finite points of the cloud into the team's workspace; returns how many there are.
template <class Team>
__device__ unsigned sort_cloud(Team& team, TeamShared& shared, const TeamPlan& plan,
                               const Cloud& cloud, const TeamWorkspace& workspace) {
  const int thread = threadIdx.x;
  const unsigned team_thread = team.rank() * kTeamThreads + thread;
  const unsigned team_threads = team.size() * kTeamThreads;
  const Columns& columns = workspace.columns;
  int* cells = workspace.cells;

  // About as many occupied cells as there are groups of 16 points, where the points form a surface.
  const int log2 = 31 - __clz(static_cast<int>(cloud.length | 1));
  const int level = min(plan.max_level, max(3, (log2 - 6) / 2));
  const unsigned cell_count = 1u << (3 * level);

  for (unsigned c = team_thread; c < cell_count; c += team_threads) cells[c] = 0;
  Box box = empty_box();
  for (int64_t i = team_thread; i < cloud.length; i += team_threads) {
    const Point p = read_point(cloud.points, i);
    if (is_finite_point(p.x, p.y, p.z)) extend(box, p.x, p.y, p.z);
  }
  box = block_box<kTeamWarps>(box, shared.boxes);
  if (thread == 0) workspace.boxes[team.rank()] = box;
  team.meet();

  box = empty_box();
  for (int t = thread; t < team.size(); t += kTeamThreads) extend(box, workspace.boxes[t]);
  const Curve curve = make_curve(block_box<kTeamWarps>(box, shared.boxes), level);
  for (int64_t i = team_thread; i < cloud.length; i += team_threads) {
    const Point p = read_point(cloud.points, i);
    if (is_finite_point(p.x, p.y, p.z)) atomicAdd(&cells[curve_code(curve, p.x, p.y, p.z)], 1);
  }
  team.meet();

  // Scan the cells: each block a segment, each thread a run of it.
  const unsigned segment = (cell_count + team.size() - 1) / team.size();
  const unsigned segment_begin = min(cell_count, team.rank() * segment);
  const unsigned segment_end = min(cell_count, segment_begin + segment);
  const unsigned run = (segment + kTeamThreads - 1) / kTeamThreads;
  const unsigned run_begin = min(segment_end, segment_begin + thread * run);
  const unsigned run_end = min(segment_end, run_begin + run);
  int count = 0, total;
  for (unsigned c = run_begin; c < run_end; ++c) count += cells[c];
  int before = block_exclusive_scan(shared.sums, count, total);
  if (thread == 0) workspace.sums[team.rank()] = total;
  team.meet();
  const int of_block = thread < team.size() ? workspace.sums[thread] : 0;
  const int before_block = block_exclusive_scan(shared.sums, of_block, total);
  if (thread < team.size()) shared.member_offset[thread] = before_block;
  __syncthreads();
  before += shared.member_offset[team.rank()];
  for (unsigned c = run_begin; c < run_end; ++c) {
    const int in_cell = cells[c];
    cells[c] = before;
    before += in_cell;
  }
  team.meet();

  for (int64_t i = team_thread; i < cloud.length; i += team_threads) {
    const Point p = read_point(cloud.points, i);
    if (!is_finite_point(p.x, p.y, p.z)) continue;
    const int at = atomicAdd(&cells[curve_code(curve, p.x, p.y, p.z)], 1);
    columns.x[at] = p.x;
    columns.y[at] = p.y;
    columns.z[at] = p.z;
    columns.index[at] = static_cast<unsigned>(i);
  }
  team.meet();
  return static_cast<unsigned>(total);
}

// Cuts the sorted cloud into tiles, brings this block's into shared memory if they fit, and
// describes them.
template <class Team>
__device__ Share make_tiles(Team& team, TeamShared& shared, const TeamPlan& plan, unsigned total,
                            const Columns& sorted) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t most = static_cast<int64_t>(kMaxTiles) * team.size();  // tiles of a team
  Share share;
  share.tile_points =
      static_cast<unsigned>((total + most * kTileStep - 1) / (most * kTileStep)) * kTileStep;
  const unsigned tiles = (total + share.tile_points - 1) / share.tile_points;
  share.tiles = static_cast<int>((tiles + team.size() - 1 - team.rank()) / team.size());
  share.cloud_first = team.rank() * share.tile_points;
  share.cloud_stride = team.size() * share.tile_points;
  share.cloud_total = total;
  const bool resident =
      static_cast<int64_t>(share.tiles) * share.tile_points <= plan.resident_points;
  if (resident) {
    share.columns = make_columns(shared_tail<float>(kResidentOffset), plan.resident_points, 0);
    share.first = 0;
    share.tile_stride = share.tile_points;
  } else {
    share.columns = sorted;
    share.first = share.cloud_first;
    share.tile_stride = share.cloud_stride;
  }
  for (int tile = warp; tile < share.tiles; tile += kTeamWarps) {
    const unsigned from = share.cloud_first + tile * share.cloud_stride;
    const unsigned to = tile_begin(share, tile);
    const unsigned count = tile_count(share, tile);
    Box box = empty_box();
    unsigned lowest = 0xffffffffu;
    for (unsigned i = lane; i < count; i += 32) {
      const Point p{sorted.x[from + i], sorted.y[from + i], sorted.z[from + i]};
      const unsigned index = sorted.index[from + i];
      extend(box, p.x, p.y, p.z);
      lowest = min(lowest, index);
      share.columns.nearest[to + i] = __int_as_float(0x7f800000);
      if (resident) {
        share.columns.x[to + i] = p.x;
        share.columns.y[to + i] = p.y;
        share.columns.z[to + i] = p.z;
        share.columns.index[to + i] = index;
      }
    }
    box = warp_box(box);
    lowest = __reduce_min_sync(kAllLanes, lowest);
    if (lane == 0) {
      for (int axis = 0; axis < 3; ++axis) {
        shared.tile_low[axis][tile] = box.low[axis];
        shared.tile_high[axis][tile] = box.high[axis];
      }
      shared.tile_key[tile] = make_key(__int_as_float(0x7f800000), lowest);
    }
  }
  __syncthreads();
  return share;
}

// Lowers the running minima of one tile. Lane g of `touching` holds the mask of the picks 32 g ..
// 32 g + 31 that may change something.
__device__ __forceinline__ Key update_tile(TeamShared& shared, const Share& share, int tile,
                                           unsigned touching) {
  const int lane = threadIdx.x % 32;
  const Columns& c = share.columns;
  const unsigned begin = tile_begin(share, tile), end = begin + tile_count(share, tile);
  const unsigned groups = __ballot_sync(kAllLanes, touching != 0);
  float best = -1.0f;
  unsigned best_at = begin;
  for (unsigned at = begin + lane; at - lane < end; at += kTileStep) {
    float x[kTileRows], y[kTileRows], z[kTileRows], nearest[kTileRows];
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      const unsigned i = at + r * 32;
      const bool taken = i < end;
      x[r] = taken ? c.x[i] : 0.0f;
      y[r] = taken ? c.y[i] : 0.0f;
      z[r] = taken ? c.z[i] : 0.0f;
      nearest[r] = taken ? c.nearest[i] : -1.0f;
    }
    for (unsigned rest = groups; rest != 0; rest &= rest - 1) {
      const int group = __ffs(static_cast<int>(rest)) - 1;
      for (unsigned picks = __shfl_sync(kAllLanes, touching, group); picks != 0;
           picks &= picks - 1) {
        const float4 p = shared.accepted[group * 32 + __ffs(static_cast<int>(picks)) - 1];
#pragma unroll
        for (int r = 0; r < kTileRows; ++r)
          nearest[r] = fminf(nearest[r], squared_distance(x[r], y[r], z[r], p.x, p.y, p.z));
      }
    }
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      const unsigned i = at + r * 32;
      if (i < end) c.nearest[i] = nearest[r];
      if (nearest[r] > best || (nearest[r] == best && i < end && c.index[i] < c.index[best_at])) {
        best = nearest[r];
        best_at = i;
      }
    }
  }
  return warp_reduce(best < 0.0f ? 0 : make_key(best, c.index[best_at]), Maximum());
}

// Applies `accepted` picks to the block's tiles; returns the block's largest key.
__device__ __forceinline__ Key update_tiles(TeamShared& shared, const Share& share, int accepted) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Key top = 0;
  for (int tile = warp; tile < share.tiles; tile += kTeamWarps) {
    Key key = shared.tile_key[tile];
    float low[3], high[3];
    for (int axis = 0; axis < 3; ++axis) {
      low[axis] = shared.tile_low[axis][tile];
      high[axis] = shared.tile_high[axis][tile];
    }
    unsigned touching = 0;
    for (int group = 0; group * 32 < accepted; ++group) {
      bool touches = false;
      if (group * 32 + lane < accepted) {
        const float4 p = shared.accepted[group * 32 + lane];
        touches = box_distance_bound(p.x, p.y, p.z, low, high) < key_nearest(key);
      }
      const unsigned mask = __ballot_sync(kAllLanes, touches);
      if (lane == group) touching = mask;
    }
    if (__any_sync(kAllLanes, touching != 0)) {
      key = update_tile(shared, share, tile, touching);
      __syncwarp();  // votes and reductions order no memory: everybody has read the old key
      if (lane == 0) shared.tile_key[tile] = key;
    }
    top = max(top, key);
  }
  if (lane == 0) shared.slot_key[0][warp] = top;
  if (threadIdx.x == 0) {
    shared.published = 0;
    shared.unpublished = 0;
    shared.dropped = 0;
  }
  __syncthreads();
  return warp_reduce(lane < kTeamWarps ? shared.slot_key[0][lane] : 0, Maximum());
}

// Fills `record` with the block's points at or above the threshold, its best point in any case.
__device__ __forceinline__ void publish(TeamShared& shared, const TeamPlan& plan,
                                        const Share& share, Key top, float threshold,
                                        Record* record) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Columns& c = share.columns;
  threshold = fminf(threshold, key_nearest(top));
  for (int tile = warp; tile < share.tiles; tile += kTeamWarps) {
    if (key_nearest(shared.tile_key[tile]) < threshold) continue;
    const unsigned begin = tile_begin(share, tile), end = begin + tile_count(share, tile);
    for (unsigned i = begin + lane; i < end; i += 32) {
      const float nearest = c.nearest[i];
      if (nearest < threshold) continue;
      const unsigned index = c.index[i];
      const Key key = make_key(nearest, index);
      const int slot = key == top ? 0 : 1 + atomicAdd(&shared.published, 1);
      if (slot < plan.max_published) {
        record->point[slot] = make_float4(c.x[i], c.y[i], c.z[i], nearest);
        record->index[slot] = index;
      } else {
        atomicMax(&shared.unpublished, key);
      }
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    // Below the threshold: one less than its bits, with any index.
    const Key limit = static_cast<Key>(__float_as_uint(threshold)) << 32;
    const int wanted = top == 0 ? 0 : 1 + shared.published;
    record->bound = top == 0 ? 0 : max(shared.unpublished, limit == 0 ? 0 : limit - 1);
    record->count = min(wanted, plan.max_published);
    record->wanted = wanted;
  }
}

struct Gathered {
  Key bound;
  int candidates;
  int wanted;
};

// Collects what all blocks published, in the same places in every block.
template <class Team>
__device__ Gathered gather(Team& team, TeamShared& shared, const TeamPlan& plan, int set) {
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  int count = 0, wanted = 0;
  Key bound = 0;
  if (thread < team.size()) {
    const Record* record = team.record(thread, set);
    count = record->count;
    wanted = record->wanted;
    bound = record->bound;
    shared.member_count[thread] = count;
    // The blocks' best candidates come first, so that they are never dropped.
    if (count == 0) shared.candidate[thread].w = -1.0f;
  }
  const Key warp_bound = warp_reduce(bound, Maximum());
  const int warp_wanted = __reduce_add_sync(kAllLanes, wanted);
  if (lane == 0) {
    shared.slot_key[1][warp] = warp_bound;
    shared.wanted[warp] = warp_wanted;
  }
  int total;
  const int before = block_exclusive_scan(shared.sums, max(count - 1, 0), total);
  if (thread < team.size()) shared.member_offset[thread] = team.size() + before;
  __syncthreads();

  constexpr int kRounds = kMaxSlots / kTeamThreads;
  float4 point[kRounds];
  unsigned index[kRounds];
  int place[kRounds];
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {  // all loads first: one latency
    const int slot = thread + r * kTeamThreads;
    const int member = slot / plan.max_published, j = slot - member * plan.max_published;
    place[r] = -1;
    if (member < team.size() && j < shared.member_count[member]) {
      const Record* record = team.record(member, set);
      point[r] = record->point[j];
      index[r] = record->index[j];
      place[r] = j == 0 ? member : shared.member_offset[member] + j - 1;
    }
  }
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    if (place[r] < 0) continue;
    if (place[r] < kMaxCandidates) {
      shared.candidate[place[r]] = point[r];
      shared.candidate_index[place[r]] = index[r];
    } else {
      atomicMax(&shared.dropped, make_key(point[r].w, index[r]));
    }
  }
  __syncthreads();
  Gathered gathered;
  gathered.bound =
      max(shared.dropped, warp_reduce(lane < kTeamWarps ? shared.slot_key[1][lane] : 0, Maximum()));
  gathered.wanted = __reduce_add_sync(kAllLanes, lane < kTeamWarps ? shared.wanted[lane] : 0);
  gathered.candidates = min(kMaxCandidates, team.size() + total);
  return gathered;
}

// Picks among the candidates while no other point of the cloud can come first. Returns the number
// of picks;
// `*largest` is at least the next pick's running minimum.
__device__ __forceinline__ int accept(TeamShared& shared, const Gathered& gathered, int limit,
                                      float* largest) {
  constexpr int kEach = kMaxCandidates / kTeamThreads;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  float4 point[kEach];
  unsigned index[kEach];
#pragma unroll
  for (int c = 0; c < kEach; ++c) {
    const int i = thread + c * kTeamThreads;
    point[c] = make_float4(0.0f, 0.0f, 0.0f, -1.0f);
    index[c] = 0;
    if (i < gathered.candidates) {
      point[c] = shared.candidate[i];
      if (point[c].w >= 0.0f) index[c] = shared.candidate_index[i];
    }
  }
  int accepted = 0;
  Key best;
  for (;;) {
    Key mine = 0;
    float4 at = point[0];
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
      const Key key = point[c].w < 0.0f ? 0 : make_key(point[c].w, index[c]);
      if (key > mine) {
        mine = key;
        at = point[c];
      }
    }
    const int set = accepted & 1;
    if (lane == warp_winner(mine)) {
      shared.slot_key[set][warp] = mine;
      shared.slot_point[set][warp] = at;
    }
    __syncthreads();
    const int winner = warp_winner(lane < kTeamWarps ? shared.slot_key[set][lane] : 0);
    best = shared.slot_key[set][winner];
    if (best == 0 || accepted == limit || (accepted > 0 && best <= gathered.bound)) break;
    const float4 p = shared.slot_point[set][winner];
    if (thread == 0) {
      shared.accepted[accepted] = p;
      shared.accepted_key[accepted] = best;
    }
#pragma unroll
    for (int c = 0; c < kEach; ++c)
      point[c].w =
          fminf(point[c].w, squared_distance(point[c].x, point[c].y, point[c].z, p.x, p.y, p.z));
    ++accepted;
  }
  *largest = fmaxf(key_nearest(best), key_nearest(gathered.bound));
  __syncthreads();  // thread 0 has written the last pick, everybody has read the last slots
  return accepted;
}

template <class Team>
__device__ void sample_cloud(Team& team, TeamShared& shared, const TeamPlan& plan,
                             const Cloud& cloud, const TeamWorkspace& workspace) {
  const int thread = threadIdx.x;
  const unsigned team_thread = team.rank() * kTeamThreads + thread;
  const unsigned team_threads = team.size() * kTeamThreads;
  const unsigned total = sort_cloud(team, shared, plan, cloud, workspace);
  const int64_t target = min(cloud.num, static_cast<int64_t>(total));
  fill_picks(cloud, target, cloud.num, -1, team_thread, team_threads);
  if (target == 0) return;
  const Share share = make_tiles(team, shared, plan, total, workspace.columns);

  int64_t k = 0;
  int accepted = 0;
  Point start;
  if (starts_there(cloud, &start)) {
    if (thread == 0) shared.accepted[0] = make_float4(start.x, start.y, start.z, 0.0f);
    if (team_thread == 0)
      write_pick(cloud, 0, static_cast<unsigned>(cloud.start), __int_as_float(0x7f800000));
    accepted = 1;
    k = 1;
    __syncthreads();
  }

  // Candidates to ask for: enough that a round finds many picks, few enough that one pick among
  // them stays cheap.
  const float goal = static_cast<float>(min(384, team.size() * plan.max_published / 3));
  float gap = 0.02f;
  float threshold = __int_as_float(0x7f800000);
  int set = 0;
  while (k < target) {
    const Key top = update_tiles(shared, share, accepted);
    publish(shared, plan, share, top, threshold, team.own_record(set));
    team.meet();
    const Gathered gathered = gather(team, shared, plan, set);
    const int limit = static_cast<int>(min(target - k, static_cast<int64_t>(kMaxAccepted)));
    float largest;
    accepted = accept(shared, gathered, limit, &largest);
    if (accepted == 0) break;  // cannot be: some block has a point, and the first pick is free
    if (team.rank() == 0)
      for (int a = thread; a < accepted; a += kTeamThreads)
        write_pick(cloud, k + a, key_index(shared.accepted_key[a]),
                   key_nearest(shared.accepted_key[a]));
    k += accepted;
    const Key last = shared.accepted_key[accepted - 1];
    if (key_nearest(last) == 0.0f) {  // every distinct point is taken: nothing can change any more
      fill_picks(cloud, k, target, cloud.offset + key_index(last), team_thread, team_threads);
      break;
    }
    const float ratio = goal / static_cast<float>(max(gathered.wanted, 1));
    gap = fminf(fmaxf(gap * fminf(fmaxf(sqrtf(ratio), 0.5f), 2.0f), 1e-6f), 0.75f);
    threshold = largest * (1.0f - gap);
    set ^= 1;
  }
}

template <class Team>
__device__ __forceinline__ void sample_clouds(Team& team, TeamShared& shared,
                                              const FarthestPointSampling& task,
                                              const TeamPlan& plan, int number) {
  for (int64_t b = number; b < task.batch; b += plan.teams) {
    const Cloud cloud = read_cloud(task, b);
    if (cloud.length <= plan.longer_than || cloud.num <= 0) continue;
    sample_cloud(team, shared, plan, cloud,
                 make_workspace(static_cast<char*>(task.workspace), plan, number, cloud));
  }
}

#endif

}  // namespace fastshape::cuda::fps
