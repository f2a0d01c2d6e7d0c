// Large results that are written for the first time.
#pragma once

#include <cstddef>

namespace fastshape {

// Asks the system for pages of 2 MiB in a range of memory that is about to be written: every 4 KiB
// of a fresh one cost an interrupt else. Only advice: nothing happens where it is not known, and of
// memory that is in use nothing changes.
void advise_huge_pages(void* data, size_t bytes);

}  // namespace fastshape
