#include "core/emulation/scheduler.h"

#include <sched.h>
#include <sys/mman.h>

#include <chrono>
#include <mutex>
#include <numeric>

#include "core/check.h"
#include "core/parallel.h"

// This file is compiled without -fsanitize=thread: what all fibres share here is protected by their
// running on one operating-system thread, which ThreadSanitizer is not told on purpose (it has to
// see the kernel's own races).

namespace fastshape::emulation {

thread_local Fiber* t_fiber = nullptr;

namespace {

// Sanitized code has larger frames. The lowest page of each stack faults.
constexpr size_t kPage = 4096;
constexpr size_t kStackBytes = (kAddressSanitizer || kThreadSanitizer) ? 256 * 1024 : 64 * 1024;
constexpr size_t kStackStride = kStackBytes + kPage;

// Around each block's shared memory: poisoned under AddressSanitizer, else filled and compared at
// the end.
constexpr size_t kRedZone = 1024;
constexpr uint64_t kCanary = 0xC0DEC0DEC0DEC0DEull;
// What shared memory holds before it is written: a NaN as float, double and half, a huge number as
// an integer.
constexpr uint32_t kUninitialized = 0x7FF7A5A5u;

// spin_wait() calls with nothing else happening before a launch counts as stuck.
constexpr uint64_t kIdleSpins = uint64_t{1} << 22;
constexpr double kIdleSeconds = 20;

struct ScheduleSetting {
  std::atomic<Schedule> schedule{Schedule::ascending};
  std::atomic<uint64_t> seed{0};
};
ScheduleSetting g_setting;

const char* name_of(Operation operation) {
  switch (operation) {
    case Operation::none:
      return "running";
    case Operation::syncthreads:
      return "__syncthreads";
    case Operation::syncthreads_or:
      return "__syncthreads_or";
    case Operation::syncthreads_and:
      return "__syncthreads_and";
    case Operation::syncthreads_count:
      return "__syncthreads_count";
    case Operation::cluster_wait:
      return "cluster_wait";
    case Operation::syncwarp:
      return "__syncwarp";
    case Operation::shuffle:
      return "a shuffle";
    case Operation::ballot:
      return "__ballot_sync";
    case Operation::any:
      return "__any_sync";
    case Operation::all:
      return "__all_sync";
    case Operation::reduce_add:
      return "__reduce_add_sync";
    case Operation::reduce_min_signed:
    case Operation::reduce_min_unsigned:
      return "__reduce_min_sync";
    case Operation::reduce_max_signed:
    case Operation::reduce_max_unsigned:
      return "__reduce_max_sync";
    case Operation::reduce_and:
      return "__reduce_and_sync";
    case Operation::reduce_or:
      return "__reduce_or_sync";
    case Operation::reduce_xor:
      return "__reduce_xor_sync";
    case Operation::match_any:
      return "__match_any_sync";
  }
  return "?";
}

bool of_a_warp(Operation operation) { return operation >= Operation::syncwarp; }

bool same(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string text(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return concatenate(slash != nullptr ? slash + 1 : site.file, ":", site.line);
}

std::string text(dim3 v) { return concatenate("(", v.x, ", ", v.y, ", ", v.z, ")"); }

std::string hexadecimal(uint32_t v) {
  std::ostringstream out;
  out << "0x" << std::hex << v;
  return out.str();
}

// {3, 4, 5, 9} as "3-5, 9".
std::string ranges(const std::vector<unsigned>& numbers) {
  std::string out;
  for (size_t i = 0; i < numbers.size();) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    if (!out.empty()) out += ", ";
    out += std::to_string(numbers[i]);
    if (last > i) out += "-" + std::to_string(numbers[last]);
    i = last + 1;
  }
  return out;
}

std::vector<unsigned> lanes_of(uint32_t mask) {
  std::vector<unsigned> lanes;
  for (; mask != 0; mask &= mask - 1) lanes.push_back(static_cast<unsigned>(__builtin_ctz(mask)));
  return lanes;
}

uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

char* map_memory(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) FASTSHAPE_FAIL_RUNTIME("emulation: cannot map ", bytes, " bytes");
  return static_cast<char*>(memory);
}

void unmap_memory(char* memory, size_t bytes) {
  if (memory == nullptr) return;
  unpoison(memory, bytes);
  munmap(memory, bytes);
}

}  // namespace

void set_schedule(Schedule schedule, uint64_t seed) {
  g_setting.schedule = schedule;
  g_setting.seed = seed;
}

namespace {
Device g_device;
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

// ---- Switching
// -----------------------------------------------------------------------------------------------------

// Between two threads of a kernel the engine may move to another operating-system thread: never
// inlined, so that the address of t_fiber is computed anew for each.
__attribute__((noinline)) void run_thread() {
  Engine& engine = *fiber().engine;
  engine.launch_->call(engine.launch_->context);
  engine.exit_thread(fiber());
}

// The life of a fibre: one thread of a kernel after the other.
void fiber_main() {
  fiber().engine->arrived(nullptr);
  for (;;) run_thread();
}

// nullptr stands for the engine's caller.
void Engine::switch_stacks(Fiber* from, Fiber* to) {
#if defined(FASTSHAPE_SANITIZE_ADDRESS)
  __sanitizer_start_switch_fiber(from != nullptr ? &from->fake_stack : &main_fake_stack_,
                                 to != nullptr ? to->stack : main_stack_,
                                 to != nullptr ? kStackBytes : main_stack_bytes_);
#endif
#if defined(FASTSHAPE_SANITIZE_THREAD)
  // 1: a switch orders nothing; only the kernel's own barriers do.
  __tsan_switch_to_fiber(to != nullptr ? to->tsan : main_tsan_, 1);
#endif
  t_fiber = to;
  fastshape_switch_context(from != nullptr ? &from->context : &main_,
                           to != nullptr ? to->context : main_);
  arrived(from != nullptr ? from->fake_stack : main_fake_stack_);
}

// First thing on a stack that was switched to.
void Engine::arrived([[maybe_unused]] void* fake_stack) {
#if defined(FASTSHAPE_SANITIZE_ADDRESS)
  const void* stack = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack, &stack, &bytes);
  // The fibre that the caller starts learns where the caller's stack is.
  if (resumed_by_main_) {
    main_stack_ = stack;
    main_stack_bytes_ = bytes;
  }
#endif
  resumed_by_main_ = false;
}

void Engine::run_next(Fiber* self) {
  Fiber* fiber = next();
  if (fiber == self) return;
  if (fiber == nullptr) deadlock();
  switch_stacks(self, fiber);
}

// Leaves the fibre for good; run_group throws.
void Engine::stop(std::string message) {
  error_ = std::move(message);
  switch_stacks(t_fiber, nullptr);
  __builtin_unreachable();
}

void Engine::fail(const std::string& what, Site site) {
  const std::string place = site.line != 0 ? " at " + text(site) : "";
  stop(concatenate(launch_->name, ": ", describe(fiber()), place, ": ", what));
}

// ---- Who runs next
// -------------------------------------------------------------------------------------------------

uint64_t Engine::random_bits() { return mix(random_state_++); }

void Engine::set_ready(Warp& warp, uint32_t warp_index, uint32_t lanes) {
  if (lanes == 0) return;
  warp.ready |= lanes;
  ready_warps_[warp_index / 64] |= uint64_t{1} << (warp_index % 64);
}

void Engine::clear_ready(Warp& warp, uint32_t warp_index, uint32_t lane) {
  warp.ready &= ~(1u << lane);
  if (warp.ready == 0) ready_warps_[warp_index / 64] &= ~(uint64_t{1} << (warp_index % 64));
}

// The first ready warp after `from` in the schedule's direction, around the end and `from` itself
// last; warp_count_ if there is none.
uint32_t Engine::next_ready_warp(uint32_t from) const {
  const uint32_t words = static_cast<uint32_t>(ready_warps_.size());
  const uint32_t word = from / 64, bit = from % 64;
  if (schedule_ == Schedule::descending) {
    const uint64_t below = ready_warps_[word] & ((uint64_t{1} << bit) - 1);
    if (below != 0) return word * 64 + 63 - static_cast<uint32_t>(__builtin_clzll(below));
    for (uint32_t i = 1; i <= words; ++i) {
      const uint32_t w = (word + words - i) % words;
      if (ready_warps_[w] != 0)
        return w * 64 + 63 - static_cast<uint32_t>(__builtin_clzll(ready_warps_[w]));
    }
    return warp_count_;
  }
  const uint64_t above = ready_warps_[word] & ~((uint64_t{2} << bit) - 1);
  if (above != 0) return word * 64 + static_cast<uint32_t>(__builtin_ctzll(above));
  for (uint32_t i = 1; i <= words; ++i) {
    const uint32_t w = (word + i) % words;
    if (ready_warps_[w] != 0)
      return w * 64 + static_cast<uint32_t>(__builtin_ctzll(ready_warps_[w]));
  }
  return warp_count_;
}

// After a release the lanes run in the schedule's order from its beginning.
void Engine::reset_order(Warp& warp) {
  warp.last_lane = schedule_ == Schedule::descending ? 0 : kWarp - 1;
}

Fiber* Engine::next() {
  uint32_t lane;
  if (schedule_ == Schedule::random) {
    const uint64_t bits = random_bits();
    cursor_ = next_ready_warp(static_cast<uint32_t>((bits >> 32) % warp_count_));
    if (cursor_ == warp_count_) return nullptr;
    const uint32_t ready = warps_[cursor_].ready;
    const uint32_t from = bits & (kWarp - 1);
    const uint32_t above = ready >> from << from;
    lane = static_cast<uint32_t>(__builtin_ctz(above != 0 ? above : ready));
  } else {
    if (warps_[cursor_].ready == 0) {
      const uint32_t warp = next_ready_warp(cursor_);
      if (warp == warp_count_) return nullptr;
      cursor_ = warp;
    }
    Warp& warp = warps_[cursor_];
    if (schedule_ == Schedule::ascending) {
      const uint32_t above = warp.ready & ~((2u << warp.last_lane) - 1);
      lane = static_cast<uint32_t>(__builtin_ctz(above != 0 ? above : warp.ready));
    } else {
      const uint32_t below = warp.ready & ((1u << warp.last_lane) - 1);
      lane = kWarp - 1 - static_cast<uint32_t>(__builtin_clz(below != 0 ? below : warp.ready));
    }
    warp.last_lane = lane;
  }
  return &fibers_[cursor_ * kWarp + lane];
}

// ThreadSanitizer ignores fences. "Write; fence; relaxed atomic write" publishes, and "relaxed
// atomic read; fence; read" receives: so an atomic after a fence counts as a release, and a fence
// as an acquire of the atomics before it.
void Engine::before_atomic(const void* address) {
  Fiber& self = *t_fiber;
  if (kThreadSanitizer) {
    if (self.fenced) releases(address);
    self.last_atomics[self.atomics++ % 8] = address;
  }
  // Threads that talk through atomics alone would otherwise run one after the other.
  if (random() && (random_bits() & 3) == 0) run_next(&self);
}

void Engine::fence() {
  std::atomic_thread_fence(
      std::memory_order_seq_cst);  // other blocks may be on other operating-system threads
  if (!kThreadSanitizer) return;
  Fiber& self = *t_fiber;
  self.fenced = true;
  for (uint32_t i = 0; i < self.atomics && i < 8; ++i) acquires(self.last_atomics[i]);
}

void Engine::spin(Site site) {
  Fiber& self = *t_fiber;
  self.spinning = true;
  self.site = site;
  if (++idle_spins_ % 4096 == 0 && launch_->engines > 1) sched_yield();
  if (idle_spins_ == 1 || launch_->finished != seen_finished_) {
    seen_finished_ = launch_->finished;
    idle_since_ = idle_spins_ == 1 ? 0 : seconds();
  } else if (idle_spins_ >= kIdleSpins && idle_spins_ % 65536 == 0) {
    // Alone, nothing can come from outside. Otherwise another block may still be working on it.
    if (idle_since_ == 0) idle_since_ = seconds();
    if (launch_->engines == 1 || seconds() - idle_since_ > kIdleSeconds) {
      stop(concatenate(launch_->name, ": live-lock: ", describe(self),
                       " and others call spin_wait (", text(site), ") and nothing else happens",
                       where_threads_wait()));
    }
  }
  // Let other warps go first: what is waited for may be theirs to do.
  if (schedule_ != Schedule::random) cursor_ = next_ready_warp(cursor_);
  run_next(&self);
  self.spinning = false;
}

void Engine::block_fiber(Fiber& fiber, Operation operation, uint32_t mask, Site site) {
  fiber.operation = operation;
  fiber.mask = mask;
  fiber.site = site;
  clear_ready(*fiber.warp, fiber.warp_index, fiber.lane);
}

// ---- The block's barrier
// -------------------------------------------------------------------------------------------

int Engine::block_barrier(Operation operation, bool predicate, Site site) {
  Fiber& self = *t_fiber;
  Block& block = *self.block;
  if (block.arrived == 0) {
    block.operation = operation;
    block.site = site;
    block.votes = 0;
  } else if (block.operation != operation || !same(block.site, site)) {
    fail(concatenate("barrier in divergent code: this thread arrives at ", name_of(operation),
                     " while other threads of its block wait at ", name_of(block.operation), " (",
                     text(block.site), ")"),
         site);
  }
  block.votes += predicate ? 1 : 0;
  const char* sync = &block.sync[block.phase & 1];
  releases(sync);
  if (++block.arrived == block.alive) {
    release_block(block);
  } else {
    block_fiber(self, operation, 0, site);
    self.warp->at_block_barrier |= 1u << self.lane;
  }
  run_next(&self);
  self.operation = Operation::none;
  acquires(sync);
  return block.result;  // the next barrier cannot complete before this thread arrives there
}

void Engine::release_block(Block& block) {
  switch (block.operation) {
    case Operation::syncthreads_or:
      block.result = block.votes != 0;
      break;
    case Operation::syncthreads_and:
      block.result = block.votes == block.alive;
      break;
    default:
      block.result = static_cast<int>(block.votes);
      break;
  }
  for (uint32_t i = 0; i < warps_per_block_; ++i) {
    Warp& warp = warps_[block.first_warp + i];
    set_ready(warp, block.first_warp + i, warp.at_block_barrier);
    warp.at_block_barrier = 0;
    reset_order(warp);
  }
  block.arrived = 0;
  ++block.phase;
  progress();
  cursor_ = block.first_warp + (schedule_ == Schedule::descending ? warps_per_block_ - 1 : 0);
}

// ---- The cluster's barrier
// -----------------------------------------------------------------------------------------

void Engine::cluster_arrive(Site site) {
  Fiber& self = *t_fiber;
  Cluster& cluster = *self.block->cluster;
  if (self.cluster_arrived) fail("cluster_arrive twice without a cluster_wait between", site);
  self.cluster_arrived = true;
  self.cluster_phase = cluster.phase;
  releases(&cluster.sync[cluster.phase & 1]);
  if (++cluster.arrived == cluster.alive) release_cluster(cluster);
}

void Engine::cluster_wait(Site site) {
  Fiber& self = *t_fiber;
  Cluster& cluster = *self.block->cluster;
  if (!self.cluster_arrived) fail("cluster_wait without a cluster_arrive before it", site);
  self.cluster_arrived = false;
  if (cluster.phase == self.cluster_phase) {
    block_fiber(self, Operation::cluster_wait, 0, site);
    self.warp->at_cluster_barrier |= 1u << self.lane;
  }
  run_next(&self);
  self.operation = Operation::none;
  acquires(&cluster.sync[self.cluster_phase & 1]);
}

void Engine::release_cluster(Cluster& cluster) {
  cluster.arrived = 0;
  ++cluster.phase;
  for (Block& block : blocks_) {
    if (block.cluster != &cluster) continue;
    for (uint32_t i = block.first_warp; i < block.first_warp + warps_per_block_; ++i) {
      set_ready(warps_[i], i, warps_[i].at_cluster_barrier);
      warps_[i].at_cluster_barrier = 0;
    }
  }
  progress();
}

// ---- Collectives of a warp
// -----------------------------------------------------------------------------------------

uint64_t Engine::warp_collective(Operation operation, uint32_t mask, uint64_t value,
                                 uint32_t source, Site site) {
  Fiber& self = *t_fiber;
  Warp& warp = *self.warp;
  const uint32_t own = 1u << self.lane;
  if ((mask & own) == 0) {
    fail(concatenate(name_of(operation), " with mask ", hexadecimal(mask), " by lane ", self.lane,
                     ", which is not in it"),
         site);
  }
  // __syncwarp() names all lanes by default, those of a partial warp too; it alone may name threads
  // that are gone.
  if (operation != Operation::syncwarp && (mask & ~warp.alive) != 0) {
    fail(concatenate(name_of(operation), " with mask ", hexadecimal(mask), " names lanes ",
                     ranges(lanes_of(mask & ~warp.alive)), ", which have exited or never were"),
         site);
  }
  if (operation == Operation::shuffle && (mask >> source & 1) == 0) {
    fail(concatenate("a shuffle reads from lane ", source, ", which is not in its mask ",
                     hexadecimal(mask)),
         site);
  }

  uint32_t index = 0;
  while (index < warp.meetings && warp.meeting[index].mask != mask) ++index;
  Meeting& meeting = warp.meeting[index];
  if (index == warp.meetings) {
    ++warp.meetings;
    meeting.mask = mask;
    meeting.arrived = 0;
    meeting.operation = operation;
    meeting.site = site;
    const uint32_t leader = static_cast<uint32_t>(__builtin_ctz(mask));
    meeting.sync = &warp.sync[leader][warp.parity[leader]++ & 1];
  } else if (meeting.operation != operation || !same(meeting.site, site)) {
    fail(concatenate("divergent warp: this lane arrives at ", name_of(operation), " with mask ",
                     hexadecimal(mask), " while lanes ", ranges(lanes_of(meeting.arrived)),
                     " wait at ", name_of(meeting.operation), " (", text(meeting.site), ")"),
         site);
  }
  warp.value[self.lane] = value;
  warp.source[self.lane] = static_cast<uint8_t>(source);
  // Of the collectives, __syncwarp alone orders memory.
  const char* sync = operation == Operation::syncwarp ? meeting.sync : nullptr;
  if (sync != nullptr) releases(sync);
  meeting.arrived |= own;
  if (meeting.arrived == (mask & warp.alive)) {
    finish_meeting(warp, self.warp_index, index);
  } else {
    block_fiber(self, operation, mask, site);
  }
  run_next(&self);
  self.operation = Operation::none;
  if (sync != nullptr) acquires(sync);
  return warp.result[self.lane];
}

namespace {

template <class T, class F>
void reduce(Warp& warp, uint32_t lanes, F combine) {
  T result{};
  bool first = true;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const T value = static_cast<T>(static_cast<uint32_t>(warp.value[__builtin_ctz(rest)]));
    result = first ? value : combine(result, value);
    first = false;
  }
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    warp.result[__builtin_ctz(rest)] = static_cast<uint32_t>(result);
  }
}

}  // namespace

// The last lane to arrive computes what every lane gets. Results stand apart from the deposited
// values, so that a lane that runs ahead to its next collective overwrites nothing that the others
// still have to read.
void Engine::finish_meeting(Warp& warp, uint32_t warp_index, uint32_t index) {
  const uint32_t lanes = warp.meeting[index].arrived;
  switch (warp.meeting[index].operation) {
    case Operation::shuffle:
      for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        warp.result[lane] = warp.value[warp.source[lane]];
      }
      break;
    case Operation::ballot:
    case Operation::any:
    case Operation::all: {
      uint32_t votes = 0;
      for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        votes |= static_cast<uint32_t>(warp.value[lane] != 0) << lane;
      }
      const Operation operation = warp.meeting[index].operation;
      const uint64_t result = operation == Operation::ballot ? votes
                              : operation == Operation::any  ? votes != 0
                                                             : votes == lanes;
      for (uint32_t rest = lanes; rest != 0; rest &= rest - 1)
        warp.result[__builtin_ctz(rest)] = result;
      break;
    }
    case Operation::reduce_add:
      reduce<uint32_t>(warp, lanes, [](uint32_t a, uint32_t b) { return a + b; });
      break;
    case Operation::reduce_min_signed:
      reduce<int32_t>(warp, lanes, [](int32_t a, int32_t b) { return b < a ? b : a; });
      break;
    case Operation::reduce_max_signed:
      reduce<int32_t>(warp, lanes, [](int32_t a, int32_t b) { return a < b ? b : a; });
      break;
    case Operation::reduce_min_unsigned:
      reduce<uint32_t>(warp, lanes, [](uint32_t a, uint32_t b) { return b < a ? b : a; });
      break;
    case Operation::reduce_max_unsigned:
      reduce<uint32_t>(warp, lanes, [](uint32_t a, uint32_t b) { return a < b ? b : a; });
      break;
    case Operation::reduce_and:
      reduce<uint32_t>(warp, lanes, [](uint32_t a, uint32_t b) { return a & b; });
      break;
    case Operation::reduce_or:
      reduce<uint32_t>(warp, lanes, [](uint32_t a, uint32_t b) { return a | b; });
      break;
    case Operation::reduce_xor:
      reduce<uint32_t>(warp, lanes, [](uint32_t a, uint32_t b) { return a ^ b; });
      break;
    case Operation::match_any:
      for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        uint32_t equal = 0;
        for (uint32_t others = lanes; others != 0; others &= others - 1) {
          const int other = __builtin_ctz(others);
          equal |= static_cast<uint32_t>(warp.value[other] == warp.value[lane]) << other;
        }
        warp.result[lane] = equal;
      }
      break;
    default:
      break;  // __syncwarp
  }
  if (index != --warp.meetings) warp.meeting[index] = warp.meeting[warp.meetings];
  set_ready(warp, warp_index, lanes);
  reset_order(warp);
  progress();
  if (schedule_ != Schedule::random) cursor_ = warp_index;
}

// ---- The end of a thread
// -------------------------------------------------------------------------------------------

void Engine::exit_thread(Fiber& self) {
  Warp& warp = *self.warp;
  Block& block = *self.block;
  Cluster& cluster = *block.cluster;
  const uint32_t own = 1u << self.lane;
  releases(&launch_->sync);
  warp.alive &= ~own;
  clear_ready(warp, self.warp_index, self.lane);
  // Threads that are gone no longer count at barriers, as on the device.
  for (uint32_t i = 0; i < warp.meetings; ++i) {
    const Meeting& meeting = warp.meeting[i];
    if ((meeting.mask & own) == 0) continue;
    if (meeting.operation != Operation::syncwarp) {
      fail(concatenate("divergent warp: this lane exits while lanes ",
                       ranges(lanes_of(meeting.arrived)), " wait for it at ",
                       name_of(meeting.operation), " (", text(meeting.site), ") with mask ",
                       hexadecimal(meeting.mask)),
           {});
    }
    if (meeting.arrived == (meeting.mask & warp.alive)) finish_meeting(warp, self.warp_index, i--);
  }
  --cluster.alive;
  if (self.cluster_arrived && self.cluster_phase == cluster.phase) --cluster.arrived;
  self.cluster_arrived = false;
  self.fenced = false;
  self.atomics = 0;
  if (--block.alive == 0) {
    // A block that reads another's shared memory after the other has gone must not find what it
    // hopes for.
    if (launch_->cluster_size > 1) end_shared(block);
  } else if (block.arrived == block.alive) {
    release_block(block);
  }
  if (cluster.alive != 0 && cluster.arrived == cluster.alive) release_cluster(cluster);
  progress();
  if (--alive_ == 0) {
    switch_stacks(&self, nullptr);
  } else {
    run_next(&self);
  }
}

// ---- Shared memory
// -------------------------------------------------------------------------------------------------

void* Engine::shared_pointer(size_t offset, size_t bytes, size_t alignment, Site site) {
  if (offset + bytes > launch_->shared_bytes) {
    fail(concatenate("the kernel uses ", offset + bytes,
                     " bytes of shared memory but was launched with ", launch_->shared_bytes),
         site);
  }
  if (alignment > kSharedAlignment || offset % alignment != 0) {
    fail(concatenate("offset ", offset,
                     " of shared memory is not a multiple of the type's alignment ", alignment),
         site);
  }
  return t_fiber->block->shared + offset;
}

void* Engine::map_shared(const void* pointer, unsigned rank, Site site) {
  Block& own = *t_fiber->block;
  const ptrdiff_t offset = static_cast<const char*>(pointer) - own.shared;
  if (offset < 0 || static_cast<size_t>(offset) > launch_->shared_bytes) {
    fail("cluster_map of a pointer that is not into this block's shared memory", site);
  }
  if (rank >= launch_->cluster_size) {
    fail(concatenate("cluster_map to rank ", rank, " in a cluster of ", launch_->cluster_size),
         site);
  }
  Block& other = blocks_[own.number - own.cluster_rank + rank];
  if (other.alive == 0) {
    fail(concatenate("cluster_map to rank ", rank, ", whose threads have all exited"), site);
  }
  return other.shared + offset;
}

void Engine::start_shared(Block& block) {
  const size_t bytes = launch_->shared_bytes;
  block.shared = arenas_ + block.number * arena_stride_ + kRedZone;
  unpoison(block.shared - kRedZone, arena_stride_);
  uint32_t pattern = kUninitialized;
  for (size_t i = 0; i < bytes; i += 4)
    std::memcpy(block.shared + i, &pattern, bytes - i < 4 ? bytes - i : 4);
  if (kAddressSanitizer) {
    poison(block.shared - kRedZone, kRedZone);
    poison(block.shared + bytes, arena_stride_ - kRedZone - bytes);
  } else {
    for (size_t i = 0; i < kRedZone; i += 8) {
      std::memcpy(block.shared - kRedZone + i, &kCanary, 8);
      std::memcpy(block.shared + bytes + i, &kCanary, 8);
    }
  }
}

void Engine::end_shared(Block& block) {
  uint32_t pattern = kUninitialized;
  const size_t bytes = launch_->shared_bytes;
  for (size_t i = 0; i + 4 <= bytes; i += 4) std::memcpy(block.shared + i, &pattern, 4);
  poison(block.shared, bytes);
}

void Engine::check_red_zones(const Block& block) const {
  if (kAddressSanitizer) return;
  for (size_t i = 0; i < kRedZone; i += 8) {
    const char* below = block.shared - kRedZone + i;
    const char* above = block.shared + launch_->shared_bytes + i;
    const bool good_below = std::memcmp(below, &kCanary, 8) == 0;
    if (good_below && std::memcmp(above, &kCanary, 8) == 0) continue;
    FASTSHAPE_FAIL_RUNTIME(launch_->name, ": block ", text(block.index), " wrote outside its ",
                           launch_->shared_bytes, " bytes of shared memory, near offset ",
                           (good_below ? above : below) - block.shared);
  }
}

// ---- A group of blocks
// ---------------------------------------------------------------------------------------------

// Room for the largest group at once: ThreadSanitizer would take the moving of a table for a race
// with the fibres that read it.
Engine::Engine() {
  constexpr size_t kWarps = kMaxMultiprocessors * kThreadsPerMultiprocessor / kWarp;
  constexpr size_t kBlocks = kMaxMultiprocessors * kBlocksPerMultiprocessor;
  constexpr size_t kClusterWarps = kMaxClusterSize * kMaxBlockThreads / kWarp;
  constexpr size_t kMost = kWarps > kClusterWarps ? kWarps : kClusterWarps;
  fibers_.reserve(kMost * kWarp);
  warps_.reserve(kMost);
  blocks_.reserve(kBlocks);
  clusters_.reserve(kBlocks);
}

Engine::~Engine() {
  unmap_memory(stacks_, stack_count_ * kStackStride);
  unmap_memory(arenas_, arena_count_ * arena_stride_);
}

void Engine::make_stacks(size_t count) {
  // ThreadSanitizer remembers what earlier fibres did at these addresses; unmapping makes it
  // forget.
  if (kThreadSanitizer || count > stack_count_) {
    unmap_memory(stacks_, stack_count_ * kStackStride);
    stack_count_ = count > stack_count_ ? count : stack_count_;
    stacks_ = map_memory(stack_count_ * kStackStride);
    fibers_dirty_ = true;
    if (!kThreadSanitizer) {
      for (size_t i = 0; i < stack_count_; ++i)
        mprotect(stacks_ + i * kStackStride, kPage, PROT_NONE);
    }
  }
}

void Engine::make_arenas(size_t count) {
  const size_t stride = (kSharedPerBlock + 2 * kRedZone + kPage - 1) / kPage * kPage;
  if (kThreadSanitizer || count > arena_count_) {
    unmap_memory(arenas_, arena_count_ * arena_stride_);
    arena_count_ = count > arena_count_ ? count : arena_count_;
    arena_stride_ = stride;
    arenas_ = map_memory(arena_count_ * arena_stride_);
  }
}

void Engine::reset_fibers() {
  for (size_t i = 0; i < fibers_.size(); ++i) {
    Fiber& fiber = fibers_[i];
    fiber = Fiber{};
    fiber.stack = stacks_ + i * kStackStride + kPage;
    unpoison(fiber.stack, kStackBytes);
    // Stacks start at different cache sets: with equal ones the fibres of a block would fight for
    // eight lines.
    fiber.context = make_context(fiber.stack, kStackBytes - i % 64 * 64, fiber_main);
  }
}

void Engine::prepare(Launch& launch, unsigned blocks) {
  const dim3 shape = launch.block;
  threads_per_block_ = shape.x * shape.y * shape.z;
  warps_per_block_ = (threads_per_block_ + kWarp - 1) / kWarp;
  warp_count_ = warps_per_block_ * blocks;
  const size_t count = size_t{warp_count_} * kWarp;
  make_stacks(count);
  make_arenas(blocks);
  if (fibers_.size() < count) {
    fibers_.resize(count);
    fibers_dirty_ = true;
  }
  if (fibers_dirty_) reset_fibers();
  fibers_dirty_ = false;

  warps_.assign(warp_count_, Warp{});
  blocks_.assign(blocks, Block{});
  clusters_.assign(blocks / launch.cluster_size, Cluster{});
  ready_warps_.assign((warp_count_ + 63) / 64, 0);
  for (unsigned b = 0; b < blocks; ++b) {
    for (unsigned t = 0; t < threads_per_block_; ++t) {
      const unsigned warp = b * warps_per_block_ + t / kWarp;
      Fiber& fiber = fibers_[warp * kWarp + t % kWarp];
      fiber.engine = this;
      fiber.block = &blocks_[b];
      fiber.warp = &warps_[warp];
      fiber.warp_index = warp;
      fiber.lane = t % kWarp;
      fiber.thread = dim3(t % shape.x, t / shape.x % shape.y, t / shape.x / shape.y);
#if defined(FASTSHAPE_SANITIZE_THREAD)
      fiber.tsan = __tsan_create_fiber(0);
#endif
    }
  }
}

void Engine::start_block(unsigned number, uint64_t linear) {
  const dim3 grid = launch_->grid;
  Block& block = blocks_[number];
  block = Block{};
  block.index =
      dim3(static_cast<unsigned>(linear % grid.x), static_cast<unsigned>(linear / grid.x % grid.y),
           static_cast<unsigned>(linear / grid.x / grid.y));
  block.number = number;
  block.cluster = &clusters_[number / launch_->cluster_size];
  block.cluster_rank = number % launch_->cluster_size;
  block.first_warp = number * warps_per_block_;
  block.alive = threads_per_block_;
  block.cluster->alive += threads_per_block_;
  start_shared(block);
  for (unsigned i = 0; i < warps_per_block_; ++i) {
    Warp& warp = warps_[block.first_warp + i];
    const unsigned lanes = threads_per_block_ - i * kWarp;
    warp.alive = lanes >= kWarp ? ~0u : (1u << lanes) - 1;
    warp.ready = warp.at_block_barrier = warp.at_cluster_barrier = warp.meetings = 0;
    set_ready(warp, block.first_warp + i, warp.alive);
    reset_order(warp);
  }
}

void Engine::run_group(Launch& launch, uint64_t group, unsigned blocks) {
  // Consecutive groups of one launch differ in their block indices only.
  if (launch_ != &launch || kThreadSanitizer) {
    launch_ = &launch;
    schedule_ = launch.schedule;
    prepare(launch, blocks);
  }
  random_state_ = mix(launch.seed ^ mix(group));
  alive_ = blocks * threads_per_block_;
  cursor_ = schedule_ == Schedule::descending ? warp_count_ - 1 : 0;
  idle_spins_ = 0;
  for (Cluster& cluster : clusters_) cluster = Cluster{};
  for (unsigned i = 0; i < blocks; ++i) start_block(i, group * blocks + i);

#if defined(FASTSHAPE_SANITIZE_THREAD)
  main_tsan_ = __tsan_get_current_fiber();
#endif
  resumed_by_main_ = true;
  switch_stacks(nullptr, next());
#if defined(FASTSHAPE_SANITIZE_THREAD)
  for (Fiber& fiber : fibers_) {
    if (fiber.tsan != nullptr) __tsan_destroy_fiber(fiber.tsan);
    fiber.tsan = nullptr;
  }
  fibers_dirty_ = true;
#endif
  if (!error_.empty()) {
    fibers_dirty_ = true;  // the others are suspended in the middle of the kernel
    launch_ = nullptr;
    std::string message;
    message.swap(error_);
    throw RuntimeError(message);
  }
  for (const Block& block : blocks_) check_red_zones(block);
}

// ---- Messages
// ------------------------------------------------------------------------------------------------------

std::string Engine::describe(const Fiber& fiber) const {
  return concatenate("block ", text(fiber.block->index), ", thread ", text(fiber.thread));
}

// One line for all threads of a block that wait at the same place.
std::string Engine::where_threads_wait() const {
  struct Place {
    const Fiber* first;
    std::vector<unsigned> threads;
  };
  std::string out;
  int lines = 0;
  for (const Block& block : blocks_) {
    std::vector<Place> places;
    for (unsigned t = 0; t < threads_per_block_; ++t) {
      const Fiber& fiber = fibers_[(block.first_warp + t / kWarp) * kWarp + t % kWarp];
      if ((fiber.warp->alive >> fiber.lane & 1) == 0) continue;
      size_t i = 0;
      while (i < places.size() &&
             !(places[i].first->operation == fiber.operation &&
               places[i].first->spinning == fiber.spinning && places[i].first->mask == fiber.mask &&
               same(places[i].first->site, fiber.site))) {
        ++i;
      }
      if (i == places.size()) places.push_back({&fiber, {}});
      places[i].threads.push_back(t);
    }
    for (const Place& place : places) {
      if (++lines > 12) return out + "\n  ...";
      const Fiber& fiber = *place.first;
      out += concatenate("\n  block ", text(block.index), ", thread",
                         place.threads.size() > 1 ? "s " : " ", ranges(place.threads), ": ");
      if (fiber.operation == Operation::none && !fiber.spinning) {
        out += "ready to run";
        continue;
      }
      out += fiber.spinning ? "spin_wait" : name_of(fiber.operation);
      if (of_a_warp(fiber.operation)) out += " with mask " + hexadecimal(fiber.mask);
      out += " (" + text(fiber.site) + ")";
    }
  }
  return out;
}

void Engine::deadlock() {
  stop(concatenate(launch_->name, ": deadlock: every thread waits for another",
                   where_threads_wait()));
}

// ---- A launch
// ------------------------------------------------------------------------------------------------------

namespace {

// Engines keep their stacks from one launch to the next. The list is never destroyed: kernels may
// run until the process ends. (A static variable inside a function would be a race to
// ThreadSanitizer, which does not see its guard here.)
std::mutex g_mutex;
std::vector<std::unique_ptr<Engine>>* g_idle = nullptr;

class Lease {
 public:
  Lease() {
    std::lock_guard<std::mutex> lock(g_mutex);
    if (g_idle == nullptr) g_idle = new std::vector<std::unique_ptr<Engine>>;
    if (g_idle->empty()) {
      engine_ = std::make_unique<Engine>();
    } else {
      engine_ = std::move(g_idle->back());
      g_idle->pop_back();
    }
  }
  ~Lease() {
    engine_->forget_launch();
    std::lock_guard<std::mutex> lock(g_mutex);
    g_idle->push_back(std::move(engine_));
  }
  Engine& operator*() const { return *engine_; }

 private:
  std::unique_ptr<Engine> engine_;
};

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

  const int64_t pieces = 8 * static_cast<int64_t>(num_threads());
  const int64_t grain = (static_cast<int64_t>(groups) + pieces - 1) / pieces;
  parallel_for(static_cast<int64_t>(groups), grain, [&](int64_t begin, int64_t end) {
    Lease lease;
    Engine& engine = *lease;
    ++launch.engines;
    try {
      for (int64_t i = begin; i < end && !launch.failed; ++i) {
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
  acquires(&launch.sync);
}

}  // namespace fastshape::emulation
