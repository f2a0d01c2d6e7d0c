#include "carving/bit_grid_cpu.h"

#include <algorithm>
#include <vector>

#include "carving/bit_grid_loop.h"
#include "core/dispatch.h"
#include "core/parallel.h"

namespace fastshape {
FASTSHAPE_DEFINE_BIT_LOOPS(portable)
}  // namespace fastshape

namespace fastshape::cpu {
namespace {

constexpr int64_t kPieceBytes = 1 << 17;  // what one thread takes at a time
constexpr int64_t kPieceVoxels = 1 << 14;

struct Loops {
  decltype(&pack_rows_portable) pack_rows;
  decltype(&unpack_rows_portable) unpack_rows;
  decltype(&dilate_slabs_portable) dilate_slabs;
  decltype(&dilate_value_slabs_portable) dilate_value_slabs;
  decltype(&count_words_portable) count_words;
  decltype(&word_coords_portable) word_coords;
};

Loops loops() {
#if defined(FASTSHAPE_X86)
  switch (instruction_set()) {
    case InstructionSet::avx512:
      return {pack_rows_avx512,          unpack_rows_avx512, dilate_slabs_avx512,
              dilate_value_slabs_avx512, count_words_avx512, word_coords_avx512};
    case InstructionSet::avx2:
      return {pack_rows_avx2,          unpack_rows_avx2, dilate_slabs_avx2,
              dilate_value_slabs_avx2, count_words_avx2, word_coords_avx2};
    case InstructionSet::portable:
      break;
  }
#endif
  return {pack_rows_portable,          unpack_rows_portable, dilate_slabs_portable,
          dilate_value_slabs_portable, count_words_portable, word_coords_portable};
}

int64_t rows_a_piece(const BitGrid& g) { return std::max<int64_t>(1, kPieceBytes / g.size_z); }

}  // namespace

void pack_bits(const uint8_t* values, const BitGrid& grid) {
  if (num_words(grid) == 0) return;
  const Loops loop = loops();
  parallel_for(num_rows(grid), rows_a_piece(grid),
               [&](int64_t begin, int64_t end) { loop.pack_rows(values, grid, begin, end); });
}

void unpack_bits(const BitGrid& grid, uint8_t* values) {
  if (num_words(grid) == 0) return;
  const Loops loop = loops();
  parallel_for(num_rows(grid), rows_a_piece(grid),
               [&](int64_t begin, int64_t end) { loop.unpack_rows(grid, values, begin, end); });
}

namespace {

// f(masks, scratch, begin, end) for pieces of slabs of so many bytes.
template <class F>
void for_slab_pieces(const BitGrid& grid, int64_t slab_bytes, const F& f) {
  const int64_t count = grid.size_y * grid.row_words;
  std::vector<uint64_t> below(count), above(count), inside(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t w = i % grid.row_words;
    below[i] = w > 0;
    above[i] = static_cast<uint64_t>(w + 1 < grid.row_words) << 63;
    inside[i] = bits_in_grid(grid, w);
  }
  const SlabMasks masks{below.data(), above.data(), inside.data()};
  const int64_t slabs = std::max<int64_t>(8, kPieceBytes / slab_bytes);
  parallel_for(grid.batch * grid.size_x, slabs, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> scratch(kScratchSlabs * (count + 2 * grid.row_words));
    f(masks, scratch.data(), begin, end);
  });
}

}  // namespace

void dilate_bits(const BitGrid& grid, uint64_t* dilated) {
  if (num_words(grid) == 0) return;
  const Loops loop = loops();
  for_slab_pieces(grid, 8 * grid.size_y * grid.row_words,
                  [&](const SlabMasks& masks, uint64_t* scratch, int64_t begin, int64_t end) {
                    loop.dilate_slabs(grid, masks, scratch, dilated, begin, end);
                  });
}

void dilate_values(const uint8_t* values, const BitGrid& grid, uint8_t* dilated) {
  if (num_words(grid) == 0) return;
  const Loops loop = loops();
  for_slab_pieces(grid, grid.size_y * grid.size_z,
                  [&](const SlabMasks& masks, uint64_t* scratch, int64_t begin, int64_t end) {
                    loop.dilate_value_slabs(values, grid, masks, scratch, dilated, begin, end);
                  });
}

void set_bits(const VoxelList& list, const bool* chosen, const BitGrid& grid, int64_t* bad_row) {
  parallel_for(list.num_voxels, kPieceVoxels, [&](int64_t begin, int64_t end) {
    // Voxels that follow each other often share a word: it is written once.
    int64_t word = -1;
    uint64_t bits = 0;
    const auto flush = [&] {
      if (word >= 0) __atomic_fetch_or(grid.words + word, bits, __ATOMIC_RELAXED);
    };
    for (int64_t i = begin; i < end; ++i) {
      if (chosen != nullptr && !chosen[i]) continue;
      if (!is_in_grid(grid, list, i)) {
        int64_t seen = __atomic_load_n(bad_row, __ATOMIC_RELAXED);
        while (i < seen && !__atomic_compare_exchange_n(bad_row, &seen, i, false, __ATOMIC_RELAXED,
                                                        __ATOMIC_RELAXED)) {
        }
        continue;
      }
      const int64_t here = voxel_word(grid, list, i);
      if (here != word) {
        flush();
        word = here;
        bits = 0;
      }
      bits |= voxel_bit(list, i);
    }
    flush();
  });
}

void get_bits(const VoxelList& list, const BitGrid& grid, bool* found) {
  parallel_for(list.num_voxels, kPieceVoxels, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      found[i] = is_in_grid(grid, list, i) &&
                 (grid.words[voxel_word(grid, list, i)] & voxel_bit(list, i)) != 0;
    }
  });
}

void count_set_bits(const BitGrid& grid, int64_t* first) {
  const Loops loop = loops();
  const int64_t pieces = num_pieces(grid), words = num_words(grid);
  parallel_for(pieces, 64, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t start = p * kPieceWords;
      first[p] = loop.count_words(grid.words + start, std::min(kPieceWords, words - start));
    }
  });
  int64_t sum = 0;
  for (int64_t p = 0; p < pieces; ++p) {
    const int64_t here = first[p];
    first[p] = sum;
    sum += here;
  }
  first[pieces] = sum;
}

void bit_coords(const BitGrid& grid, const int64_t* first, int32_t* coords, int columns) {
  const Loops loop = loops();
  const int64_t words = num_words(grid);
  parallel_for(num_pieces(grid), 16, [&](int64_t begin, int64_t end) {
    loop.word_coords(grid, begin * kPieceWords, std::min(words, end * kPieceWords),
                     coords + columns * first[begin], columns);
  });
}

}  // namespace fastshape::cpu
