// What the threads of a warp, a block, a cluster or a grid do together. All of it ends in the
// scheduler.
#pragma once

#include <type_traits>

#include "core/emulation/scheduler.h"

// Every call site is known by its place in the source: the message of an error names it, and
// threads that arrive at one barrier from different lines are told so.
#define FASTSHAPE_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define FASTSHAPE_SITE (::fastshape::emulation::Site{file, line})

#define threadIdx (::fastshape::emulation::fiber().thread)
#define blockIdx (::fastshape::emulation::fiber().block->index)
#define blockDim (::fastshape::emulation::fiber().engine->launch().block)
#define gridDim (::fastshape::emulation::fiber().engine->launch().grid)
constexpr int warpSize = 32;

// ---- Block -------------------------------------------------------------------------------------
inline void __syncthreads(FASTSHAPE_HERE) {
  using namespace fastshape::emulation;
  fiber().engine->block_barrier(Operation::syncthreads, false, FASTSHAPE_SITE);
}
inline int __syncthreads_or(int predicate, FASTSHAPE_HERE) {
  using namespace fastshape::emulation;
  return fiber().engine->block_barrier(Operation::syncthreads_or, predicate != 0, FASTSHAPE_SITE);
}
inline int __syncthreads_and(int predicate, FASTSHAPE_HERE) {
  using namespace fastshape::emulation;
  return fiber().engine->block_barrier(Operation::syncthreads_and, predicate != 0, FASTSHAPE_SITE);
}
inline int __syncthreads_count(int predicate, FASTSHAPE_HERE) {
  using namespace fastshape::emulation;
  return fiber().engine->block_barrier(Operation::syncthreads_count, predicate != 0,
                                       FASTSHAPE_SITE);
}

// ---- Warp --------------------------------------------------------------------------------------
namespace fastshape::emulation {

inline uint64_t collective(Operation operation, unsigned mask, uint64_t value, Site site) {
  return fiber().engine->warp_collective(operation, mask, value, 0, site);
}

template <class T>
inline T shuffle(unsigned mask, T value, uint32_t source, Site site) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles numbers of 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = fiber().engine->warp_collective(Operation::shuffle, mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline void check_width(int width, Site site) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    fiber().engine->fail("the width of a shuffle must be a power of two up to 32", site);
  }
}

}  // namespace fastshape::emulation

inline void __syncwarp(unsigned mask = 0xffffffffu, FASTSHAPE_HERE) {
  using namespace fastshape::emulation;
  collective(Operation::syncwarp, mask, 0, FASTSHAPE_SITE);
}

// A source outside the lane's segment of `width` lanes gives the lane its own value.
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, FASTSHAPE_HERE) {
  using namespace fastshape::emulation;
  check_width(width, FASTSHAPE_SITE);
  const int lane = static_cast<int>(fiber().lane), segment = lane & ~(width - 1);
  return shuffle(mask, value, static_cast<uint32_t>(segment + (source & (width - 1))),
                 FASTSHAPE_SITE);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTSHAPE_HERE) {
  using namespace fastshape::emulation;
  check_width(width, FASTSHAPE_SITE);
  const int lane = static_cast<int>(fiber().lane), segment = lane & ~(width - 1);
  const int source = lane - static_cast<int>(delta);
  return shuffle(mask, value, static_cast<uint32_t>(source < segment ? lane : source),
                 FASTSHAPE_SITE);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTSHAPE_HERE) {
  using namespace fastshape::emulation;
  check_width(width, FASTSHAPE_SITE);
  const int lane = static_cast<int>(fiber().lane), segment = lane & ~(width - 1);
  const int source = lane + static_cast<int>(delta);
  return shuffle(mask, value, static_cast<uint32_t>(source >= segment + width ? lane : source),
                 FASTSHAPE_SITE);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, FASTSHAPE_HERE) {
  using namespace fastshape::emulation;
  check_width(width, FASTSHAPE_SITE);
  const int lane = static_cast<int>(fiber().lane), segment = lane & ~(width - 1);
  const int source = lane ^ bits;
  return shuffle(mask, value, static_cast<uint32_t>(source >= segment + width ? lane : source),
                 FASTSHAPE_SITE);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, FASTSHAPE_HERE) {
  using namespace fastshape::emulation;
  return static_cast<unsigned>(collective(Operation::ballot, mask, predicate != 0, FASTSHAPE_SITE));
}
inline int __any_sync(unsigned mask, int predicate, FASTSHAPE_HERE) {
  using namespace fastshape::emulation;
  return static_cast<int>(collective(Operation::any, mask, predicate != 0, FASTSHAPE_SITE));
}
inline int __all_sync(unsigned mask, int predicate, FASTSHAPE_HERE) {
  using namespace fastshape::emulation;
  return static_cast<int>(collective(Operation::all, mask, predicate != 0, FASTSHAPE_SITE));
}

#define FASTSHAPE_REDUCE(name, type, operation)                                                \
  inline type name(unsigned mask, type value, FASTSHAPE_HERE) {                                \
    using namespace fastshape::emulation;                                                      \
    return static_cast<type>(                                                                  \
        collective(Operation::operation, mask, static_cast<unsigned>(value), FASTSHAPE_SITE)); \
  }
FASTSHAPE_REDUCE(__reduce_add_sync, unsigned, reduce_add)
FASTSHAPE_REDUCE(__reduce_add_sync, int, reduce_add)
FASTSHAPE_REDUCE(__reduce_min_sync, unsigned, reduce_min_unsigned)
FASTSHAPE_REDUCE(__reduce_min_sync, int, reduce_min_signed)
FASTSHAPE_REDUCE(__reduce_max_sync, unsigned, reduce_max_unsigned)
FASTSHAPE_REDUCE(__reduce_max_sync, int, reduce_max_signed)
FASTSHAPE_REDUCE(__reduce_and_sync, unsigned, reduce_and)
FASTSHAPE_REDUCE(__reduce_or_sync, unsigned, reduce_or)
FASTSHAPE_REDUCE(__reduce_xor_sync, unsigned, reduce_xor)
#undef FASTSHAPE_REDUCE

template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, FASTSHAPE_HERE) {
  using namespace fastshape::emulation;
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return static_cast<unsigned>(collective(Operation::match_any, mask, bits, FASTSHAPE_SITE));
}

// The device may answer with any set of lanes that has the caller in it; this one finds those who
// hope for more.
inline unsigned __activemask() { return 1u << fastshape::emulation::fiber().lane; }

namespace fastshape::cuda {

inline unsigned lane_id() { return emulation::fiber().lane; }
inline unsigned warp_id() {
  const emulation::Fiber& fiber = emulation::fiber();
  return fiber.warp_index - fiber.block->first_warp;
}

// ---- Cluster -----------------------------------------------------------------------------------
inline unsigned cluster_rank() { return emulation::fiber().block->cluster_rank; }
inline unsigned cluster_size() { return emulation::fiber().engine->launch().cluster_size; }
inline void cluster_arrive(FASTSHAPE_HERE) {
  emulation::fiber().engine->cluster_arrive(FASTSHAPE_SITE);
}
inline void cluster_wait(FASTSHAPE_HERE) {
  emulation::fiber().engine->cluster_wait(FASTSHAPE_SITE);
}
inline void cluster_sync(FASTSHAPE_HERE) {
  emulation::fiber().engine->cluster_arrive(FASTSHAPE_SITE);
  emulation::fiber().engine->cluster_wait(FASTSHAPE_SITE);
}
// Another block's copy of what `pointer` points to in this block's shared memory.
template <class T>
inline T* cluster_map(T* pointer, unsigned rank, FASTSHAPE_HERE) {
  return static_cast<T*>(emulation::fiber().engine->map_shared(pointer, rank, FASTSHAPE_SITE));
}

// ---- Shared memory -----------------------------------------------------------------------------
template <class S>
inline S& shared_memory(FASTSHAPE_HERE) {
  static_assert(
      std::is_trivially_default_constructible<S>::value && std::is_trivially_destructible<S>::value,
      "nobody constructs what is in shared memory");
  return *static_cast<S*>(
      emulation::fiber().engine->shared_pointer(0, sizeof(S), alignof(S), FASTSHAPE_SITE));
}
// A dynamic array behind the struct: `offset` bytes into the block's shared memory.
template <class T>
inline T* shared_tail(size_t offset, FASTSHAPE_HERE) {
  return static_cast<T*>(
      emulation::fiber().engine->shared_pointer(offset, 0, alignof(T), FASTSHAPE_SITE));
}

// In every loop that waits for another thread's write.
inline void spin_wait(FASTSHAPE_HERE) { emulation::fiber().engine->spin(FASTSHAPE_SITE); }

namespace detail {
// On the device, blocks that are not resident would wait for ever.
inline void check_cooperative(FASTSHAPE_HERE) {
  emulation::Engine& engine = *emulation::fiber().engine;
  if (!engine.launch().cooperative) {
    engine.fail("grid_sync in a kernel that was not started by launch_cooperative", FASTSHAPE_SITE);
  }
}
}  // namespace detail

}  // namespace fastshape::cuda
