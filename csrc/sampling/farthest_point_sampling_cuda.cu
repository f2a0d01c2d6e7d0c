// Farthest point sampling on CUDA: which kernel takes which cloud, and the workspace.
//
// The host knows upper bounds only; lengths are read on the device. So a launch covers the whole
// batch, and where clouds of both kinds may be in it, two launches do, each leaving the other's
// clouds alone.
//
//   (a) up to 8192 points     one block a cloud, in registers farthest_point_sampling_block.cu (b)
//   up to about 70000     a cluster of up to 8 blocks (sm_90) farthest_point_sampling_cluster.cu
//   (c) more, or before sm_90 teams of blocks of a co-operative grid
//   farthest_point_sampling_cooperative.cu
#include <algorithm>

#include "core/check.h"
#include "sampling/farthest_point_sampling_team.cuh"

namespace fastshape::cuda {
namespace fps {

size_t team_shared_bytes(int64_t resident_points) {
  return kResidentOffset + static_cast<size_t>(resident_points) * kBytesPerPoint;
}

}  // namespace fps

namespace {

using fps::TeamPlan;

enum class Way { block, cluster, cooperative };

constexpr int64_t kPointsPerBlock = 4096;  // of a team, if the device has blocks to spare
constexpr int kMaxCluster = 8;             // the largest that every sm_90 device can start

constexpr int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Plan {
  Way way;
  TeamPlan team;  // unless way is block
  size_t workspace_bytes;
};

// Adds `bytes` to the workspace; returns where they begin.
size_t reserve(size_t& end, size_t bytes) {
  const size_t begin = end;
  end = (begin + bytes + 255) / 256 * 256;
  return begin;
}

Plan make_plan(int64_t batch, int64_t total, int64_t max_length) {
  Plan plan{};
  if (batch == 0 || max_length <= fps::kLongestInBlock) {
    plan.way = Way::block;
    return plan;
  }
  const DeviceProperties device = device_properties();
  // How many points of a cloud a block can keep in shared memory.
  const int64_t room = (static_cast<int64_t>(device.shared_bytes_per_block) -
                        static_cast<int64_t>(fps::kResidentOffset)) /
                       fps::kBytesPerPoint / fps::kTileStep * fps::kTileStep;
  const int64_t processors = device.multiprocessors;
  TeamPlan& team = plan.team;

  int64_t size;
  if (device.compute_capability >= 90 && max_length <= kMaxCluster * room) {
    plan.way = Way::cluster;
    const int64_t spare =
        processors / (batch < processors ? batch : processors);  // blocks for each cloud
    size = 1;
    while (size < kMaxCluster && (size * room < max_length ||
                                  (2 * size <= spare && size * kPointsPerBlock / 2 < max_length)))
      size *= 2;
    team.teams = static_cast<int32_t>(std::max<int64_t>(1, std::min(batch, processors / size)));
  } else {
    plan.way = Way::cooperative;
    const int64_t blocks = std::min<int64_t>(processors, fps::kMaxTeam);
    size = std::max<int64_t>(
        1, std::min(blocks / std::min(batch, blocks), ceil_divide(max_length, kPointsPerBlock)));
    team.teams = static_cast<int32_t>(std::min(batch, processors / size));
  }
  team.size = static_cast<int32_t>(size);
  team.max_published =
      static_cast<int32_t>(std::min<int64_t>(fps::kMaxRecord, fps::kMaxSlots / size));
  // A block's share of the longest cloud, in whole tiles.
  const int64_t tile =
      ceil_divide(max_length, fps::kMaxTiles * size * fps::kTileStep) * fps::kTileStep;
  const int64_t share = ceil_divide(ceil_divide(max_length, tile), size) * tile;
  team.resident_points = static_cast<int32_t>(share <= room ? share : 0);
  team.longer_than = batch == 1 ? 0 : fps::kLongestInBlock;
  // Room for the longest cloud in each team; for packed clouds, whose longest the host does not
  // know, that may be far more than there are points.
  const int64_t longest = ceil_divide(max_length, 64) * 64;
  team.rows_per_team = longest * team.teams <= total + 64 * team.teams ? longest : 0;
  team.rows = team.rows_per_team > 0 ? longest * team.teams : ceil_divide(total, 64) * 64;
  team.max_level = 3;
  for (int64_t n = max_length >> 14; n > 0 && team.max_level < 7; n >>= 2) ++team.max_level;
  while (team.max_level > 3 && static_cast<int64_t>(team.teams) << (3 * team.max_level) > 2 * total)
    --team.max_level;

  const size_t blocks = static_cast<size_t>(team.teams) * size;
  size_t end = 0;
  team.columns = reserve(end, static_cast<size_t>(team.rows) * fps::kBytesPerPoint);
  team.cells = reserve(end, (sizeof(int32_t) * team.teams) << (3 * team.max_level));
  team.boxes = reserve(end, sizeof(fps::Box) * blocks);
  team.sums = reserve(end, sizeof(int32_t) * blocks);
  if (plan.way == Way::cooperative) {
    team.records = reserve(end, sizeof(fps::Record) * 2 * blocks);
    team.flags = reserve(end, sizeof(uint32_t) * blocks);
  }
  plan.workspace_bytes = end;
  return plan;
}

}  // namespace

size_t farthest_point_sampling_workspace_bytes(int64_t batch, int64_t total, int64_t max_length,
                                               int64_t /*max_num*/) {
  return make_plan(batch, total, max_length).workspace_bytes;
}

void farthest_point_sampling(const FarthestPointSampling& task, cudaStream_t stream) {
  FASTSHAPE_CHECK_VALUE(task.max_length <= INT32_MAX,
                        "farthest_point_sampling: a cloud may have up to ", INT32_MAX,
                        " points, got ", task.max_length);
  FASTSHAPE_CHECK_VALUE(task.batch <= INT32_MAX, "farthest_point_sampling: a batch may have up to ",
                        INT32_MAX, " clouds, got ", task.batch);
  if (task.batch == 0 || task.max_num == 0) return;
  const Plan plan = make_plan(task.batch, task.total, task.max_length);
  FASTSHAPE_CHECK_VALUE(task.workspace_bytes >= plan.workspace_bytes,
                        "farthest_point_sampling: the workspace has ", task.workspace_bytes,
                        " bytes, but needs ", plan.workspace_bytes);
  if (plan.way == Way::block) return fps::sample_in_blocks(task, task.max_length, stream);
  if (plan.team.longer_than > 0) fps::sample_in_blocks(task, plan.team.longer_than, stream);
  if (plan.way == Way::cluster)
    fps::sample_in_clusters(task, plan.team, stream);
  else
    fps::sample_in_grid(task, plan.team, stream);
}

}  // namespace fastshape::cuda
