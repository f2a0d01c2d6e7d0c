// A launch: is it allowed, and which engine runs which blocks when.
#include <mutex>
#include <numeric>

#include "core/check.h"
#include "core/emulation/messages.h"
#include "core/emulation/scheduler.h"
#include "core/parallel.h"

namespace fastshape::emulation {

namespace {

struct ScheduleSetting {
  std::atomic<Schedule> schedule{Schedule::ascending};
  std::atomic<uint64_t> seed{0};
};
ScheduleSetting g_setting;
Device g_device;

}  // namespace

void set_schedule(Schedule schedule, uint64_t seed) {
  g_setting.schedule = schedule;
  g_setting.seed = seed;
}

const Device& device() { return g_device; }

void set_device(const Device& device) {
  FASTSHAPE_CHECK_VALUE(device.multiprocessors > 0 && device.multiprocessors <= kMaxMultiprocessors,
                        "`multiprocessors` must lie in 1..", kMaxMultiprocessors, ", got ",
                        device.multiprocessors);
  FASTSHAPE_CHECK_VALUE(device.shared_per_block <= kSharedPerBlock,
                        "`shared_bytes` must be at most ", kSharedPerBlock, ", got ",
                        device.shared_per_block);
  g_device = device;
}

// ------------------------------------------------------------------------------------------------------

namespace {

// Engines keep their stacks from one launch to the next. The list is never destroyed: kernels may
// run until the process ends. (A static variable inside a function would be a race to
// ThreadSanitizer, which does not see its guard here.)
std::mutex g_mutex;
std::vector<std::unique_ptr<Engine>>* g_idle = nullptr;

// Some engines for one operating-system thread.
class Lease {
 public:
  explicit Lease(size_t count) {
    std::lock_guard<std::mutex> lock(g_mutex);
    if (g_idle == nullptr) g_idle = new std::vector<std::unique_ptr<Engine>>;
    for (size_t i = 0; i < count; ++i) {
      if (g_idle->empty()) {
        engines_.push_back(std::make_unique<Engine>());
      } else {
        engines_.push_back(std::move(g_idle->back()));
        g_idle->pop_back();
      }
    }
  }
  ~Lease() {
    std::lock_guard<std::mutex> lock(g_mutex);
    for (auto& engine : engines_) {
      engine->forget_launch();
      g_idle->push_back(std::move(engine));
    }
  }
  Engine& operator[](size_t i) const { return *engines_[i]; }

 private:
  std::vector<std::unique_ptr<Engine>> engines_;
};

// How a launch is spread: over the operating-system threads in pieces of so many groups, each
// thread with so many engines by turns.
struct Spread {
  int64_t grain;
  size_t engines;
};

Spread spread(uint64_t groups, uint64_t group_threads) {
  const auto grain = [groups](uint64_t pieces) {
    return static_cast<int64_t>((groups + pieces - 1) / pieces);
  };
  if (!kThreadSanitizer) return {grain(8 * static_cast<uint64_t>(num_threads())), 1};
  // To ThreadSanitizer, two groups on one engine come one after the other, and their races do not
  // show: by turns on several engines they do. But it follows 8000 threads at most, and making them
  // is slow, so that engines keep theirs.
  constexpr uint64_t kThreads = 4096;
  const uint64_t workers = 2 * group_threads <= kThreads && num_threads() > 1 ? 2 : 1;
  const uint64_t engines = kThreads / (workers * group_threads);
  {
    std::lock_guard<std::mutex> lock(g_mutex);
    if (g_idle != nullptr && Engine::live_fibers() > 3000) g_idle->clear();
  }
  return {grain(workers), static_cast<size_t>(engines < 2 ? 1 : 2)};
}

void check_launch(const Launch& launch) {
  const dim3 grid = launch.grid, block = launch.block;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const auto refuse = [&](const auto&... parts) {
    FASTSHAPE_FAIL_RUNTIME(launch.name, ": invalid configuration argument: ", parts...);
  };
  if (threads == 0 || threads > kMaxBlockThreads || block.x > kMaxBlockThreads ||
      block.y > kMaxBlockThreads || block.z > 64) {
    refuse("a block of ", text(block), " threads; 1 to 1024 are possible, at most 64 in z");
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535) {
    refuse("a grid of ", text(grid), " blocks; 1 to (2147483647, 65535, 65535) are possible");
  }
  if (launch.shared_bytes > device().shared_per_block) {
    refuse(launch.shared_bytes, " bytes of shared memory; a block has at most ",
           device().shared_per_block);
  }
  if (launch.cluster_size > 1 && device().compute_capability < 90) {
    refuse("clusters need compute capability 9.0");
  }
  if (launch.cluster_size == 0 || launch.cluster_size > kMaxClusterSize ||
      grid.x % launch.cluster_size != 0) {
    refuse("clusters of ", launch.cluster_size, " blocks in a grid of ", text(grid),
           "; 1 to 16 are possible, and must divide the grid");
  }
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const int resident = max_resident_blocks(static_cast<unsigned>(threads), launch.shared_bytes);
  if (launch.cooperative && blocks > static_cast<uint64_t>(resident)) {
    FASTSHAPE_FAIL_RUNTIME(launch.name, ": too many blocks in cooperative launch: ", blocks,
                           ", the device holds ", resident);
  }
}

}  // namespace

int max_resident_blocks(unsigned threads, size_t shared_bytes) {
  const size_t by_threads = kThreadsPerMultiprocessor / ((threads + kWarp - 1) / kWarp * kWarp);
  const size_t by_shared =
      kSharedPerMultiprocessor / (shared_bytes + 1024);  // the system takes 1 KiB per block
  size_t blocks = by_threads < by_shared ? by_threads : by_shared;
  if (blocks > kBlocksPerMultiprocessor) blocks = kBlocksPerMultiprocessor;
  return static_cast<int>(blocks) * device().multiprocessors;
}

void run(Launch& launch) {
  check_launch(launch);
  launch.schedule = g_setting.schedule;
  launch.seed = g_setting.seed;
  const uint64_t all = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const unsigned blocks = launch.cooperative ? static_cast<unsigned>(all) : launch.cluster_size;
  const uint64_t groups = all / blocks;

  // CUDA promises no order of blocks: the schedule also says which come first.
  uint64_t step = mix(launch.seed) % groups;
  while (std::gcd(step, groups) != 1) step = (step + 1) % groups;
  const uint64_t shift = mix(launch.seed + 1) % groups;
  const auto in_order = [&](uint64_t i) -> uint64_t {
    if (launch.schedule == Schedule::ascending) return i;
    if (launch.schedule == Schedule::descending) return groups - 1 - i;
    __extension__ using wide = unsigned __int128;
    return static_cast<uint64_t>((static_cast<wide>(i) * step + shift) % groups);
  };

  const Spread plan =
      spread(groups, uint64_t{blocks} * launch.block.x * launch.block.y * launch.block.z);
  releases(&launch.begun);
  parallel_for(static_cast<int64_t>(groups), plan.grain, [&](int64_t begin, int64_t end) {
    const Lease engines(plan.engines);
    ++launch.engines;
    try {
      for (int64_t i = begin; i < end && !launch.failed; ++i) {
        Engine& engine = engines[static_cast<size_t>(i) % plan.engines];
        engine.run_group(launch, in_order(static_cast<uint64_t>(i)), blocks);
        ++launch.finished;
      }
    } catch (...) {
      launch.failed = true;
      --launch.engines;
      throw;
    }
    --launch.engines;
  });
  acquires(&launch.ended);
}

}  // namespace fastshape::emulation
