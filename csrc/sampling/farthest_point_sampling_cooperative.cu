// Farthest point sampling by teams of a co-operative grid: as many blocks as the device holds,
// meeting in global memory. For one huge cloud the whole device is one team; for a batch it is cut
// into teams that work on their own. Why and how: farthest_point_sampling_team.cuh.
//
// The barrier has a flag for each block and no atomics. A block that arrives writes the number of
// the meeting into its own flag; everybody waits until all flags have got there, one thread for
// each flag. So a meeting takes one write and one read that sees it, while blocks that count in one
// place queue up for it, and wait for a second write after that.
#include "sampling/farthest_point_sampling_team.cuh"

namespace fastshape::cuda::fps {
namespace {

class GridTeam {
 public:
  __device__ GridTeam(const TeamPlan& plan, char* workspace, int number, int rank)
      : flags_(reinterpret_cast<unsigned*>(workspace + plan.flags) + number * plan.size),
        records_(reinterpret_cast<Record*>(workspace + plan.records) + 2 * number * plan.size),
        rank_(rank),
        size_(plan.size) {}
  __device__ int rank() const { return rank_; }
  __device__ int size() const { return size_; }
  __device__ void meet() {
    ++meeting_;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) store_release(flags_ + rank_, meeting_);
    // A difference, so that the count may wrap.
    for (int t = threadIdx.x; t < size_; t += kTeamThreads)
      while (static_cast<int>(load_acquire(flags_ + t) - meeting_) < 0) spin_wait();
    __syncthreads();
  }
  __device__ Record* own_record(int set) { return records_ + set * size_ + rank_; }
  __device__ const Record* record(int member, int set) { return records_ + set * size_ + member; }

 private:
  unsigned* flags_;
  Record* records_;
  int rank_, size_;
  unsigned meeting_ = 0;
};

__global__ void __launch_bounds__(kTeamThreads, 1)
    farthest_point_sampling_cooperative_kernel(FarthestPointSampling task, TeamPlan plan) {
  TeamShared& shared = shared_memory<TeamShared>();
  const int number = blockIdx.x / plan.size;
  GridTeam team(plan, static_cast<char*>(task.workspace), number,
                static_cast<int>(blockIdx.x) - number * plan.size);
  sample_clouds(team, shared, task, plan, number);
}

}  // namespace

void sample_in_grid(const FarthestPointSampling& task, const TeamPlan& plan, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(plan.size) * static_cast<unsigned>(plan.teams);
  fill_bytes("farthest_point_sampling", static_cast<char*>(task.workspace) + plan.flags, 0,
             blocks * sizeof(unsigned), stream);
  launch_cooperative("farthest_point_sampling", farthest_point_sampling_cooperative_kernel,
                     dim3(blocks), dim3(kTeamThreads), team_shared_bytes(plan.resident_points),
                     stream, task, plan);
}

}  // namespace fastshape::cuda::fps
