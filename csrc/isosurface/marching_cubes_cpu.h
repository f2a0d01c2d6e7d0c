// What the instruction sets' translation units give to marching_cubes_cpu.cpp.
#pragma once

#include "isosurface/marching_cubes.h"

namespace fastshape::cpu {

// sign_rows: the bits of rows [begin, end). count_slab: the words at one x, with what stands before
// each of them in the slab; returns the slab's sums. fill_slab: the vertices and faces at one x.
#define FASTSHAPE_DECLARE_FOR(T, suffix)                                                           \
  void sign_rows_##suffix(const MarchingCubes<T>& task, const SignLattice& lattice, int64_t begin, \
                          int64_t end);                                                            \
  void fill_slab_##suffix(const MarchingCubes<T>& task, const SignLattice& lattice, int64_t x,     \
                          const DenseMesh<T>& mesh);
#define FASTSHAPE_DECLARE(suffix)                                                 \
  MarchingCubesTotals count_slab_##suffix(const SignLattice& lattice, int64_t x); \
  FASTSHAPE_DECLARE_FOR(float, suffix)                                            \
  FASTSHAPE_DECLARE_FOR(double, suffix)
FASTSHAPE_DECLARE(portable)
FASTSHAPE_DECLARE(avx2)
FASTSHAPE_DECLARE(avx512)
#undef FASTSHAPE_DECLARE
#undef FASTSHAPE_DECLARE_FOR

}  // namespace fastshape::cpu
