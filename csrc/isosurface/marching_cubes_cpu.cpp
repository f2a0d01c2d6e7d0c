#include "isosurface/marching_cubes_cpu.h"

#include <algorithm>
#include <vector>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "isosurface/marching_cubes_loop.h"

namespace fastshape {
FASTSHAPE_DEFINE_SLABS(portable)
}  // namespace fastshape

namespace fastshape::cpu {
namespace {

template <class T>
struct Loops {
  decltype(&count_slab_portable) count_slab;
  void (*sign_rows)(const MarchingCubes<T>&, const SignLattice&, int64_t, int64_t);
  void (*fill_slab)(const MarchingCubes<T>&, const SignLattice&, int64_t, const DenseMesh<T>&);
};

template <class T>
Loops<T> loops() {
#if defined(FASTSHAPE_X86)
  switch (instruction_set()) {
    case InstructionSet::avx512:
      return {count_slab_avx512, sign_rows_avx512, fill_slab_avx512};
    case InstructionSet::avx2:
      return {count_slab_avx2, sign_rows_avx2, fill_slab_avx2};
    case InstructionSet::portable:
      break;
  }
#endif
  return {count_slab_portable, sign_rows_portable, fill_slab_portable};
}

}  // namespace

template <class T>
void marching_cubes_count(const MarchingCubes<T>& task, const SignLattice& lattice,
                          MarchingCubesTotals* totals) {
  *totals = {0, 0};
  if (lattice.num_words == 0) return;
  const Loops<T> loop = loops<T>();
  const int64_t rows_a_piece = std::max<int64_t>(1, 65536 / task.size_z);
  parallel_for(task.size_x * task.size_y, rows_a_piece,
               [&](int64_t begin, int64_t end) { loop.sign_rows(task, lattice, begin, end); });

  std::vector<MarchingCubesTotals> slabs(static_cast<size_t>(task.size_x));
  parallel_for(task.size_x, 1, [&](int64_t begin, int64_t end) {
    for (int64_t x = begin; x < end; ++x) slabs[x] = loop.count_slab(lattice, x);
  });
  for (MarchingCubesTotals& slab : slabs) {
    const MarchingCubesTotals here = slab;
    slab = *totals;
    totals->num_vertices += here.num_vertices;
    totals->num_faces += here.num_faces;
  }
  const int64_t slab_words = task.size_y * lattice.row_words;
  parallel_for(task.size_x, 16, [&](int64_t begin, int64_t end) {
    for (int64_t x = begin; x < end; ++x) {
      for (int64_t word = x * slab_words; word < (x + 1) * slab_words; ++word) {
        lattice.first_vertex[word] += slabs[x].num_vertices;
        lattice.first_face[word] += slabs[x].num_faces;
      }
    }
  });
}

template <class T>
void marching_cubes_fill(const MarchingCubes<T>& task, const SignLattice& lattice,
                         const DenseMesh<T>& mesh) {
  if (lattice.num_words == 0) return;
  const Loops<T> loop = loops<T>();
  constexpr int64_t kSlabs = 4;  // a slab finds its values in the cache that the one before filled
  parallel_for(task.size_x, kSlabs, [&](int64_t begin, int64_t end) {
    for (int64_t x = begin; x < end; ++x) loop.fill_slab(task, lattice, x, mesh);
  });
}

#define FASTSHAPE_INSTANTIATE(T)                                                     \
  template void marching_cubes_count<T>(const MarchingCubes<T>&, const SignLattice&, \
                                        MarchingCubesTotals*);                       \
  template void marching_cubes_fill<T>(const MarchingCubes<T>&, const SignLattice&,  \
                                       const DenseMesh<T>&);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cpu
