// On CUDA: cells sorted by (x, y, z), each looks for the neighbors that would own its edges; then
// the owned edges sorted, and each cell looks its vertices up.
#include "core/block.cuh"
#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"
#include "core/elementwise.cuh"
#include "core/workspace.h"
#include "isosurface/marching_cubes_sparse.h"

namespace fastshape::cuda {
namespace {

constexpr uint64_t kNotCrossed = ~uint64_t{0};  // sorts behind all cells

struct SparseWorkspace {
  uint64_t *keys, *sorted_keys;    // (N,)
  uint32_t *cells, *sorted_cells;  // (N,)
  uint8_t* cases;                  // (N,), by cell
  uint16_t* owned;                 // (N,), by sorted place: the edges whose vertices it owns
  int64_t* first_vertex;           // (N + 1,), by sorted place
  int64_t* first_face;             // (N + 1,), by cell
  unsigned char *sort, *scan;
  size_t sort_bytes, scan_bytes;
  size_t bytes;
};

SparseWorkspace sparse_workspace(void* begin, int64_t n) {
  const char* op = "marching_cubes_sparse";
  WorkspaceCutter cutter(begin);
  SparseWorkspace w{};
  w.keys = cutter.take<uint64_t>(n);
  w.sorted_keys = cutter.take<uint64_t>(n);
  w.cells = cutter.take<uint32_t>(n);
  w.sorted_cells = cutter.take<uint32_t>(n);
  w.cases = cutter.take<uint8_t>(n);
  w.owned = cutter.take<uint16_t>(n);
  w.first_vertex = cutter.take<int64_t>(n + 1);
  w.first_face = cutter.take<int64_t>(n + 1);
  w.sort_bytes = device_sort_pairs_workspace_bytes<uint64_t>(op, n);
  w.sort = cutter.take<unsigned char>(static_cast<int64_t>(w.sort_bytes));
  w.scan_bytes = device_exclusive_scan_workspace_bytes<int64_t>(op, n + 1);
  w.scan = cutter.take<unsigned char>(static_cast<int64_t>(w.scan_bytes));
  w.bytes = cutter.bytes();
  return w;
}

struct FillWorkspace {
  uint64_t *keys, *sorted_keys;    // (V,)
  uint32_t *slots, *sorted_slots;  // (V,)
  unsigned char* sort;
  size_t sort_bytes;
  size_t bytes;
};

FillWorkspace fill_workspace_of(void* begin, int64_t num_vertices) {
  WorkspaceCutter cutter(begin);
  FillWorkspace w{};
  w.keys = cutter.take<uint64_t>(num_vertices);
  w.sorted_keys = cutter.take<uint64_t>(num_vertices);
  w.slots = cutter.take<uint32_t>(num_vertices);
  w.sorted_slots = cutter.take<uint32_t>(num_vertices);
  w.sort_bytes = device_sort_pairs_workspace_bytes<uint64_t>("marching_cubes_sparse", num_vertices);
  w.sort = cutter.take<unsigned char>(static_cast<int64_t>(w.sort_bytes));
  w.bytes = cutter.bytes();
  return w;
}

// The first place in [begin, end) whose key is not below `key`.
__device__ int64_t lower_bound(const uint64_t* keys, int64_t begin, int64_t end, uint64_t key) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (keys[middle] < key)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

template <class T>
__global__ void cases_kernel(MarchingCubesSparse<T> task, SparseWorkspace w,
                             MarchingCubesCounts* counts) {
  const int64_t n = thread_index();
  bool crossed = false;
  if (n < task.num_cells) {
    const int32_t* coords = task.coords + 3 * n;
    const unsigned bits = cell_case(task.values + 8 * n, task.level);
    crossed = bits != 0 && bits != 255;
    w.cases[n] = static_cast<uint8_t>(bits);
    w.cells[n] = static_cast<uint32_t>(n);
    w.first_face[n] = num_triangles(bits);
    w.keys[n] =
        crossed ? lattice_key(static_cast<uint64_t>(coords[0]), static_cast<uint64_t>(coords[1]),
                              static_cast<uint64_t>(coords[2]))
                : kNotCrossed;
    if (!is_lattice_cell(coords))
      atomicMin(reinterpret_cast<unsigned long long*>(&counts->bad_cell),
                static_cast<unsigned long long>(n));
  } else if (n == task.num_cells) {
    w.first_face[n] = 0;
    w.first_vertex[n] = 0;
  }
  const int sum = warp_reduce(static_cast<int>(crossed), Sum());
  if (lane_id() == 0 && sum != 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(&counts->num_crossed),
              static_cast<unsigned long long>(sum));
}

// The neighbors with a higher key that share an edge with a cell: at its corners 1 to 6, then at
// +y -z, +x -z and +x -y. (A borrow from an axis gives a key that no cell has.)
constexpr int kNeighbors = 10;
__device__ uint64_t neighbor_key(uint64_t key, int neighbor) {
  if (neighbor < 7) return key + corner_key(neighbor);
  if (neighbor == 7) return key + corner_key(2) - corner_key(4);
  if (neighbor == 8) return key + corner_key(1) - corner_key(4);
  return key + corner_key(1) - corner_key(2);
}

// As bits, the neighbors that would own an edge before the cell does.
__device__ unsigned neighbors_before(int edge) {
  unsigned bits = edge == 5 ? 1u << 7 : edge == 8 ? 1u << 8 : edge == 9 ? 1u << 9 : 0u;
  const int corner = cell_edge_corner(edge);
  for (int s = corner; s != 0; s = (s - 1) & corner) bits |= 1u << s;
  return bits;
}

__global__ void owners_kernel(int64_t num_cells, SparseWorkspace w) {
  const int64_t i = thread_index();
  if (i >= num_cells) return;
  const uint64_t key = w.sorted_keys[i];
  unsigned owned = 0;
  const bool is_copy = i > 0 && w.sorted_keys[i - 1] == key;  // the first of them owns
  if (key != kNotCrossed && !is_copy) {
    const unsigned edges = case_edges(w.cases[w.sorted_cells[i]]);
    unsigned asked = 0, present = 0;
    for (int e = 0; e < kCellEdges; ++e)
      if (edges >> e & 1) asked |= neighbors_before(e);
    for (int k = 1; k < kNeighbors; ++k) {
      if ((asked >> k & 1) == 0) continue;
      const uint64_t neighbor = neighbor_key(key, k);
      const int64_t at = lower_bound(w.sorted_keys, i + 1, num_cells, neighbor);
      if (at < num_cells && w.sorted_keys[at] == neighbor) present |= 1u << k;
    }
    for (int e = 0; e < kCellEdges; ++e)
      if ((edges >> e & 1) && (neighbors_before(e) & present) == 0) owned |= 1u << e;
  }
  w.owned[i] = static_cast<uint16_t>(owned);
  w.first_vertex[i] = count_bits(owned);
}

__global__ void totals_kernel(int64_t num_cells, SparseWorkspace w, MarchingCubesCounts* counts) {
  counts->num_vertices = w.first_vertex[num_cells];
  counts->num_faces = w.first_face[num_cells];
  if (counts->bad_cell < 0) counts->bad_cell = num_cells;
}

__global__ void edges_kernel(int64_t num_crossed, SparseWorkspace w, FillWorkspace f) {
  const int64_t i = thread_index();
  if (i >= num_crossed) return;
  int64_t at = w.first_vertex[i];
  for (unsigned owned = w.owned[i]; owned != 0; owned &= owned - 1, ++at) {
    const int edge = __ffs(static_cast<int>(owned)) - 1;
    f.keys[at] = edge_key(w.sorted_keys[i], edge);
    f.slots[at] = kCellEdges * w.sorted_cells[i] + static_cast<uint32_t>(edge);
  }
}

template <class T>
__global__ void vertices_kernel(MarchingCubesSparse<T> task, const uint32_t* slots, int64_t count,
                                MarchingCubesMesh<T> mesh) {
  const int64_t vertex = thread_index();
  if (vertex < count) write_sparse_vertex(task, slots[vertex], mesh, vertex);
}

__global__ void faces_kernel(int64_t num_crossed, SparseWorkspace w, const uint64_t* edges,
                             int64_t num_vertices, int64_t* faces) {
  const int64_t i = thread_index();
  if (i >= num_crossed) return;
  const int64_t cell = w.sorted_cells[i];
  const unsigned bits = w.cases[cell];
  int64_t vertex[kCellEdges];
  int64_t from = 0;  // a cell's edges are in the order of their keys
  for (int e = 0; e < kCellEdges; ++e) {
    if ((case_edges(bits) >> e & 1) == 0) continue;
    from = lower_bound(edges, from, num_vertices, edge_key(w.sorted_keys[i], e));
    vertex[e] = from;
  }
  write_triangles(case_triangles(bits), faces + 3 * w.first_face[cell],
                  [&](int e) { return vertex[e]; });
}

}  // namespace

size_t marching_cubes_sparse_workspace_bytes(int64_t num_cells) {
  return sparse_workspace(nullptr, num_cells).bytes;
}

template <class T>
void marching_cubes_sparse_count(const MarchingCubesSparse<T>& task, void* workspace,
                                 MarchingCubesCounts* counts, cudaStream_t stream) {
  const char* op = "marching_cubes_sparse";
  const int64_t n = task.num_cells;
  fill_bytes(op, counts, 0, sizeof(MarchingCubesCounts), stream);
  if (n == 0) return;
  fill_bytes(op, &counts->bad_cell, 0xff, sizeof(counts->bad_cell), stream);
  const SparseWorkspace w = sparse_workspace(workspace, n);
  launch(op, cases_kernel<T>, blocks_for(n + 1), dim3(kBlock), 0, stream, task, w, counts);
  device_sort_pairs<uint64_t>(op, w.sort, w.sort_bytes, w.keys, w.sorted_keys, w.cells,
                              w.sorted_cells, n, stream);
  launch(op, owners_kernel, blocks_for(n), dim3(kBlock), 0, stream, n, w);
  device_exclusive_scan<int64_t>(op, w.scan, w.scan_bytes, w.first_vertex, w.first_vertex, n + 1,
                                 stream);
  device_exclusive_scan<int64_t>(op, w.scan, w.scan_bytes, w.first_face, w.first_face, n + 1,
                                 stream);
  launch(op, totals_kernel, dim3(1), dim3(1), 0, stream, n, w, counts);
}

size_t marching_cubes_sparse_fill_workspace_bytes(int64_t num_vertices) {
  return fill_workspace_of(nullptr, num_vertices).bytes;
}

template <class T>
void marching_cubes_sparse_fill(const MarchingCubesSparse<T>& task, const void* workspace,
                                void* fill_workspace, const MarchingCubesCounts& counts,
                                const MarchingCubesMesh<T>& mesh, cudaStream_t stream) {
  const char* op = "marching_cubes_sparse";
  if (counts.num_crossed == 0) return;
  const SparseWorkspace w = sparse_workspace(const_cast<void*>(workspace), task.num_cells);
  const FillWorkspace f = fill_workspace_of(fill_workspace, counts.num_vertices);
  const dim3 crossed = blocks_for(counts.num_crossed);
  launch(op, edges_kernel, crossed, dim3(kBlock), 0, stream, counts.num_crossed, w, f);
  device_sort_pairs<uint64_t>(op, f.sort, f.sort_bytes, f.keys, f.sorted_keys, f.slots,
                              f.sorted_slots, counts.num_vertices, stream);
  launch(op, vertices_kernel<T>, blocks_for(counts.num_vertices), dim3(kBlock), 0, stream, task,
         f.sorted_slots, counts.num_vertices, mesh);
  launch(op, faces_kernel, crossed, dim3(kBlock), 0, stream, counts.num_crossed, w, f.sorted_keys,
         counts.num_vertices, mesh.faces);
}

#define FASTSHAPE_INSTANTIATE(T)                                                                 \
  template void marching_cubes_sparse_count<T>(const MarchingCubesSparse<T>&, void*,             \
                                               MarchingCubesCounts*, cudaStream_t);              \
  template void marching_cubes_sparse_fill<T>(const MarchingCubesSparse<T>&, const void*, void*, \
                                              const MarchingCubesCounts&,                        \
                                              const MarchingCubesMesh<T>&, cudaStream_t);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cuda
