// What the threads of a block, a cluster or a warp do together.
#include "core/check.h"
#include "core/emulation/messages.h"
#include "core/emulation/scheduler.h"

namespace fastshape::emulation {

// ---- The block's barrier -----------------------------------------------------------------------

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

// ---- The cluster's barrier ---------------------------------------------------------------------

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

// ---- Collectives of a warp ---------------------------------------------------------------------

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

}  // namespace fastshape::emulation
