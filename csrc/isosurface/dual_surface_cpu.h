// What the instruction sets' translation units give to dual_surface_cpu.cpp: the dual surface of a
// lattice, one slab, all rows at one x, at a time.
#pragma once

#include "isosurface/dual_surface.h"

namespace fastshape::cpu {

// What a slab's cubes have: by class, how many dual vertices and pairs, and how many quads.
struct DualSlab {
  int64_t vertices[kDualClasses];
  int64_t pairs[kDualClasses];
  int64_t quads;
};

// The quads that a slab has of an order, those that begin outside and all others.
struct QuadCounts {
  int64_t outside, inside;
};

// mark_cubes: the crossed cubes' bits, and how many of the slab come before each word; returns how
// many there are. count_cubes: lists the cubes and finds their cases. number_cubes: their first
// vertices and pairs; `next` becomes what comes behind the slab. fill_cubes: their vertices and
// pairs, and its quads from `next` on.
#define FASTSHAPE_DECLARE(suffix)                                                           \
  int64_t mark_cubes_##suffix(const DualLattice& lattice, int64_t x);                       \
  DualSlab count_cubes_##suffix(const DualLattice& lattice, bool manifold, int64_t x,       \
                                const DualCubes& cubes);                                    \
  void number_cubes_##suffix(const DualLattice& lattice, int64_t x, const DualCubes& cubes, \
                             DualSlab next);                                                \
  QuadCounts count_quads_##suffix(const DualLattice& lattice, FaceOrder order, int64_t x);  \
  void fill_cubes_##suffix(const DualLattice& lattice, FaceOrder order, int64_t x,          \
                           const DualCubes& cubes, QuadCounts next, const DualMesh& mesh);
FASTSHAPE_DECLARE(portable)
FASTSHAPE_DECLARE(avx2)
FASTSHAPE_DECLARE(avx512)
#undef FASTSHAPE_DECLARE

}  // namespace fastshape::cpu
