// Sorting integer keys on the CPU.
#pragma once

#include <cstdint>
#include <vector>

namespace fastshape::cpu {

struct KeyIndex {
  uint64_t key;
  uint32_t index;
};

// Stable, ascending, by the low `bits` bits of the key. Digits that all keys share cost one pass of
// reading.
void radix_sort(std::vector<KeyIndex>& items, int bits);

}  // namespace fastshape::cpu
