// Threads for the CPU kernels: a small pool of our own.
//
// Not OpenMP: torch's wheels carry their own copy of libgomp under another name, a second copy
// beside it would mean two pools that spin against each other, a shared library that may be missing
// at import, and reports from ThreadSanitizer that mean nothing. Ours sleeps when idle, survives
// fork() and is understood by ThreadSanitizer.
//
// No result may depend on the number of threads or on how the work was cut.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace fastshape {

// How many threads parallel_for may use, the calling one included. 1 inside a parallel region.
int num_threads();
void set_num_threads(int threads);  // >= 1; the Python layer passes torch.get_num_threads()

namespace detail {
// Calls body(context, rank, threads) for every rank at the same time; rank 0 is the caller.
// Rethrows the first exception.
void run_team(int threads, void (*body)(void* context, int rank, int threads), void* context);
}  // namespace detail

// f(rank, threads) on `threads` threads that all run at the same time, so that they may wait for
// each other.
template <class F>
void parallel_team(int threads, F&& f) {
  using Function = std::remove_reference_t<F>;
  detail::run_team(
      threads,
      [](void* context, int rank, int count) { (*static_cast<Function*>(context))(rank, count); },
      const_cast<void*>(static_cast<const void*>(std::addressof(f))));
}

// f(begin, end) over [0, n) in pieces of `grain`, handed out in order to whoever is free.
template <class F>
void parallel_for(int64_t n, int64_t grain, F&& f) {
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  const int64_t pieces = (n + grain - 1) / grain;
  const int threads = static_cast<int>(pieces < num_threads() ? pieces : num_threads());
  if (threads <= 1) {
    f(int64_t{0}, n);
    return;
  }
  std::atomic<int64_t> next{0};
  parallel_team(threads, [&](int, int) {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= n) return;
      f(begin, begin + grain < n ? begin + grain : n);
    }
  });
}

// A barrier for the threads of one team: spins briefly, then gives its time slice away.
class TeamBarrier {
 public:
  explicit TeamBarrier(int threads) : threads_(threads) {}
  void wait();

 private:
  const int threads_;
  std::atomic<int> waiting_{0};
  std::atomic<uint32_t> generation_{0};
};

}  // namespace fastshape
