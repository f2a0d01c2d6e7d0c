// Texts for the messages of the emulation.
#pragma once

#include <string>

#include "core/emulation/scheduler.h"

namespace fastshape::emulation {

const char* name_of(Operation operation);
inline bool same(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}
std::string text(Site site);
std::string text(dim3 v);
std::string hexadecimal(uint32_t v);
// {3, 4, 5, 9} as "3-5, 9".
std::string ranges(const std::vector<unsigned>& numbers);
std::vector<unsigned> lanes_of(uint32_t mask);

}  // namespace fastshape::emulation
