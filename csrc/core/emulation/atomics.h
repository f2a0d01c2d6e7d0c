// Atomics and ordered loads and stores, with CUDA's overload sets. They are real atomics: blocks
// may run on different operating-system threads. CUDA's are relaxed, and so are these.
#pragma once

#include "core/emulation/scheduler.h"

namespace fastshape::emulation {

// Not instrumented: every fibre writes the engine's counter of idle spins.
FASTSHAPE_NO_THREAD_SANITIZER inline void note_atomic(const void* address) {
  Engine& engine = *fiber().engine;
  if (kThreadSanitizer || engine.random()) engine.before_atomic(address);
}
FASTSHAPE_NO_THREAD_SANITIZER inline void note_progress() { fiber().engine->progress(); }

// Replaces the value by update(value); returns the old one.
template <class T, class F>
inline T atomic_update(T* address, F update) {
  note_atomic(address);
  T old, desired;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do {
    desired = update(old);
  } while (!__atomic_compare_exchange(address, &old, &desired, false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED));
  // A failed attempt at a lock is no progress: see spin_wait.
  if (std::memcmp(&old, &desired, sizeof(T)) != 0) note_progress();
  return old;
}

}  // namespace fastshape::emulation

#define FASTSHAPE_ATOMIC(name, type, expression)                                                  \
  inline type name(type* address, type value) {                                                   \
    return fastshape::emulation::atomic_update(address,                                           \
                                               [value](type old) -> type { return expression; }); \
  }
FASTSHAPE_ATOMIC(atomicAdd, unsigned, old + value)
FASTSHAPE_ATOMIC(atomicAdd, unsigned long long, old + value)
FASTSHAPE_ATOMIC(atomicAdd, float, old + value)
FASTSHAPE_ATOMIC(atomicAdd, double, old + value)
FASTSHAPE_ATOMIC(atomicAdd, int,
                 static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
FASTSHAPE_ATOMIC(atomicSub, int,
                 static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value)))
FASTSHAPE_ATOMIC(atomicSub, unsigned, old - value)
FASTSHAPE_ATOMIC(atomicExch, int, (static_cast<void>(old), value))
FASTSHAPE_ATOMIC(atomicExch, unsigned, (static_cast<void>(old), value))
FASTSHAPE_ATOMIC(atomicExch, unsigned long long, (static_cast<void>(old), value))
FASTSHAPE_ATOMIC(atomicExch, float, (static_cast<void>(old), value))
#define FASTSHAPE_ATOMIC_ORDER(type)                           \
  FASTSHAPE_ATOMIC(atomicMin, type, value < old ? value : old) \
  FASTSHAPE_ATOMIC(atomicMax, type, old < value ? value : old)
FASTSHAPE_ATOMIC_ORDER(int)
FASTSHAPE_ATOMIC_ORDER(unsigned)
FASTSHAPE_ATOMIC_ORDER(long long)
FASTSHAPE_ATOMIC_ORDER(unsigned long long)
#undef FASTSHAPE_ATOMIC_ORDER
#define FASTSHAPE_ATOMIC_BITS(type)             \
  FASTSHAPE_ATOMIC(atomicAnd, type, old& value) \
  FASTSHAPE_ATOMIC(atomicOr, type, old | value) \
  FASTSHAPE_ATOMIC(atomicXor, type, old ^ value)
FASTSHAPE_ATOMIC_BITS(int)
FASTSHAPE_ATOMIC_BITS(unsigned)
FASTSHAPE_ATOMIC_BITS(unsigned long long)
#undef FASTSHAPE_ATOMIC_BITS
#undef FASTSHAPE_ATOMIC

#define FASTSHAPE_ATOMIC_CAS(type)                                                \
  inline type atomicCAS(type* address, type compare, type value) {                \
    return fastshape::emulation::atomic_update(                                   \
        address, [=](type old) -> type { return old == compare ? value : old; }); \
  }
FASTSHAPE_ATOMIC_CAS(int)
FASTSHAPE_ATOMIC_CAS(unsigned)
FASTSHAPE_ATOMIC_CAS(unsigned long long)
#undef FASTSHAPE_ATOMIC_CAS

inline void __threadfence() { fastshape::emulation::fiber().engine->fence(); }
inline void __threadfence_block() { fastshape::emulation::fiber().engine->fence(); }

namespace fastshape::cuda {

template <class T>
inline T load_acquire(const T* address) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  emulation::note_atomic(address);
  T value;
  __atomic_load(address, &value, __ATOMIC_ACQUIRE);
  return value;
}
template <class T>
inline T load_relaxed(const T* address) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  emulation::note_atomic(address);
  T value;
  __atomic_load(address, &value, __ATOMIC_RELAXED);
  return value;
}
template <class T>
inline void store_release(T* address, std::common_type_t<T> value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  emulation::note_atomic(address);
  emulation::note_progress();
  __atomic_store(address, &value, __ATOMIC_RELEASE);
}
template <class T>
inline void store_relaxed(T* address, std::common_type_t<T> value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  emulation::note_atomic(address);
  emulation::note_progress();
  __atomic_store(address, &value, __ATOMIC_RELAXED);
}

}  // namespace fastshape::cuda
