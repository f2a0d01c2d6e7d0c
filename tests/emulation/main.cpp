// emulation_test list | CASE [SCHEDULE [SEED]] | correct [SCHEDULE [SEED]] | benchmark
//
// Exit status: 0 the result is right, 1 it is wrong, 2 the emulation reports an error
// (RuntimeError), 3 no such case. A sanitizer exits with its own.
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>

#include "cases.h"
#include "core/cuda_utils.cuh"
#include "core/parallel.h"

namespace {

using fastshape::cuda::launch;
using fastshape::cuda::test::Case;

__global__ void barriers(int rounds) {
  for (int i = 0; i < rounds; ++i) __syncthreads();
}

__global__ void shuffles(int rounds, unsigned* out) {
  unsigned v = threadIdx.x;
  for (int i = 0; i < rounds; ++i) v += __shfl_xor_sync(0xffffffffu, v, 1 + (i & 15));
  out[threadIdx.x] = v;
}

__global__ void empty() {}

// Of the processor, not of the clock: other processes do not count.
double seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

// Switches of one operating-system thread: a barrier of n threads is n of them.
void benchmark() {
  std::vector<unsigned> out(1024);
  for (unsigned threads : {32u, 256u, 1024u}) {
    const int rounds = static_cast<int>(20000000 / threads);
    double begin = seconds();
    launch("barriers", barriers, 1, threads, 0, nullptr, rounds);
    const double barrier = seconds() - begin;
    begin = seconds();
    launch("shuffles", shuffles, 1, threads, 0, nullptr, rounds, out.data());
    const double shuffle = seconds() - begin;
    begin = seconds();
    launch("empty", empty, 20000000 / threads / 4, threads, 0, nullptr);
    const double start = seconds() - begin;
    std::printf(
        "%4u threads: %.1f M barrier arrivals/s, %.1f M shuffles/s, %.1f M threads started/s\n",
        threads, 20 / barrier, 20 / shuffle, 5 / start);
  }
}

int run(const Case& test) {
  try {
    const std::string wrong = test.run();
    std::printf("%s: %s\n", test.name, wrong.empty() ? "right" : ("wrong: " + wrong).c_str());
    return wrong.empty() ? 0 : 1;
  } catch (const fastshape::RuntimeError& error) {
    std::printf("%s: error: %s\n", test.name, error.what());
    return 2;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "list", schedule = argc > 2 ? argv[2] : "ascending";
  using fastshape::emulation::Schedule;
  fastshape::emulation::set_schedule(schedule == "random"       ? Schedule::random
                                     : schedule == "descending" ? Schedule::descending
                                                                : Schedule::ascending,
                                     argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 0);
  fastshape::set_num_threads(2);
  if (name == "benchmark") return benchmark(), 0;
  int status = name == "correct" || name == "list" ? 0 : 3;
  for (const bool correct : {true, false}) {
    for (const Case& test :
         correct ? fastshape::cuda::test::correct_cases() : fastshape::cuda::test::fault_cases()) {
      if (name == "list") std::printf("%s %s\n", correct ? "correct" : "fault", test.name);
      if ((name == "correct" && correct) || name == test.name) {
        const int result = run(test);
        status = status == 3 || result > status ? result : status;
      }
    }
  }
  return status;
}
