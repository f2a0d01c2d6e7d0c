// Grids of bits: what of a voxel grid is there, and what touches it.
//
// A row along z is a run of 64-bit words, bit z % 64 of word z / 64; the bits behind the end of a
// row are zero. Rows are in the order of (batch, x, y), so that set bits are found in the order of
// (batch, x, y, z).
//
// Dilation: a bit is set where one of the 27 bits around it, itself included, was. What lies beside
// the grid is not set and stays so.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"

namespace fastshape {

constexpr int64_t kPieceWords = 128;  // words whose set bits are counted together

struct BitGrid {
  uint64_t* words;
  int64_t batch, size_x, size_y, size_z;
  int64_t row_words;
};

FASTSHAPE_HOST_DEVICE BitGrid bit_grid(void* words, int64_t batch, int64_t size_x, int64_t size_y,
                                       int64_t size_z) {
  return {static_cast<uint64_t*>(words), batch, size_x, size_y, size_z, (size_z + 63) / 64};
}

FASTSHAPE_HOST_DEVICE int64_t num_rows(const BitGrid& g) { return g.batch * g.size_x * g.size_y; }
FASTSHAPE_HOST_DEVICE int64_t num_words(const BitGrid& g) { return num_rows(g) * g.row_words; }
FASTSHAPE_HOST_DEVICE int64_t num_pieces(const BitGrid& g) {
  return (num_words(g) + kPieceWords - 1) / kPieceWords;
}

// The bits of word `w` of a row that are in the grid.
FASTSHAPE_HOST_DEVICE uint64_t bits_in_grid(const BitGrid& g, int64_t w) {
  const int64_t there = g.size_z - 64 * w;
  return there >= 64 ? ~uint64_t{0} : (uint64_t{1} << there) - 1;
}

FASTSHAPE_HOST_DEVICE int number_of_bits(uint64_t word) {
#if defined(__CUDA_ARCH__)
  return __popcll(word);
#else
  return __builtin_popcountll(word);
#endif
}

// Word `w` of a row, each bit with its two neighbors along z.
FASTSHAPE_HOST_DEVICE uint64_t dilate_along_z(const BitGrid& g, const uint64_t* row, int64_t w) {
  uint64_t word = row[w] | row[w] << 1 | row[w] >> 1;
  if (w > 0) word |= row[w - 1] >> 63;
  if (w + 1 < g.row_words) word |= row[w + 1] << 63;
  return word & bits_in_grid(g, w);
}

// Voxels as rows of integers: x, y, z, or the number in the batch before them.
struct VoxelList {
  const int32_t* coords;  // (num_voxels, columns)
  int64_t num_voxels;
  int columns;  // 3 or 4
};

FASTSHAPE_HOST_DEVICE const int32_t* voxel_xyz(const VoxelList& list, int64_t i) {
  return list.coords + list.columns * (i + 1) - 3;
}
FASTSHAPE_HOST_DEVICE int64_t voxel_batch(const VoxelList& list, int64_t i) {
  return list.columns == 4 ? list.coords[4 * i] : 0;
}
FASTSHAPE_HOST_DEVICE bool is_in_grid(const BitGrid& g, const VoxelList& list, int64_t i) {
  const int32_t* p = voxel_xyz(list, i);
  const int64_t b = voxel_batch(list, i);
  return b >= 0 && b < g.batch && p[0] >= 0 && p[0] < g.size_x && p[1] >= 0 && p[1] < g.size_y &&
         p[2] >= 0 && p[2] < g.size_z;
}
// The word of a voxel of the grid; its bit is z % 64.
FASTSHAPE_HOST_DEVICE int64_t voxel_word(const BitGrid& g, const VoxelList& list, int64_t i) {
  const int32_t* p = voxel_xyz(list, i);
  return ((voxel_batch(list, i) * g.size_x + p[0]) * g.size_y + p[1]) * g.row_words + (p[2] >> 6);
}
FASTSHAPE_HOST_DEVICE uint64_t voxel_bit(const VoxelList& list, int64_t i) {
  return uint64_t{1} << (voxel_xyz(list, i)[2] & 63);
}

// Where a word's bits lie, for writing its coordinates.
struct WordPlace {
  int32_t batch, x, y, z;  // of its lowest bit
};
FASTSHAPE_HOST_DEVICE WordPlace word_place(const BitGrid& g, int64_t word) {
  const int64_t row = word / g.row_words, slab = row / g.size_y;
  return {static_cast<int32_t>(slab / g.size_x), static_cast<int32_t>(slab % g.size_x),
          static_cast<int32_t>(row % g.size_y), static_cast<int32_t>(64 * (word % g.row_words))};
}
FASTSHAPE_HOST_DEVICE void write_voxel(int32_t* out, int columns, const WordPlace& p, int bit) {
  if (columns == 4) *out++ = p.batch;
  out[0] = p.x;
  out[1] = p.y;
  out[2] = p.z + bit;
}

// pack_bits, unpack_bits: values (batch, x, y, z), a byte each, set where it is not zero.
// dilate_bits: to another grid of the same size. dilate_values: all three at once, of bytes to
// bytes; of `grid` only the size is looked at.
// set_bits: sets those of the listed voxels, or of those among them that are chosen, in a grid that
// the caller zeroed; *bad_row becomes the first row that is not in the grid if that is below what
// is there. get_bits: whether the listed voxels are set; false for one that is not in the grid.
// count_set_bits: first (pieces + 1), the set bits before each piece of kPieceWords words, and all.
// bit_coords: the set bits as rows of `columns` integers, given `first`.
namespace cpu {
void pack_bits(const uint8_t* values, const BitGrid& grid);
void unpack_bits(const BitGrid& grid, uint8_t* values);
void dilate_bits(const BitGrid& grid, uint64_t* dilated);
void dilate_values(const uint8_t* values, const BitGrid& grid, uint8_t* dilated);
void set_bits(const VoxelList& list, const bool* chosen, const BitGrid& grid, int64_t* bad_row);
void get_bits(const VoxelList& list, const BitGrid& grid, bool* found);
void count_set_bits(const BitGrid& grid, int64_t* first);
void bit_coords(const BitGrid& grid, const int64_t* first, int32_t* coords, int columns);
}  // namespace cpu

namespace cuda {
void pack_bits(const uint8_t* values, const BitGrid& grid, cudaStream_t stream);
void unpack_bits(const BitGrid& grid, uint8_t* values, cudaStream_t stream);
void dilate_bits(const BitGrid& grid, uint64_t* dilated, cudaStream_t stream);
void dilate_values(const uint8_t* values, const BitGrid& grid, uint8_t* dilated,
                   cudaStream_t stream);
void set_bits(const VoxelList& list, const bool* chosen, const BitGrid& grid, int64_t* bad_row,
              cudaStream_t stream);
void get_bits(const VoxelList& list, const BitGrid& grid, bool* found, cudaStream_t stream);
size_t count_set_bits_workspace_bytes(int64_t num_words);
void count_set_bits(const BitGrid& grid, void* workspace, size_t workspace_bytes, int64_t* first,
                    cudaStream_t stream);
void bit_coords(const BitGrid& grid, const int64_t* first, int32_t* coords, int columns,
                cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
