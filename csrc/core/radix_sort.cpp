#include "core/radix_sort.h"

#include <cstddef>

namespace fastshape::cpu {

void radix_sort(std::vector<KeyIndex>& items, int bits) {
  constexpr int kDigit = 11;
  std::vector<KeyIndex> other(items.size());
  for (int shift = 0; shift < bits; shift += kDigit) {
    size_t start[(1 << kDigit) + 1] = {};
    const auto digit = [&](const KeyIndex& item) {
      return static_cast<size_t>(item.key >> shift) & ((1 << kDigit) - 1);
    };
    for (const KeyIndex& item : items) ++start[digit(item) + 1];
    if (!items.empty() && start[digit(items[0]) + 1] == items.size()) continue;
    for (int i = 0; i < 1 << kDigit; ++i) start[i + 1] += start[i];
    for (const KeyIndex& item : items) other[start[digit(item)]++] = item;
    items.swap(other);
  }
}

}  // namespace fastshape::cpu
