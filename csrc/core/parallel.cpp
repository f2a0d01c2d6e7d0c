#include "core/parallel.h"

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastshape {
namespace {

std::atomic<int> wanted_threads{0};  // 0: nobody said, the hardware's
thread_local bool inside_team = false;

// The loops of one call follow each other within microseconds, and waking a thread that sleeps
// takes tens of them: whoever waits looks this often, some 20 us, before it sleeps.
constexpr int kSpins = 500;

template <class Done>
bool spin_until(const Done& done) {
  for (int spins = 0; spins < kSpins; ++spins) {
    if (done()) return true;
#if defined(__x86_64__)
    _mm_pause();
#endif
  }
  return done();
}

class Pool {
 public:
  // One team at a time; a second caller waits. Teams need all their threads at once, so they cannot
  // share workers.
  void run(int threads, void (*body)(void*, int, int), void* context) {
    std::lock_guard<std::mutex> one_team(team_mutex_);
    {
      std::unique_lock<std::mutex> lock(mutex_);
      while (static_cast<int>(workers_.size()) < threads - 1) {
        const int rank = static_cast<int>(workers_.size()) + 1;
        workers_.emplace_back([this, rank, seen = team_.load()] { work(rank, seen); });
      }
      body_ = body;
      context_ = context;
      threads_ = threads;
      unfinished_ = threads - 1;
      error_ = nullptr;
      ++team_;
    }
    start_.notify_all();
    call(0);
    spin_until([this] { return unfinished_ == 0; });
    std::unique_lock<std::mutex> lock(mutex_);
    finish_.wait(lock, [this] { return unfinished_ == 0; });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void work(int rank, uint64_t seen) {
    for (;;) {
      spin_until([&] { return team_ != seen; });
      std::unique_lock<std::mutex> lock(mutex_);
      start_.wait(lock, [&] { return team_ != seen; });
      seen = team_;
      if (rank >= threads_) continue;
      lock.unlock();
      call(rank);
      lock.lock();
      if (--unfinished_ == 0) finish_.notify_one();
    }
  }

  void call(int rank) {
    inside_team = true;
    try {
      body_(context_, rank, threads_);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
    inside_team = false;
  }

  std::mutex team_mutex_;
  std::mutex mutex_;
  std::condition_variable start_, finish_;
  std::vector<std::thread> workers_;
  void (*body_)(void*, int, int) = nullptr;
  void* context_ = nullptr;
  int threads_ = 0;
  std::atomic<int> unfinished_{0};
  std::atomic<uint64_t> team_{0};
  std::exception_ptr error_;
};

// Never destroyed: workers may still sleep in it when the process ends. A forked child has no
// workers, so it starts with a new pool.
std::atomic<Pool*> pool{nullptr};
std::once_flag fork_handler;

Pool& the_pool() {
  std::call_once(fork_handler, [] {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, [] {
      pool.store(nullptr);
      inside_team = false;
    });
#endif
  });
  Pool* current = pool.load(std::memory_order_acquire);
  if (current == nullptr) {
    auto* fresh = new Pool;
    if (pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

}  // namespace

int num_threads() {
  if (inside_team) return 1;
  const int wanted = wanted_threads.load(std::memory_order_relaxed);
  if (wanted > 0) return wanted;
  static const int hardware = static_cast<int>(std::thread::hardware_concurrency());
  return hardware > 0 ? hardware : 1;
}

void set_num_threads(int threads) {
  wanted_threads.store(threads < 1 ? 1 : threads, std::memory_order_relaxed);
}

void detail::run_team(int threads, void (*body)(void*, int, int), void* context) {
  if (threads <= 1 || inside_team) {
    // A team within a team gets one thread: bodies ask `threads` and never assume more.
    body(context, 0, 1);
    return;
  }
  the_pool().run(threads, body, context);
}

void TeamBarrier::wait() {
  const uint32_t generation = generation_.load(std::memory_order_relaxed);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    waiting_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; ++spins) {
    if (spins < 4000) {
#if defined(__x86_64__)
      _mm_pause();
#endif
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace fastshape
