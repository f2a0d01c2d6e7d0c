#include "core/emulation/scheduler.h"

#include <sched.h>

#include <chrono>

#include "core/check.h"
#include "core/emulation/messages.h"

// The files of this folder are compiled without -fsanitize=thread: what all fibres share is
// protected by their running on one operating-system thread, which ThreadSanitizer is not told on
// purpose (it has to see the kernel's own races).

namespace fastshape::emulation {

thread_local Fiber* t_fiber = nullptr;

namespace {

// spin_wait() calls with nothing else happening before a launch counts as stuck.
constexpr uint64_t kIdleSpins = uint64_t{1} << 22;
constexpr double kIdleSeconds = 20;

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

// ---- Switching ---------------------------------------------------------------------------------

// Between two threads of a kernel the engine may move to another operating-system thread: never
// inlined, so that the address of t_fiber is computed anew for each.
__attribute__((noinline)) void run_thread() {
  Engine& engine = *fiber().engine;
  acquires(&engine.launch_->begun);
  // The group that had these stacks and this shared memory before.
  acquires(&engine.sync_[(engine.turn_ & 1) ^ 1]);
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
  releases(&launch_->ended);
  switch_stacks(t_fiber, nullptr);
  __builtin_unreachable();
}

void Engine::fail(const std::string& what, Site site) {
  const std::string place = site.line != 0 ? " at " + text(site) : "";
  stop(concatenate(launch_->name, ": ", describe(fiber()), place, ": ", what));
}

// ---- Who runs next -----------------------------------------------------------------------------

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

// ---- The end of a thread -----------------------------------------------------------------------

void Engine::exit_thread(Fiber& self) {
  Warp& warp = *self.warp;
  Block& block = *self.block;
  Cluster& cluster = *block.cluster;
  const uint32_t own = 1u << self.lane;
  releases(&launch_->ended);
  releases(&sync_[turn_ & 1]);
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

}  // namespace fastshape::emulation
