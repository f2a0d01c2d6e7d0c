#include "core/block.cuh"
#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"
#include "core/elementwise.cuh"
#include "isosurface/marching_cubes.h"
#include "isosurface/signs.cuh"

namespace fastshape::cuda {
namespace {

__global__ void count_kernel(SignLattice l) {
  const int64_t word = thread_index();
  if (word > l.num_words) return;
  int vertices = 0, faces = 0;
  if (word < l.num_words) {
    const WordPlace p = word_place(l, word);
    vertices = count_vertices(edge_masks(l, p.x, p.y, p.w));
    if (p.x + 1 < l.size_x && p.y + 1 < l.size_y) {
      const CellRows rows = cell_rows(l, p.x, p.y, p.w);
      for (uint64_t left = rows.crossed; left != 0; left &= left - 1)
        faces += num_triangles(cell_case(rows, __ffsll(static_cast<long long>(left)) - 1));
    }
  }
  l.first_vertex[word] = vertices;
  l.first_face[word] = faces;
}

__global__ void totals_kernel(SignLattice l, MarchingCubesTotals* totals) {
  totals->num_vertices = l.first_vertex[l.num_words];
  totals->num_faces = l.first_face[l.num_words];
}

// A warp for a word: a lane takes its points `lane` and `lane + 32`.
template <class T>
__global__ void fill_kernel(MarchingCubes<T> task, SignLattice l, DenseMesh<T> mesh) {
  const int64_t word = thread_index() / 32;
  if (word >= l.num_words) return;
  const int lane = static_cast<int>(lane_id());
  const WordPlace p = word_place(l, word);
  const EdgeMasks masks = edge_masks(l, p.x, p.y, p.w);
  if ((masks.x | masks.y | masks.z) != 0) {
    const int64_t first = l.first_vertex[word];
    for (int b = lane; b < 64; b += 32) {
      int64_t vertex = first + vertices_before(masks, b);
      const int64_t z = 64 * p.w + b;
      if (masks.x >> b & 1) write_dense_vertex(task, p.x, p.y, z, 0, mesh, vertex++);
      if (masks.y >> b & 1) write_dense_vertex(task, p.x, p.y, z, 1, mesh, vertex++);
      if (masks.z >> b & 1) write_dense_vertex(task, p.x, p.y, z, 2, mesh, vertex++);
    }
  }
  if (p.x + 1 == l.size_x || p.y + 1 == l.size_y) return;
  const CellRows rows = cell_rows(l, p.x, p.y, p.w);
  if (rows.crossed == 0) return;
  VertexRows vertices;
  load_vertex_rows(l, p.x, p.y, p.w, 0, &vertices);
  if (rows.crossed >> 63) load_vertex_rows(l, p.x, p.y, p.w, 1, &vertices);
  int64_t first = l.first_face[word];
  for (int b = lane; b < 64; b += 32) {
    const bool crossed = rows.crossed >> b & 1;
    const unsigned bits = crossed ? cell_case(rows, b) : 0u;
    const int count = num_triangles(bits);
    const int before = warp_inclusive_scan(count);
    if (crossed) {
      int64_t on_edge[kCellEdges];
      cell_vertices(vertices, b, case_edges(bits), on_edge);
      write_triangles(case_triangles(bits), mesh.faces + 3 * (first + before - count),
                      [&](int edge) { return on_edge[edge]; });
    }
    first += __shfl_sync(kAllLanes, before, 31);
  }
}

}  // namespace

size_t marching_cubes_scan_bytes(const SignLattice& lattice) {
  return device_exclusive_scan_workspace_bytes<int64_t>("marching_cubes", lattice.num_words + 1);
}

template <class T>
void marching_cubes_count(const MarchingCubes<T>& task, const SignLattice& lattice, void* scan,
                          MarchingCubesTotals* totals, cudaStream_t stream) {
  const char* op = "marching_cubes";
  const int64_t n = lattice.num_words;
  const size_t scan_bytes = marching_cubes_scan_bytes(lattice);
  if (n != 0)
    launch(op, signs_kernel<T>, blocks_for(32 * n), dim3(kBlock), 0, stream, task, lattice);
  launch(op, count_kernel, blocks_for(n + 1), dim3(kBlock), 0, stream, lattice);
  for (int64_t* counts : {lattice.first_vertex, lattice.first_face})
    device_exclusive_scan<int64_t>(op, scan, scan_bytes, counts, counts, n + 1, stream);
  launch(op, totals_kernel, dim3(1), dim3(1), 0, stream, lattice, totals);
}

template <class T>
void marching_cubes_fill(const MarchingCubes<T>& task, const SignLattice& lattice,
                         const DenseMesh<T>& mesh, cudaStream_t stream) {
  if (lattice.num_words == 0) return;
  launch("marching_cubes", fill_kernel<T>, blocks_for(32 * lattice.num_words), dim3(kBlock), 0,
         stream, task, lattice, mesh);
}

#define FASTSHAPE_INSTANTIATE(T)                                                            \
  template void marching_cubes_count<T>(const MarchingCubes<T>&, const SignLattice&, void*, \
                                        MarchingCubesTotals*, cudaStream_t);                \
  template void marching_cubes_fill<T>(const MarchingCubes<T>&, const SignLattice&,         \
                                       const DenseMesh<T>&, cudaStream_t);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cuda
