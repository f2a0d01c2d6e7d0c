// The CPU's loops over bit grids, compiled once per instruction set: include it from one .cpp each.
#pragma once

#include "carving/bit_grid_cpu.h"
#include "carving/bit_words.h"

namespace fastshape {
namespace {

// ---- Bytes and bits ----------------------------------------------------------------------------

inline void pack_rows_loop(const uint8_t* values, const BitGrid& g, int64_t begin, int64_t end) {
  const int64_t whole = g.size_z / 64, rest = g.size_z % 64;
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* from = values + row * g.size_z;
    uint64_t* words = g.words + row * g.row_words;
    for (int64_t w = 0; w < whole; ++w) words[w] = pack_word(from + 64 * w);
    if (rest == 0) continue;
    uint8_t last[64] = {};
    __builtin_memcpy(last, from + 64 * whole, static_cast<size_t>(rest));
    words[whole] = pack_word(last);
  }
}

inline void unpack_rows_loop(const BitGrid& g, uint8_t* values, int64_t begin, int64_t end) {
  const int64_t whole = g.size_z / 64, rest = g.size_z % 64;
  for (int64_t row = begin; row < end; ++row) {
    const uint64_t* words = g.words + row * g.row_words;
    uint8_t* to = values + row * g.size_z;
    for (int64_t w = 0; w < whole; ++w) unpack_word(words[w], to + 64 * w);
    if (rest == 0) continue;
    uint8_t last[64];
    unpack_word(words[whole], last);
    __builtin_memcpy(to + 64 * whole, last, static_cast<size_t>(rest));
  }
}

// ---- Dilation ----------------------------------------------------------------------------------

// One slab with its neighbors along z, then along y, to `out`; `rows` has a row of zeros before and
// behind it.
inline void dilate_slab(const uint64_t* in, int64_t count, int64_t row_words,
                        const cpu::SlabMasks& m, uint64_t* rows, uint64_t* out) {
  const int64_t last = count - 1;
  const auto neighbors = [&](int64_t i, uint64_t before, uint64_t behind) {
    return (in[i] | in[i] << 1 | in[i] >> 1 | (before >> 63 & m.below[i]) |
            (behind << 63 & m.above[i])) &
           m.inside[i];
  };
  rows[0] = neighbors(0, 0, count > 1 ? in[1] : 0);
  for (int64_t i = 1; i < last; ++i) rows[i] = neighbors(i, in[i - 1], in[i + 1]);
  if (last > 0) rows[last] = neighbors(last, in[last - 1], 0);
  const uint64_t *above = rows - row_words, *below = rows + row_words;
  for (int64_t i = 0; i < count; ++i) out[i] = rows[i] | above[i] | below[i];
}

// Slabs [begin, end) of the batch * size_x that there are, with their neighbors along x: three of
// them are at hand at a time. words_of(s) gives a slab's words, out_of(s) says where its dilated
// ones go, done(s) is told when they are there.
template <class WordsOf, class OutOf, class Done>
inline void for_dilated_slabs(const BitGrid& g, const cpu::SlabMasks& masks, uint64_t* scratch,
                              int64_t begin, int64_t end, const WordsOf& words_of,
                              const OutOf& out_of, const Done& done) {
  const int64_t count = g.size_y * g.row_words, stride = count + 2 * g.row_words;
  uint64_t* const rows = scratch + g.row_words;
  uint64_t* const nothing = scratch + stride;
  const auto slab = [&](int64_t s) { return scratch + (2 + s % 3) * stride; };
  const auto prepare = [&](int64_t s) {
    dilate_slab(words_of(s), count, g.row_words, masks, rows, slab(s));
  };
  for (int64_t s = begin; s < end; ++s) {
    const int64_t x = s % g.size_x;
    const bool has_before = x > 0, has_behind = x + 1 < g.size_x;
    if (s == begin && has_before) prepare(s - 1);
    if (s == begin || x == 0) prepare(s);
    if (has_behind) prepare(s + 1);
    const uint64_t* here = slab(s);
    const uint64_t* before = has_before ? slab(s - 1) : nothing;
    const uint64_t* behind = has_behind ? slab(s + 1) : nothing;
    uint64_t* out = out_of(s);
    for (int64_t i = 0; i < count; ++i) out[i] = here[i] | before[i] | behind[i];
    done(s);
  }
}

inline void dilate_slabs_loop(const BitGrid& g, const cpu::SlabMasks& masks, uint64_t* scratch,
                              uint64_t* dilated, int64_t begin, int64_t end) {
  const int64_t count = g.size_y * g.row_words;
  for_dilated_slabs(
      g, masks, scratch, begin, end, [&](int64_t s) { return g.words + s * count; },
      [&](int64_t s) { return dilated + s * count; }, [](int64_t) {});
}

inline void dilate_value_slabs_loop(const uint8_t* values, const BitGrid& g,
                                    const cpu::SlabMasks& masks, uint64_t* scratch,
                                    uint8_t* dilated, int64_t begin, int64_t end) {
  const int64_t stride = (g.size_y + 2) * g.row_words, bytes = g.size_y * g.size_z;
  BitGrid packed = g, result = g;
  packed.words = scratch + 5 * stride;
  result.words = scratch + 6 * stride;
  for_dilated_slabs(
      g, masks, scratch, begin, end,
      [&](int64_t s) {
        pack_rows_loop(values + s * bytes, packed, 0, g.size_y);
        return packed.words;
      },
      [&](int64_t) { return result.words; },
      [&](int64_t s) { unpack_rows_loop(result, dilated + s * bytes, 0, g.size_y); });
}

// ---- Coordinates -------------------------------------------------------------------------------

inline int64_t count_words_loop(const uint64_t* words, int64_t count) {
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += number_of_bits(words[i]);
  return sum;
}

inline void word_coords_loop(const BitGrid& g, int64_t begin, int64_t end, int32_t* coords,
                             int columns) {
  for (int64_t word = begin; word < end; ++word) {
    uint64_t left = g.words[word];
    if (left == 0) continue;
    const WordPlace place = word_place(g, word);
    for (; left != 0; left &= left - 1, coords += columns)
      write_voxel(coords, columns, place, __builtin_ctzll(left));
  }
}

}  // namespace

#define FASTSHAPE_DEFINE_BIT_LOOPS(suffix)                                                      \
  namespace cpu {                                                                               \
  void pack_rows_##suffix(const uint8_t* values, const BitGrid& grid, int64_t begin,            \
                          int64_t end) {                                                        \
    pack_rows_loop(values, grid, begin, end);                                                   \
  }                                                                                             \
  void unpack_rows_##suffix(const BitGrid& grid, uint8_t* values, int64_t begin, int64_t end) { \
    unpack_rows_loop(grid, values, begin, end);                                                 \
  }                                                                                             \
  void dilate_slabs_##suffix(const BitGrid& grid, const SlabMasks& masks, uint64_t* scratch,    \
                             uint64_t* dilated, int64_t begin, int64_t end) {                   \
    dilate_slabs_loop(grid, masks, scratch, dilated, begin, end);                               \
  }                                                                                             \
  void dilate_value_slabs_##suffix(const uint8_t* values, const BitGrid& grid,                  \
                                   const SlabMasks& masks, uint64_t* scratch, uint8_t* dilated, \
                                   int64_t begin, int64_t end) {                                \
    dilate_value_slabs_loop(values, grid, masks, scratch, dilated, begin, end);                 \
  }                                                                                             \
  int64_t count_words_##suffix(const uint64_t* words, int64_t count) {                          \
    return count_words_loop(words, count);                                                      \
  }                                                                                             \
  void word_coords_##suffix(const BitGrid& grid, int64_t begin, int64_t end, int32_t* coords,   \
                            int columns) {                                                      \
    word_coords_loop(grid, begin, end, coords, columns);                                        \
  }                                                                                             \
  }

}  // namespace fastshape
