// The threads of co-resident blocks as fibres, and who runs next.
//
// An Engine runs one *group* of blocks at a time: a single block, a cluster, or the whole grid of a
// co-operative launch. All fibres of a group live on one operating-system thread and switch to each
// other directly; independent groups run on several operating-system threads, each with an engine
// of its own.
//
// A fibre is ready, waiting (at a barrier or a warp collective) or has exited. It runs until it
// waits, spins or exits. Who comes next is the schedule's choice; it stays within a warp while the
// warp has ready lanes, as the hardware does, except in the random schedule.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/emulation/builtins.h"
#include "core/emulation/context.h"
#include "core/emulation/sanitizers.h"

namespace fastshape::emulation {

constexpr unsigned kWarp = 32;
// The emulated device: an sm_90 with few multiprocessors. Tests ask for another one, to see the
// paths that kernels take on older, smaller and larger devices.
struct Device {
  int multiprocessors = 4;
  size_t shared_per_block = 227 * 1024;
  int compute_capability = 90;
};
const Device& device();
void set_device(const Device& device);  // not meant to be called while kernels run

constexpr int kMaxMultiprocessors = 16;
constexpr size_t kSharedPerBlock = 227 * 1024;
constexpr size_t kSharedAlignment = 128;
constexpr size_t kSharedPerMultiprocessor = 228 * 1024;
constexpr unsigned kThreadsPerMultiprocessor = 2048;
constexpr unsigned kBlocksPerMultiprocessor = 32;
constexpr unsigned kMaxBlockThreads = 1024;
constexpr unsigned kMaxClusterSize = 16;
// The largest group of co-resident blocks: a whole device in a co-operative launch.
constexpr size_t kMaxWarps = kMaxMultiprocessors * kThreadsPerMultiprocessor / kWarp;
static_assert(kMaxWarps * kWarp >= kMaxClusterSize * kMaxBlockThreads);

// Sanitized code has larger frames.
constexpr size_t kStackBytes = (kAddressSanitizer || kThreadSanitizer) ? 256 * 1024 : 64 * 1024;

enum class Schedule { ascending, descending, random };

// Which fibre runs next at every switch point; `seed` is used by the random schedule only, where
// the same seed gives the same order. Not meant to be called while kernels run.
void set_schedule(Schedule schedule, uint64_t seed = 0);

// The place of a call in a kernel's source.
struct Site {
  const char* file = "";
  int line = 0;
};

// What a fibre does at a barrier or a warp collective.
enum class Operation : uint8_t {
  none,
  // the block's barrier
  syncthreads,
  syncthreads_or,
  syncthreads_and,
  syncthreads_count,
  // the cluster's
  cluster_wait,
  // collectives of a warp
  syncwarp,
  shuffle,
  ballot,
  any,
  all,
  reduce_add,
  reduce_min_signed,
  reduce_max_signed,
  reduce_min_unsigned,
  reduce_max_unsigned,
  reduce_and,
  reduce_or,
  reduce_xor,
  match_any,
};

// Lanes that arrive at one collective.
struct Meeting {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  Operation operation = Operation::none;
  Site site;
  const char* sync = nullptr;  // ThreadSanitizer's name for this meeting
};

struct Warp {
  uint32_t alive = 0;
  uint32_t ready = 0;
  uint32_t at_block_barrier = 0;
  uint32_t at_cluster_barrier = 0;
  uint32_t last_lane = 0;  // who ran last
  uint32_t meetings = 0;   // in use of `meeting`
  Meeting meeting[kWarp];
  uint64_t value[kWarp];
  uint64_t result[kWarp];
  uint8_t source[kWarp];  // shuffle: whose value each lane wants
  uint8_t parity[kWarp] = {};
  char sync[kWarp][2];  // addresses only, see Meeting::sync
};

struct Cluster {
  unsigned alive = 0;
  unsigned arrived = 0;
  uint32_t phase = 0;
  char sync[2];
};

struct Block {
  dim3 index;
  unsigned number = 0;  // within its group
  Cluster* cluster = nullptr;
  unsigned cluster_rank = 0;
  unsigned first_warp = 0;
  unsigned alive = 0;
  unsigned arrived = 0;
  uint32_t phase = 0;
  Operation operation =
      Operation::none;  // of the barrier that threads wait at, with the first one's site
  Site site;
  unsigned votes = 0;
  int result = 0;
  char* shared = nullptr;
  char sync[2];
};

class Engine;
void fiber_main();

struct Fiber {
  Context context = nullptr;
  Engine* engine = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  dim3 thread;
  uint32_t lane = 0;
  uint32_t warp_index = 0;  // within the group
  // Where it waits, for messages.
  Operation operation = Operation::none;
  uint32_t mask = 0;
  Site site;
  bool spinning = false;
  // The split barrier of a cluster.
  bool cluster_arrived = false;
  uint32_t cluster_phase = 0;
  // ThreadSanitizer knows no fences: see Engine::fence.
  bool fenced = false;
  uint32_t atomics = 0;
  const void* last_atomics[8] = {};
  // The stack, and what the sanitizers keep for it.
  char* stack = nullptr;
  void* fake_stack = nullptr;
  void* tsan = nullptr;
};

// One kernel launch.
struct Launch {
  const char* name;  // of the op
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  unsigned cluster_size = 1;
  bool cooperative = false;
  void (*call)(const void* context) =
      nullptr;  // the kernel with its arguments, for the current fibre
  const void* context = nullptr;

  // Filled by run().
  Schedule schedule = Schedule::ascending;
  uint64_t seed = 0;
  std::atomic<int> engines{0};        // at work now
  std::atomic<bool> failed{false};    // no further groups are started
  std::atomic<uint64_t> finished{0};  // groups
  char begun = 0, ended = 0;          // ThreadSanitizer's names for the beginning and the end
};

// Checks the launch as CUDA does, runs it, and throws RuntimeError where the kernel breaks a rule.
void run(Launch& launch);

inline uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// How many blocks of this shape the emulated device holds at the same time.
int max_resident_blocks(unsigned threads, size_t shared_bytes);

class Engine {
 public:
  Engine();
  ~Engine();
  Engine(const Engine&) = delete;

  // Runs blocks [group * blocks, (group + 1) * blocks) of the grid until all their threads have
  // exited.
  void run_group(Launch& launch, uint64_t group, unsigned blocks);

  // Another launch comes, perhaps at the same address.
  void forget_launch() { launch_ = nullptr; }
  // Of all engines, under ThreadSanitizer; it follows about 8000.
  static int live_fibers() { return live_fibers_; }

  // ---- Called by the running fibre ----
  int block_barrier(Operation operation, bool predicate, Site site);
  void cluster_arrive(Site site);
  void cluster_wait(Site site);
  uint64_t warp_collective(Operation operation, uint32_t mask, uint64_t value, uint32_t source,
                           Site site);
  void spin(Site site);
  void before_atomic(const void* address);  // under ThreadSanitizer and in the random schedule only
  void fence();
  [[noreturn]] void fail(const std::string& what, Site site);
  void* shared_pointer(size_t offset, size_t bytes, size_t alignment, Site site);
  void* map_shared(const void* pointer, unsigned rank, Site site);

  bool random() const { return schedule_ == Schedule::random; }
  const Launch& launch() const { return *launch_; }
  FASTSHAPE_NO_THREAD_SANITIZER void progress() { idle_spins_ = 0; }

 private:
  friend void fiber_main();
  friend void run_thread();

  // Before and after a group.
  void prepare(Launch& launch, unsigned blocks);
  void start_block(unsigned number, uint64_t linear);
  void make_fibers(size_t count);
  void drop_fibers();
  void make_arenas(size_t count);
  void start_shared(Block& block);
  void end_shared(Block& block);
  void check_red_zones(const Block& block) const;

  // Scheduling.
  void block_fiber(Fiber& fiber, Operation operation, uint32_t mask, Site site);
  void set_ready(Warp& warp, uint32_t warp_index, uint32_t lanes);
  void clear_ready(Warp& warp, uint32_t warp_index, uint32_t lane);
  uint32_t next_ready_warp(uint32_t after) const;
  void reset_order(Warp& warp);
  Fiber* next();
  void switch_stacks(Fiber* from, Fiber* to);
  void arrived(void* fake_stack);
  void run_next(Fiber* self);
  [[noreturn]] void stop(std::string message);
  [[noreturn]] void deadlock();
  void exit_thread(Fiber& fiber);

  void release_block(Block& block);
  void release_cluster(Cluster& cluster);
  void finish_meeting(Warp& warp, uint32_t warp_index, uint32_t meeting);
  uint64_t random_bits();
  std::string describe(const Fiber& fiber) const;
  std::string where_threads_wait() const;

  Launch* launch_ = nullptr;
  Schedule schedule_ = Schedule::ascending;
  uint64_t random_state_ = 0;
  unsigned threads_per_block_ = 0;
  unsigned warps_per_block_ = 0;
  unsigned warp_count_ = 0;  // of the group
  unsigned alive_ = 0;
  uint32_t cursor_ = 0;  // the warp that runs
  uint64_t idle_spins_ = 0;
  double idle_since_ = 0;
  uint64_t seen_finished_ = 0;
  std::string error_;

  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<Block> blocks_;
  std::vector<Cluster> clusters_;
  std::vector<uint64_t> ready_warps_;

  char* stacks_ = nullptr;
  char* arenas_ = nullptr;
  size_t arena_count_ = 0;

  Context main_ = nullptr;  // the caller of run_group
  bool resumed_by_main_ = false;
  void* main_fake_stack_ = nullptr;
  const void* main_stack_ = nullptr;
  size_t main_stack_bytes_ = 0;
  void* main_tsan_ = nullptr;
  // ThreadSanitizer's names for the ends of this group and of the one before it.
  char sync_[2];
  unsigned turn_ = 0;
  static std::atomic<int> live_fibers_;
};

// The running fibre. Valid inside kernels only. Initial-exec: one instruction instead of a call,
// also in a module. Not instrumented: ThreadSanitizer takes a thread's first touch of its own
// thread-local storage for a write that races with the fibres that run on it.
extern thread_local Fiber* t_fiber __attribute__((tls_model("initial-exec"), visibility("hidden")));
FASTSHAPE_NO_THREAD_SANITIZER inline Fiber& fiber() { return *t_fiber; }

}  // namespace fastshape::emulation
