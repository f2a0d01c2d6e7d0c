// What the instruction sets' translation units give to bit_grid_cpu.cpp.
#pragma once

#include "carving/bit_grid.h"

namespace fastshape::cpu {

// For one slab, all rows at one x. `below` and `above`: which bits a word takes over from the word
// before and behind it, none across the ends of rows.
struct SlabMasks {
  const uint64_t* below;   // 1 or 0
  const uint64_t* above;   // 1 << 63 or 0
  const uint64_t* inside;  // the bits that are in the grid
};

// Words that dilate_slabs and dilate_value_slabs write to: slabs of words, each with a row of zeros
// before and behind it.
constexpr int64_t kScratchSlabs = 7;

#define FASTSHAPE_DECLARE(suffix)                                                                  \
  void pack_rows_##suffix(const uint8_t* values, const BitGrid& grid, int64_t begin, int64_t end); \
  void unpack_rows_##suffix(const BitGrid& grid, uint8_t* values, int64_t begin, int64_t end);     \
  void dilate_slabs_##suffix(const BitGrid& grid, const SlabMasks& masks, uint64_t* scratch,       \
                             uint64_t* dilated, int64_t begin, int64_t end);                       \
  void dilate_value_slabs_##suffix(const uint8_t* values, const BitGrid& grid,                     \
                                   const SlabMasks& masks, uint64_t* scratch, uint8_t* dilated,    \
                                   int64_t begin, int64_t end);                                    \
  int64_t count_words_##suffix(const uint64_t* words, int64_t count);                              \
  void word_coords_##suffix(const BitGrid& grid, int64_t begin, int64_t end, int32_t* coords,      \
                            int columns);
FASTSHAPE_DECLARE(portable)
FASTSHAPE_DECLARE(avx2)
FASTSHAPE_DECLARE(avx512)
#undef FASTSHAPE_DECLARE

}  // namespace fastshape::cpu
