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
constexpr int kMaxTopBlocks = 4;  // a level of so few blocks needs no level above it

struct alignas(64) LeafRow {
  float x[kFanOut], y[kFanOut], z[kFanOut];
  float nearest[kFanOut];  // squared distance to the nearest pick; -inf in lanes that hold no point
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
  int32_t rows;  // per leaf: 1, 2, 4 or 8
  int32_t levels;
  Block* blocks[kMaxLevels];
  int32_t block_count[kMaxLevels];
  int32_t* worklist[kMaxLevels + 1];  // room for every child of the level, + 16; [0] for leaves
};

// One variant for each instruction set.
struct TreeKernels {
  // Z-order keys, 3 x 8 bits, of the points listed in `order`: cell = (v - low) * scale.
  void (*curve_keys)(const float* points, const int32_t* order, int64_t count, const float low[3],
                     const float scale[3], uint32_t* keys);
  // Fills leaf rows and blocks from points[order[0..count)], with the distances to `start`.
  void (*build)(const Tree& tree, const float* points, const int32_t* order, int64_t count,
                const float start[3]);
  // Writes picks 1 .. num - 1 (pick 0 is the start) and their squared distances (may be null).
  void (*pick)(const Tree& tree, const float* points, int64_t num, int64_t* indices,
               float* distances);
};

extern const TreeKernels kTreeKernelsPortable;
#if defined(FASTSHAPE_X86)
extern const TreeKernels kTreeKernelsAvx2;
extern const TreeKernels kTreeKernelsAvx512;
#endif

}  // namespace fastshape::cpu
