// Which points of a lattice are inside, as bits: the first pass of every surface on CUDA.
#pragma once

#include "core/block.cuh"
#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"
#include "isosurface/marching_cubes.h"

namespace fastshape::cuda {
namespace {

// A warp for a word.
template <class T>
__global__ void signs_kernel(MarchingCubes<T> task, SignLattice l) {
  const int64_t word = thread_index() / 32;
  if (word >= l.num_words) return;
  const int64_t row = word / l.row_words;
  const int64_t z = 64 * (word % l.row_words) + lane_id();
  const T* values = task.values + row * l.size_z;
  const uint64_t low = __ballot_sync(kAllLanes, z < l.size_z && values[z] < task.level);
  const uint64_t high = __ballot_sync(kAllLanes, z + 32 < l.size_z && values[z + 32] < task.level);
  if (lane_id() == 0) l.inside[word] = high << 32 | low;
}

}  // namespace
}  // namespace fastshape::cuda
