// On CUDA: one thread for a word, and a warp for the values or coordinates of a word, so that they
// are read and written in rows.
#include "carving/bit_grid.h"
#include "core/block.cuh"
#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"
#include "core/elementwise.cuh"

namespace fastshape::cuda {
namespace {

static_assert(kPieceWords == kBlock, "a block counts a piece");

__global__ void pack_kernel(const uint8_t* values, BitGrid g) {
  const int64_t word = thread_index() / 32;
  if (word >= num_words(g)) return;  // whole warps
  const int64_t row = word / g.row_words, z = 64 * (word % g.row_words) + lane_id();
  const uint8_t* from = values + row * g.size_z;
  const uint64_t low = __ballot_sync(kAllLanes, z < g.size_z && from[z] != 0);
  const uint64_t high = __ballot_sync(kAllLanes, z + 32 < g.size_z && from[z + 32] != 0);
  if (lane_id() == 0) g.words[word] = high << 32 | low;
}

__global__ void unpack_kernel(BitGrid g, uint8_t* values) {
  const int64_t word = thread_index() / 32;
  if (word >= num_words(g)) return;
  const int64_t row = word / g.row_words, begin = 64 * (word % g.row_words);
  const uint64_t bits = g.words[word];
  for (int64_t bit = lane_id(); bit < 64 && begin + bit < g.size_z; bit += 32)
    values[row * g.size_z + begin + bit] = static_cast<uint8_t>(bits >> bit & 1);
}

__global__ void dilate_kernel(BitGrid g, uint64_t* dilated) {
  const int64_t word = thread_index();
  if (word >= num_words(g)) return;
  const int64_t w = word % g.row_words, row = word / g.row_words;
  const int64_t y = row % g.size_y, x = row / g.size_y % g.size_x;
  uint64_t bits = 0;
  for (int dx = -1; dx <= 1; ++dx) {
    if (x + dx < 0 || x + dx >= g.size_x) continue;
    for (int dy = -1; dy <= 1; ++dy) {
      if (y + dy < 0 || y + dy >= g.size_y) continue;
      bits |= dilate_along_z(g, g.words + (row + dx * g.size_y + dy) * g.row_words, w);
    }
  }
  dilated[word] = bits;
}

// A warp for a word: the nine rows are united as bytes, then the bits with their neighbors.
__global__ void dilate_values_kernel(const uint8_t* values, BitGrid g, uint8_t* dilated) {
  const int64_t word = thread_index() / 32;
  if (word >= num_words(g)) return;  // whole warps
  const int64_t row = word / g.row_words, begin = 64 * (word % g.row_words);
  const int64_t y = row % g.size_y, x = row / g.size_y % g.size_x;
  const int64_t z = begin + lane_id();
  const int64_t beside = lane_id() == 0 ? begin - 1 : begin + 64;  // of two lanes
  unsigned low = 0, high = 0, edge = 0;
  for (int dx = -1; dx <= 1; ++dx) {
    if (x + dx < 0 || x + dx >= g.size_x) continue;
    for (int dy = -1; dy <= 1; ++dy) {
      if (y + dy < 0 || y + dy >= g.size_y) continue;
      const uint8_t* from = values + (row + dx * g.size_y + dy) * g.size_z;
      if (z < g.size_z) low |= from[z];
      if (z + 32 < g.size_z) high |= from[z + 32];
      if (lane_id() < 2 && beside >= 0 && beside < g.size_z) edge |= from[beside];
    }
  }
  const uint64_t first = __ballot_sync(kAllLanes, low != 0);
  const uint64_t last = __ballot_sync(kAllLanes, high != 0);
  const uint64_t edges = __ballot_sync(kAllLanes, edge != 0);
  const uint64_t set = last << 32 | first;
  const uint64_t bits = set | set << 1 | set >> 1 | (edges & 1) | (edges >> 1 & 1) << 63;
  for (int64_t bit = lane_id(); bit < 64 && begin + bit < g.size_z; bit += 32)
    dilated[row * g.size_z + begin + bit] = static_cast<uint8_t>(bits >> bit & 1);
}

__global__ void set_kernel(VoxelList list, const bool* chosen, BitGrid g, int64_t* bad_row) {
  const int64_t i = thread_index();
  if (i >= list.num_voxels || (chosen != nullptr && !chosen[i])) return;
  if (!is_in_grid(g, list, i)) {
    atomicMin(reinterpret_cast<long long*>(bad_row), static_cast<long long>(i));
    return;
  }
  atomicOr(reinterpret_cast<unsigned long long*>(g.words + voxel_word(g, list, i)),
           static_cast<unsigned long long>(voxel_bit(list, i)));
}

__global__ void get_kernel(VoxelList list, BitGrid g, bool* found) {
  const int64_t i = thread_index();
  if (i >= list.num_voxels) return;
  found[i] = is_in_grid(g, list, i) && (g.words[voxel_word(g, list, i)] & voxel_bit(list, i)) != 0;
}

struct CountShared {
  BlockReduceStorage<int> storage;
};

__global__ void count_kernel(BitGrid g, int64_t pieces, int64_t* first) {
  CountShared& shared = shared_memory<CountShared>();
  const int64_t word = thread_index();
  const int here = word < num_words(g) ? number_of_bits(g.words[word]) : 0;
  const int sum = block_reduce(shared.storage, here, Sum());
  if (threadIdx.x != 0) return;
  first[blockIdx.x] = sum;
  if (blockIdx.x == 0) first[pieces] = 0;
}

__global__ void coords_kernel(BitGrid g, const int64_t* first, int32_t* coords, int columns) {
  CountShared& shared = shared_memory<CountShared>();
  const int64_t word = thread_index();
  const uint64_t mine = word < num_words(g) ? g.words[word] : 0;
  int all = 0;
  const int before = block_exclusive_scan(shared.storage, number_of_bits(mine), all);
  for (int source = 0; source < 32; ++source) {
    const auto bits = static_cast<uint64_t>(
        __shfl_sync(kAllLanes, static_cast<unsigned long long>(mine), source));
    const int64_t at = first[blockIdx.x] + __shfl_sync(kAllLanes, before, source);
    if (bits == 0) continue;  // the whole warp
    const WordPlace place = word_place(g, word - lane_id() + source);
    for (int bit = static_cast<int>(lane_id()); bit < 64; bit += 32) {
      if ((bits >> bit & 1) == 0) continue;
      const int lower = number_of_bits(bits & ((uint64_t{1} << bit) - 1));
      write_voxel(coords + columns * (at + lower), columns, place, bit);
    }
  }
}

}  // namespace

void pack_bits(const uint8_t* values, const BitGrid& grid, cudaStream_t stream) {
  if (num_words(grid) == 0) return;
  launch("pack_bits", pack_kernel, blocks_for(32 * num_words(grid)), dim3(kBlock), 0, stream,
         values, grid);
}

void unpack_bits(const BitGrid& grid, uint8_t* values, cudaStream_t stream) {
  if (num_words(grid) == 0) return;
  launch("unpack_bits", unpack_kernel, blocks_for(32 * num_words(grid)), dim3(kBlock), 0, stream,
         grid, values);
}

void dilate_bits(const BitGrid& grid, uint64_t* dilated, cudaStream_t stream) {
  if (num_words(grid) == 0) return;
  launch("dilate_bits", dilate_kernel, blocks_for(num_words(grid)), dim3(kBlock), 0, stream, grid,
         dilated);
}

void dilate_values(const uint8_t* values, const BitGrid& grid, uint8_t* dilated,
                   cudaStream_t stream) {
  if (num_words(grid) == 0) return;
  launch("dilate_values", dilate_values_kernel, blocks_for(32 * num_words(grid)), dim3(kBlock), 0,
         stream, values, grid, dilated);
}

void set_bits(const VoxelList& list, const bool* chosen, const BitGrid& grid, int64_t* bad_row,
              cudaStream_t stream) {
  if (list.num_voxels == 0) return;
  launch("set_bits", set_kernel, blocks_for(list.num_voxels), dim3(kBlock), 0, stream, list, chosen,
         grid, bad_row);
}

void get_bits(const VoxelList& list, const BitGrid& grid, bool* found, cudaStream_t stream) {
  if (list.num_voxels == 0) return;
  launch("get_bits", get_kernel, blocks_for(list.num_voxels), dim3(kBlock), 0, stream, list, grid,
         found);
}

size_t count_set_bits_workspace_bytes(int64_t num_words) {
  const int64_t pieces = (num_words + kPieceWords - 1) / kPieceWords;
  return device_exclusive_scan_workspace_bytes<int64_t>("count_set_bits", pieces + 1);
}

void count_set_bits(const BitGrid& grid, void* workspace, size_t workspace_bytes, int64_t* first,
                    cudaStream_t stream) {
  const char* op = "count_set_bits";
  const int64_t pieces = num_pieces(grid);
  if (pieces == 0) {
    fill_bytes(op, first, 0, sizeof(int64_t), stream);
    return;
  }
  launch(op, count_kernel, dim3(static_cast<unsigned>(pieces)), dim3(kBlock), sizeof(CountShared),
         stream, grid, pieces, first);
  device_exclusive_scan<int64_t>(op, workspace, workspace_bytes, first, first, pieces + 1, stream);
}

void bit_coords(const BitGrid& grid, const int64_t* first, int32_t* coords, int columns,
                cudaStream_t stream) {
  if (num_words(grid) == 0) return;
  launch("bit_coords", coords_kernel, dim3(static_cast<unsigned>(num_pieces(grid))), dim3(kBlock),
         sizeof(CountShared), stream, grid, first, coords, columns);
}

}  // namespace fastshape::cuda
