// The kernels that the emulation is tested with: each case launches some and compares.
#pragma once

#include <string>
#include <vector>

namespace fastshape::cuda::test {

struct Case {
  const char* name;
  std::string (*run)();  // what is wrong; empty if nothing is. Errors of the emulation are thrown.
};

// Kernels that keep the rules.
std::vector<Case> correct_cases();
// Kernels with one planted fault each.
std::vector<Case> fault_cases();

// Two sequences of numbers that should be equal.
template <class Got, class Want>
std::string compare(const char* what, const Got& got, const Want& want) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (got[i] == want[i]) continue;
    return std::string(what) + "[" + std::to_string(i) + "] is " + std::to_string(got[i]) +
           ", should be " + std::to_string(want[i]);
  }
  return "";
}

}  // namespace fastshape::cuda::test
