// The memory of an engine (stacks, shared memory) and the run of a group of blocks.
#include <sys/mman.h>

#include "core/check.h"
#include "core/emulation/messages.h"
#include "core/emulation/scheduler.h"

namespace fastshape::emulation {

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kStackStride = kStackBytes + kPage;  // the lowest page of each stack faults
constexpr size_t kStacksBytes = kMaxWarps * kWarp * kStackStride;

// Around each block's shared memory: poisoned under AddressSanitizer, else filled and compared at
// the end.
constexpr size_t kRedZone = 1024;
constexpr uint32_t kCanary = 0xC0DE5AFEu;
constexpr size_t kArenaStride = (kSharedPerBlock + 2 * kRedZone + kPage - 1) / kPage * kPage;
// What shared memory holds before it is written: a NaN as float, double and half, a huge number as
// an integer.
constexpr uint32_t kUninitialized = 0x7FF7A5A5u;

void fill(char* memory, uint32_t pattern, size_t bytes) {
  for (size_t i = 0; i + 4 <= bytes; i += 4) std::memcpy(memory + i, &pattern, 4);
  for (size_t i = bytes / 4 * 4; i < bytes; ++i)
    memory[i] = static_cast<char>(pattern >> i % 4 * 8);
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

// ---- Shared memory -----------------------------------------------------------------------------

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
  block.shared = arenas_ + block.number * kArenaStride + kRedZone;
  unpoison(block.shared - kRedZone, kArenaStride);
  fill(block.shared, kUninitialized, bytes);
  if (kAddressSanitizer) {
    poison(block.shared - kRedZone, kRedZone);
    poison(block.shared + bytes, kArenaStride - kRedZone - bytes);
  } else {
    fill(block.shared - kRedZone, kCanary, kRedZone);
    fill(block.shared + bytes, kCanary, kRedZone);
  }
}

void Engine::end_shared(Block& block) {
  const Unseen unseen;
  fill(block.shared, kUninitialized, launch_->shared_bytes);
  poison(block.shared, launch_->shared_bytes);
}

void Engine::check_red_zones(const Block& block) const {
  if (kAddressSanitizer) return;
  const char* const beginning = block.shared - kRedZone;
  const char* const end = block.shared + launch_->shared_bytes;
  for (size_t i = 0; i < kRedZone; i += 4) {
    const bool below = std::memcmp(beginning + i, &kCanary, 4) != 0;
    if (!below && std::memcmp(end + i, &kCanary, 4) == 0) continue;
    FASTSHAPE_FAIL_RUNTIME(launch_->name, ": block ", text(block.index), " wrote outside its ",
                           launch_->shared_bytes, " bytes of shared memory, near offset ",
                           (below ? beginning : end) + i - block.shared);
  }
}

// ---- A group of blocks -------------------------------------------------------------------------

std::atomic<int> Engine::live_fibers_{0};

// Room for the largest group at once: ThreadSanitizer would take the moving of a table for a race
// with the fibres that read it.
Engine::Engine() {
  constexpr size_t kBlocks = kMaxMultiprocessors * kBlocksPerMultiprocessor;
  fibers_.reserve(kMaxWarps * kWarp);
  warps_.reserve(kMaxWarps);
  blocks_.reserve(kBlocks);
  clusters_.reserve(kBlocks);
}

Engine::~Engine() {
  drop_fibers();
  unmap_memory(arenas_, arena_count_ * kArenaStride);
}

// More fibres when a launch needs more than any before; those that are there stay, since
// ThreadSanitizer takes half a millisecond for each.
void Engine::make_fibers(size_t count) {
  if (stacks_ == nullptr) stacks_ = map_memory(kStacksBytes);  // addresses for the largest group
  for (size_t i = fibers_.size(); i < count; ++i) {
    Fiber& fiber = fibers_.emplace_back();
    mprotect(stacks_ + i * kStackStride, kPage, PROT_NONE);
    fiber.engine = this;
    fiber.stack = stacks_ + i * kStackStride + kPage;
    // Stacks start at different cache sets: with equal ones the fibres of a block would fight for
    // eight lines.
    fiber.context = make_context(fiber.stack, kStackBytes - i % 64 * 64, fiber_main);
#if defined(FASTSHAPE_SANITIZE_THREAD)
    fiber.tsan = __tsan_create_fiber(0);
    ++live_fibers_;
#endif
  }
}

void Engine::drop_fibers() {
#if defined(FASTSHAPE_SANITIZE_THREAD)
  for (Fiber& fiber : fibers_) __tsan_destroy_fiber(fiber.tsan);
  live_fibers_ -= static_cast<int>(fibers_.size());
#endif
  if (stacks_ == nullptr) return;
  unpoison(stacks_, fibers_.size() * kStackStride);
  munmap(stacks_, kStacksBytes);
  stacks_ = nullptr;
  fibers_.clear();
}

void Engine::make_arenas(size_t count) {
  if (count <= arena_count_) return;
  unmap_memory(arenas_, arena_count_ * kArenaStride);
  arenas_ = map_memory(count * kArenaStride);
  arena_count_ = count;
}

void Engine::prepare(Launch& launch, unsigned blocks) {
  const dim3 shape = launch.block;
  threads_per_block_ = shape.x * shape.y * shape.z;
  warps_per_block_ = (threads_per_block_ + kWarp - 1) / kWarp;
  warp_count_ = warps_per_block_ * blocks;
  make_fibers(size_t{warp_count_} * kWarp);
  make_arenas(blocks);
  warps_.assign(warp_count_, Warp{});
  blocks_.assign(blocks, Block{});
  clusters_.assign(blocks / launch.cluster_size, Cluster{});
  ready_warps_.assign((warp_count_ + 63) / 64, 0);
  for (unsigned b = 0; b < blocks; ++b) {
    for (unsigned t = 0; t < threads_per_block_; ++t) {
      const unsigned warp = b * warps_per_block_ + t / kWarp;
      Fiber& fiber = fibers_[warp * kWarp + t % kWarp];
      fiber.block = &blocks_[b];
      fiber.warp = &warps_[warp];
      fiber.warp_index = warp;
      fiber.lane = t % kWarp;
      fiber.thread = dim3(t % shape.x, t / shape.x % shape.y, t / shape.x / shape.y);
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
  {
    const Unseen unseen;
    // Consecutive groups of one launch differ in their block indices only.
    if (launch_ != &launch) prepare(launch, blocks);
    launch_ = &launch;
    ++turn_;
    schedule_ = launch.schedule;
    random_state_ = mix(launch.seed ^ mix(group));
    alive_ = blocks * threads_per_block_;
    cursor_ = schedule_ == Schedule::descending ? warp_count_ - 1 : 0;
    idle_spins_ = 0;
    for (Cluster& cluster : clusters_) cluster = Cluster{};
    for (unsigned i = 0; i < blocks; ++i) start_block(i, group * blocks + i);
  }

#if defined(FASTSHAPE_SANITIZE_THREAD)
  main_tsan_ = __tsan_get_current_fiber();
#endif
  releases(&launch.begun);  // what this operating-system thread did for itself: its thread-locals
  resumed_by_main_ = true;
  switch_stacks(nullptr, next());  // until the last thread has exited, or one has failed

  if (!error_.empty()) {
    acquires(&launch.ended);
    drop_fibers();  // they are suspended in the middle of the kernel
    unmap_memory(arenas_, arena_count_ * kArenaStride);
    arenas_ = nullptr;
    arena_count_ = 0;
    launch_ = nullptr;
    std::string message;
    message.swap(error_);
    throw RuntimeError(message);
  }
  for (const Block& block : blocks_) check_red_zones(block);
}

}  // namespace fastshape::emulation
