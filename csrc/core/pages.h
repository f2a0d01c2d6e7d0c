// Memory that the system has not given yet.
//
// A large tensor that torch has just allocated is written page by page for the first time, and each
// page of 4 KB is a trap into the kernel: for gradients of hundreds of megabytes these cost more
// than the writing.
#pragma once

#include <cstddef>
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastshape {

// Says that all of a large array is about to be written, so that pages may be large ones. No more
// than a wish: where it is not heard the array is as it was.
inline void prefer_large_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  constexpr size_t kLarge = size_t{16} << 20;  // below it allocators hand out memory that was used
  if (bytes < kLarge) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace fastshape
