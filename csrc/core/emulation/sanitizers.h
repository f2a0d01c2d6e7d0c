// What AddressSanitizer and ThreadSanitizer are told about fibres, barriers and shared memory.
// Empty in a plain build.
//
// The macros come from CMake, not from the compiler: scheduler.cpp itself is compiled without
// -fsanitize=thread (its tables are written by every fibre on purpose) and still has to make these
// calls.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__) && !defined(FASTSHAPE_SANITIZE_ADDRESS)
#define FASTSHAPE_SANITIZE_ADDRESS
#endif
#if defined(__SANITIZE_THREAD__) && !defined(FASTSHAPE_SANITIZE_THREAD)
#define FASTSHAPE_SANITIZE_THREAD
#endif

#if defined(FASTSHAPE_SANITIZE_ADDRESS)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(FASTSHAPE_SANITIZE_THREAD)
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreReadsBegin(const char* file, int line);
extern "C" void AnnotateIgnoreReadsEnd(const char* file, int line);
extern "C" void AnnotateIgnoreWritesBegin(const char* file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char* file, int line);
#define FASTSHAPE_NO_THREAD_SANITIZER __attribute__((no_sanitize_thread))
#else
#define FASTSHAPE_NO_THREAD_SANITIZER
#endif

namespace fastshape::emulation {

#if defined(FASTSHAPE_SANITIZE_THREAD)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif
#if defined(FASTSHAPE_SANITIZE_ADDRESS)
constexpr bool kAddressSanitizer = true;
#else
constexpr bool kAddressSanitizer = false;
#endif

// Everything before `releases(x)` in one fibre happens before everything after `acquires(x)` in
// another.
inline void releases([[maybe_unused]] const void* address) {
#if defined(FASTSHAPE_SANITIZE_THREAD)
  __tsan_release(const_cast<void*>(address));
#endif
}
inline void acquires([[maybe_unused]] const void* address) {
#if defined(FASTSHAPE_SANITIZE_THREAD)
  __tsan_acquire(const_cast<void*>(address));
#endif
}

// ThreadSanitizer does not see the scope's accesses, memcpy and the like included.
struct Unseen {
#if defined(FASTSHAPE_SANITIZE_THREAD)
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  Unseen(const Unseen&) = delete;
#else
  Unseen() {}
#endif
};

inline void poison([[maybe_unused]] const void* address, [[maybe_unused]] size_t bytes) {
#if defined(FASTSHAPE_SANITIZE_ADDRESS)
  __asan_poison_memory_region(address, bytes);
#endif
}
inline void unpoison([[maybe_unused]] const void* address, [[maybe_unused]] size_t bytes) {
#if defined(FASTSHAPE_SANITIZE_ADDRESS)
  __asan_unpoison_memory_region(address, bytes);
#endif
}

}  // namespace fastshape::emulation
