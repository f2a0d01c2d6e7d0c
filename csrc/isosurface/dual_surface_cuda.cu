#include "core/block.cuh"
#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"
#include "core/elementwise.cuh"
#include "isosurface/dual_surface.h"
#include "isosurface/signs.cuh"

namespace fastshape::cuda {
namespace {

constexpr const char* kOp = "dual_surface";

// ---- Mark --------------------------------------------------------------------------------------

__global__ void mixed_lattice_kernel(DualLattice l) {
  const int64_t word = thread_index();
  if (word > l.num_words) return;
  uint64_t mixed = 0;
  if (word < l.num_words) {
    const SignLattice signs = signs_of(l);
    const WordPlace p = word_place(signs, word);
    if (p.x + 1 < signs.size_x && p.y + 1 < signs.size_y)
      mixed = cell_rows(signs, p.x, p.y, p.w).crossed;
    l.mixed[word] = mixed;
  }
  l.first[word] = count_bits64(mixed);
}

template <class T>
__global__ void rows_kernel(DualSurface<T> task, DualLattice l, int64_t* found) {
  const int64_t row = thread_index();
  if (row >= task.num_cubes) return;
  const int64_t* corners = task.cubes + 8 * row;
  bool good = true;
  for (int k = 0; k < 8; ++k) good = good && corners[k] >= 0 && corners[k] < task.num_points;
  if (good)
    atomicMax(l.cube_at + corners[0], static_cast<int32_t>(row));
  else
    atomicMin(reinterpret_cast<unsigned long long*>(found + 1),
              static_cast<unsigned long long>(row));
}

// A warp for a word.
template <class T>
__global__ void list_signs_kernel(DualSurface<T> task, DualLattice l) {
  const int64_t word = thread_index() / 32;
  if (word >= l.num_words) return;
  const int64_t point = 64 * word + lane_id();
  const auto inside = [&](int64_t p) {
    return __ballot_sync(kAllLanes, p < task.num_points && task.values[p] < task.level);
  };
  const uint64_t low = inside(point), high = inside(point + 32);
  if (lane_id() == 0) l.inside[word] = high << 32 | low;
}

template <class T>
__device__ bool is_crossed(const DualSurface<T>& task, const DualLattice& l, int64_t place) {
  if (place >= task.num_points || l.cube_at[place] < 0) return false;
  const int64_t* corners = task.cubes + 8 * static_cast<int64_t>(l.cube_at[place]);
  int count = 0;
  for (int k = 0; k < 8; ++k) count += bit_at(l.inside, corners[k]);
  return count != 0 && count != 8;
}

// A warp for a word.
template <class T>
__global__ void mixed_list_kernel(DualSurface<T> task, DualLattice l) {
  const int64_t word = thread_index() / 32;
  if (word > l.num_words) return;
  if (word == l.num_words) {
    if (lane_id() == 0) l.first[word] = 0;
    return;
  }
  const int64_t place = 64 * word + lane_id();
  const uint64_t low = __ballot_sync(kAllLanes, is_crossed(task, l, place));
  const uint64_t high = __ballot_sync(kAllLanes, is_crossed(task, l, place + 32));
  if (lane_id() != 0) return;
  l.mixed[word] = high << 32 | low;
  l.first[word] = count_bits64(high << 32 | low);
}

__global__ void found_kernel(DualLattice l, int64_t num_cubes, int64_t* found) {
  found[0] = l.first[l.num_words];
  if (found[1] < 0) found[1] = num_cubes;
}

// ---- Count -------------------------------------------------------------------------------------

struct CountWorkspace {
  uint8_t* raw;       // (S,)
  uint8_t* below;     // (3 S,)
  int64_t* vertices;  // (4 S + 1,) by class, then by cube
  int64_t* pairs;     // (4 S + 1,)
  int64_t* quads;     // (S + 1,)
  unsigned char* scan;
  size_t scan_bytes;
  size_t bytes;
};

CountWorkspace count_workspace_of(void* begin, int64_t num) {
  WorkspaceCutter cutter(begin);
  CountWorkspace w{};
  w.raw = cutter.take<uint8_t>(num);
  w.below = cutter.take<uint8_t>(3 * num);
  w.vertices = cutter.take<int64_t>(kDualClasses * num + 1);
  w.pairs = cutter.take<int64_t>(kDualClasses * num + 1);
  w.quads = cutter.take<int64_t>(num + 1);
  w.scan_bytes = device_exclusive_scan_workspace_bytes<int64_t>(kOp, kDualClasses * num + 1);
  w.scan = cutter.take<unsigned char>(static_cast<int64_t>(w.scan_bytes));
  w.bytes = cutter.bytes();
  return w;
}

__global__ void list_cubes_kernel(DualLattice l, DualCubes cubes, CountWorkspace w) {
  const int64_t word = thread_index();
  if (word >= l.num_words) return;
  int64_t s = l.first[word];
  for (uint64_t left = l.mixed[word]; left != 0; left &= left - 1, ++s) {
    list_cube(l, 64 * word + __ffsll(static_cast<long long>(left)) - 1, cubes, s);
    w.raw[s] = static_cast<uint8_t>(raw_case(l, cubes, s));
  }
}

__global__ void tell_ambiguous_kernel(DualLattice l, DualCubes cubes, CountWorkspace w) {
  const int64_t s = thread_index();
  if (s < cubes.num) tell_ambiguous(l, cubes, w.raw, s, w.below);
}

__global__ void count_kernel(DualLattice l, bool manifold, DualCubes cubes, CountWorkspace w) {
  const int64_t s = thread_index(), num = cubes.num;
  if (s == num) {
    w.vertices[kDualClasses * num] = w.pairs[kDualClasses * num] = w.quads[num] = 0;
    return;
  }
  if (s > num) return;
  const unsigned bits = manifold ? resolved_case(l, cubes, w.raw, w.below, s) : w.raw[s];
  cubes.cases[s] = static_cast<uint8_t>(bits);
  const int vertices = num_dual_vertices(bits);
  for (int c = 0; c < kDualClasses; ++c) {
    const bool here = c + 1 == vertices;
    w.vertices[c * num + s] = here ? vertices : 0;
    w.pairs[c * num + s] = here ? num_dual_pairs(bits) : 0;
  }
  w.quads[s] = count_bits(owned_quads(l, cubes, s));
}

__global__ void first_kernel(DualCubes cubes, CountWorkspace w, DualTotals* totals) {
  const int64_t s = thread_index(), num = cubes.num;
  if (s == num) {
    totals->num_vertices = w.vertices[kDualClasses * num];
    totals->num_pairs = w.pairs[kDualClasses * num];
    totals->num_quads = w.quads[num];
  }
  if (s >= num) return;
  const int64_t at = (num_dual_vertices(cubes.cases[s]) - 1) * num + s;
  cubes.first_vertex[s] = w.vertices[at];
  if (cubes.first_pair != nullptr) cubes.first_pair[s] = w.pairs[at];
}

// ---- Fill --------------------------------------------------------------------------------------

struct FillWorkspace {
  int64_t* owners;                 // (Q,) 3 * cube + axis, in the order of the cubes
  uint64_t *keys, *sorted_keys;    // (Q,)
  uint32_t *index, *sorted_index;  // (Q,)
  unsigned char* sort;
  size_t sort_bytes;
  size_t bytes;
};

FillWorkspace fill_workspace_of(void* begin, int64_t num_quads) {
  WorkspaceCutter cutter(begin);
  FillWorkspace w{};
  w.owners = cutter.take<int64_t>(num_quads);
  w.keys = cutter.take<uint64_t>(num_quads);
  w.sorted_keys = cutter.take<uint64_t>(num_quads);
  w.index = cutter.take<uint32_t>(num_quads);
  w.sorted_index = cutter.take<uint32_t>(num_quads);
  w.sort_bytes = device_sort_pairs_workspace_bytes<uint64_t>(kOp, num_quads);
  w.sort = cutter.take<unsigned char>(static_cast<int64_t>(w.sort_bytes));
  w.bytes = cutter.bytes();
  return w;
}

__global__ void owners_kernel(DualLattice l, FaceOrder order, DualCubes cubes,
                              const int64_t* first_quad, DualMesh mesh, FillWorkspace w) {
  const int64_t s = thread_index();
  if (s >= cubes.num) return;
  write_cube(cubes, s, mesh);
  int64_t quad = first_quad[s];
  for (unsigned owned = owned_quads(l, cubes, s); owned != 0; owned &= owned - 1, ++quad) {
    const int axis = __ffs(static_cast<int>(owned)) - 1;
    w.owners[quad] = kQuadAxes * s + axis;
    if (order == FaceOrder::cube) continue;
    w.keys[quad] = quad_key(l, cubes, s, axis, order);
    w.index[quad] = static_cast<uint32_t>(quad);
  }
}

__global__ void quads_kernel(DualLattice l, DualCubes cubes, DualMesh mesh, int64_t num_quads,
                             const int64_t* owners, const uint32_t* sorted_index) {
  const int64_t quad = thread_index();
  if (quad >= num_quads) return;
  const int64_t owner = owners[sorted_index == nullptr ? quad : sorted_index[quad]];
  write_quad(l, cubes, owner / kQuadAxes, static_cast<int>(owner % kQuadAxes), mesh, quad);
}

}  // namespace

size_t dual_surface_scan_bytes(int64_t num_words) {
  return device_exclusive_scan_workspace_bytes<int64_t>(kOp, num_words + 1);
}

template <class T>
void dual_surface_mark(const DualSurface<T>& task, const DualLattice& l, void* scan, int64_t* found,
                       cudaStream_t stream) {
  const int64_t n = l.num_words;
  fill_bytes(kOp, found, 0xff, 2 * sizeof(int64_t), stream);
  if (task.cubes == nullptr) {
    if (n != 0) {
      const MarchingCubes<T> field{task.values, task.size_x, task.size_y, task.size_z, task.level};
      launch(kOp, signs_kernel<T>, blocks_for(32 * n), dim3(kBlock), 0, stream, field, signs_of(l));
    }
    launch(kOp, mixed_lattice_kernel, blocks_for(n + 1), dim3(kBlock), 0, stream, l);
  } else {
    fill_bytes(kOp, l.cube_at, 0xff, static_cast<size_t>(task.num_points) * sizeof(int32_t),
               stream);
    if (task.num_cubes != 0)
      launch(kOp, rows_kernel<T>, blocks_for(task.num_cubes), dim3(kBlock), 0, stream, task, l,
             found);
    if (n != 0)
      launch(kOp, list_signs_kernel<T>, blocks_for(32 * n), dim3(kBlock), 0, stream, task, l);
    launch(kOp, mixed_list_kernel<T>, blocks_for(32 * (n + 1)), dim3(kBlock), 0, stream, task, l);
  }
  device_exclusive_scan<int64_t>(kOp, scan, dual_surface_scan_bytes(n), l.first, l.first, n + 1,
                                 stream);
  launch(kOp, found_kernel, dim3(1), dim3(1), 0, stream, l, task.num_cubes, found);
}

size_t dual_surface_count_workspace_bytes(int64_t num_crossed) {
  return count_workspace_of(nullptr, num_crossed).bytes;
}

void dual_surface_count(const DualLattice& l, bool manifold, const DualCubes& cubes,
                        void* workspace, DualTotals* totals, cudaStream_t stream) {
  const int64_t num = cubes.num;
  const CountWorkspace w = count_workspace_of(workspace, num);
  if (num == 0) {
    fill_bytes(kOp, totals, 0, sizeof(DualTotals), stream);
    return;
  }
  launch(kOp, list_cubes_kernel, blocks_for(l.num_words), dim3(kBlock), 0, stream, l, cubes, w);
  if (manifold) {
    fill_bytes(kOp, w.below, 0, static_cast<size_t>(3 * num), stream);
    launch(kOp, tell_ambiguous_kernel, blocks_for(num), dim3(kBlock), 0, stream, l, cubes, w);
  }
  launch(kOp, count_kernel, blocks_for(num + 1), dim3(kBlock), 0, stream, l, manifold, cubes, w);
  for (int64_t* counts : {w.vertices, w.pairs})
    device_exclusive_scan<int64_t>(kOp, w.scan, w.scan_bytes, counts, counts,
                                   kDualClasses * num + 1, stream);
  device_exclusive_scan<int64_t>(kOp, w.scan, w.scan_bytes, w.quads, w.quads, num + 1, stream);
  launch(kOp, first_kernel, blocks_for(num + 1), dim3(kBlock), 0, stream, cubes, w, totals);
}

size_t dual_surface_fill_workspace_bytes(int64_t num_quads) {
  return fill_workspace_of(nullptr, num_quads).bytes;
}

void dual_surface_fill(const DualLattice& l, FaceOrder order, const DualCubes& cubes,
                       const void* count_workspace, const DualTotals& totals, void* workspace,
                       const DualMesh& mesh, cudaStream_t stream) {
  if (cubes.num == 0) return;
  const int64_t num_quads = totals.num_quads;
  const CountWorkspace count = count_workspace_of(const_cast<void*>(count_workspace), cubes.num);
  const FillWorkspace w = fill_workspace_of(workspace, num_quads);
  launch(kOp, owners_kernel, blocks_for(cubes.num), dim3(kBlock), 0, stream, l, order, cubes,
         count.quads, mesh, w);
  if (num_quads == 0) return;
  const bool sorted = order != FaceOrder::cube;
  if (sorted)
    device_sort_pairs<uint64_t>(kOp, w.sort, w.sort_bytes, w.keys, w.sorted_keys, w.index,
                                w.sorted_index, num_quads, stream);
  launch(kOp, quads_kernel, blocks_for(num_quads), dim3(kBlock), 0, stream, l, cubes, mesh,
         num_quads, w.owners, sorted ? w.sorted_index : nullptr);
}

template void dual_surface_mark<float>(const DualSurface<float>&, const DualLattice&, void*,
                                       int64_t*, cudaStream_t);
template void dual_surface_mark<double>(const DualSurface<double>&, const DualLattice&, void*,
                                        int64_t*, cudaStream_t);

}  // namespace fastshape::cuda
