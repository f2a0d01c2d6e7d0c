#include "core/dispatch.h"

#include <atomic>

#include "core/check.h"

namespace fastshape {
namespace {

std::atomic<int> chosen{-1};  // -1: nobody chose, the best one

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

}  // namespace

InstructionSet best_instruction_set() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  // __builtin_cpu_supports also asks whether the operating system saves the wide registers.
  static const InstructionSet best = [] {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    return avx512 ? InstructionSet::avx512 : avx2 ? InstructionSet::avx2 : InstructionSet::portable;
  }();
  return best;
#else
  return InstructionSet::portable;
#endif
}

InstructionSet instruction_set() {
  const int set = chosen.load(std::memory_order_relaxed);
  return set < 0 ? best_instruction_set() : static_cast<InstructionSet>(set);
}

bool has_bfloat16_products() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  static const bool has = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") != 0;
  }();
  return has && instruction_set() == InstructionSet::avx512;
#else
  return false;
#endif
}

void set_instruction_set(InstructionSet set) {
  FASTSHAPE_CHECK_VALUE(set <= best_instruction_set(), "this processor has no ",
                        instruction_set_name(set), "; it has ",
                        instruction_set_name(best_instruction_set()));
  chosen.store(static_cast<int>(set), std::memory_order_relaxed);
}

const char* instruction_set_name(InstructionSet set) { return kNames[static_cast<int>(set)]; }

InstructionSet instruction_set_from_name(const std::string& name) {
  for (int i = 0; i < 3; ++i)
    if (name == kNames[i]) return static_cast<InstructionSet>(i);
  FASTSHAPE_CHECK_VALUE(false, "instruction set must be 'portable', 'avx2' or 'avx512', got '",
                        name, "'");
  return InstructionSet::portable;
}

}  // namespace fastshape
