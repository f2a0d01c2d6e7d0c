// How the CPU keeps a cloud: a tree of bounding boxes with sixteen children a node, everything in
// rows of 16 floats.
//
// Points are sorted along a space-filling curve and cut into leaves of `rows` x 16. A block
// describes 16 consecutive children: blocks of level 0 describe leaves, blocks of level l > 0
// describe the blocks of level l - 1.
#pragma once

#include <cstdint>

namespace fastshape::cpu {

constexpr int kFanOut = 16;
constexpr int kMaxLevels = 8;
constexpr int kMaxRows = 4;  // of a leaf, the other choice is 1; its lanes fill a mask of 64 bits
constexpr int kMaxTopBlocks = 4;  // a level of so few blocks needs no level above it

struct alignas(64) LeafRow {
  float x[kFanOut], y[kFanOut], z[kFanOut];
  float nearest[kFanOut];  // squared distance to the nearest pick; -inf in lanes without a point
  int32_t index[kFanOut];  // of the point, in its cloud
};

struct alignas(64) Block {
  float low[3][kFanOut], high[3][kFanOut];
  float farthest[kFanOut];  // the largest `nearest` below that child; -inf for a missing child
  int32_t index[kFanOut];   // of the lowest-index point that has it
};

struct Tree {
  LeafRow* leaf_rows;
  int32_t leaves;
  int32_t rows;  // per leaf: 1 or kMaxRows
  int32_t levels;
  Block* blocks[kMaxLevels];
  int32_t block_count[kMaxLevels];
  int32_t* worklist[kMaxLevels + 1];  // [0] leaves, [l + 1] blocks of level l; 16 spare places each
};

struct KeyedPoint {
  uint32_t key;  // where it lies along the curve
  uint32_t index;
};

struct Box {
  float low[3], high[3];
};

struct Farthest {
  float distance;  // squared
  int32_t index;
};

// One variant for each instruction set. Pointers and plain structs only: a std template
// instantiated there could be shared by the linker with code for every processor.
struct TreeKernels {
  // The box of points[0..count), and whether all of them are finite (otherwise it means nothing).
  bool (*bounds)(const float* points, int64_t count, Box* box);
  // Fills in the keys: Z-order, `bits` (at most 8) for each axis, cell = (v - low) * scale. With
  // `first` >= 0 also the indices first, first + 1, ...; otherwise the indices are there.
  void (*curve_keys)(const float* points, KeyedPoint* items, int64_t count, int64_t first,
                     const float low[3], float scale, int bits);
  // Fills leaves first .. last - 1, and what level 0 says of them, from items[0..count), with the
  // distances to `start`.
  void (*build_leaves)(const Tree& tree, const float* points, const KeyedPoint* items,
                       int64_t count, const float start[3], int64_t first, int64_t last);
  // Fills the rest of the tree.
  void (*build_blocks)(const Tree& tree);
  // Writes picks 1 .. num - 1 (num > 1) and their squared distances (may be null) of a tree into
  // which pick 0 has been taken.
  void (*pick)(const Tree& tree, const float* points, int64_t num, int64_t* indices,
               float* distances);
};

extern const TreeKernels kTreeKernelsPortable;
#if defined(FASTSHAPE_X86)
extern const TreeKernels kTreeKernelsAvx2;
extern const TreeKernels kTreeKernelsAvx512;
#endif

}  // namespace fastshape::cpu
