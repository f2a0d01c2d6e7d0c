// Farthest point sampling by thread-block clusters: the hardware's barrier, and distributed shared
// memory instead of global memory between the blocks. Up to 8 blocks, so for clouds whose points
// fit into 8 shared memories; a batch has one cluster for each cloud at work. Why and how:
// farthest_point_sampling_team.cuh.
#include "sampling/farthest_point_sampling_team.cuh"

namespace fastshape::cuda::fps {
namespace {

class ClusterTeam {
 public:
  __device__ explicit ClusterTeam(TeamShared& shared)
      : shared_(shared),
        rank_(static_cast<int>(cluster_rank())),
        size_(static_cast<int>(cluster_size())) {}
  __device__ int rank() const { return rank_; }
  __device__ int size() const { return size_; }
  __device__ void meet() {
    __threadfence();  // the workspace passes between blocks too
    cluster_sync();
  }
  __device__ Record* own_record(int set) { return &shared_.record[set]; }
  __device__ const Record* record(int member, int set) {
    return cluster_map(&shared_.record[set], static_cast<unsigned>(member));
  }

 private:
  TeamShared& shared_;
  int rank_, size_;
};

__global__ void __launch_bounds__(kTeamThreads, 1)
    farthest_point_sampling_cluster_kernel(FarthestPointSampling task, TeamPlan plan) {
  TeamShared& shared = shared_memory<TeamShared>();
  ClusterTeam team(shared);
  sample_clouds(team, shared, task, plan, blockIdx.x / plan.size);
  cluster_sync();  // no block leaves while another may read its record
}

}  // namespace

void sample_in_clusters(const FarthestPointSampling& task, const TeamPlan& plan,
                        cudaStream_t stream) {
  launch_cluster("farthest_point_sampling", farthest_point_sampling_cluster_kernel,
                 static_cast<unsigned>(plan.size),
                 dim3(static_cast<unsigned>(plan.size * plan.teams)), dim3(kTeamThreads),
                 team_shared_bytes(plan.resident_points), stream, task, plan);
}

}  // namespace fastshape::cuda::fps
