// On the CPU: the crossed cells sorted by (x, y, z). A cell owns the crossed edges at its lowest
// corner, so vertices in the order of their owners are in the order of the output, and an edge's
// owner is found by walking the sorted list with one pointer for each neighbor. Edges whose owner
// would lie outside the list, at the border of what the caller gave, are kept in a list of their
// own.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "core/parallel.h"
#include "core/radix_sort.h"
#include "core/workspace.h"
#include "isosurface/marching_cubes_sparse.h"

namespace fastshape::cpu {
namespace {

constexpr int64_t kPiece = 16384;  // cells

struct SparseWorkspace {
  KeyIndex* crossed;       // (num_crossed,) sorted by key
  uint8_t* crossed_cases;  // (num_crossed,) theirs
  uint8_t* cases;          // (num_cells,)
  size_t bytes;
};

SparseWorkspace sparse_workspace(void* begin, int64_t num_cells) {
  WorkspaceCutter cutter(begin);
  SparseWorkspace w{};
  w.crossed = cutter.take<KeyIndex>(num_cells);
  w.crossed_cases = cutter.take<uint8_t>(num_cells);
  w.cases = cutter.take<uint8_t>(num_cells);
  w.bytes = cutter.bytes();
  return w;
}

// A crossed edge whose lower end is no cell of the list.
struct Orphan {
  uint64_t edge;
  uint64_t cell;  // key of a cell that has it
  int64_t slot;
};

// The lower ends of a cell's edges but for its own lowest corner: as offsets, and which of the
// edges start there.
constexpr int kAhead = 6;
constexpr int kAheadCorner[kAhead] = {1, 2, 3, 4, 5, 6};
constexpr unsigned kAheadEdges[kAhead] = {1u << 8 | 1u << 9, 1u << 5 | 1u << 6, 1u << 11,
                                          1u << 3 | 1u << 4, 1u << 10,          1u << 7};

// Which cells of the sorted list lie ahead of one, as it goes up the list.
class Ahead {
 public:
  Ahead(const KeyIndex* cells, int64_t count, int64_t begin) : cells_(cells), count_(count) {
    for (int k = 0; k < kAhead; ++k) {
      const uint64_t key = cells[begin].key + corner_key(kAheadCorner[k]);
      at_[k] = std::lower_bound(cells + begin, cells + count, key,
                                [](const KeyIndex& a, uint64_t b) { return a.key < b; }) -
               cells;
    }
  }
  // The position of the cell at corner kAheadCorner[k] of cell i, -1 if it is not in the list. For
  // each k, i must not go down.
  int64_t find(int64_t i, int k) {
    const uint64_t key = cells_[i].key + corner_key(kAheadCorner[k]);
    int64_t& at = at_[k];
    while (at < count_ && cells_[at].key < key) ++at;
    return at < count_ && cells_[at].key == key ? at : -1;
  }

 private:
  const KeyIndex* cells_;
  int64_t count_;
  int64_t at_[kAhead];
};

unsigned own_edges(unsigned bits) { return case_edges(bits) & 7u; }

// Whether a crossed cell is there before: then the first of its copies owns the vertices of all.
bool is_copy(const SparseWorkspace& w, int64_t i) {
  return i > 0 && w.crossed[i - 1].key == w.crossed[i].key;
}

int count_three(unsigned bits) { return 0xE994 >> 2 * bits & 3; }

// All orphans, in the order of their edges; of one edge's cells the last.
std::vector<Orphan> find_orphans(const SparseWorkspace& w, int64_t num_crossed) {
  std::vector<Orphan> all;
  std::mutex mutex;
  parallel_for(num_crossed, kPiece, [&](int64_t begin, int64_t end) {
    std::vector<Orphan> found;
    Ahead ahead(w.crossed, num_crossed, begin);
    for (int64_t i = begin; i < end; ++i) {
      const unsigned edges = case_edges(w.crossed_cases[i]);
      for (int k = 0; k < kAhead; ++k) {
        unsigned there = edges & kAheadEdges[k];
        if (there == 0 || ahead.find(i, k) >= 0) continue;
        for (; there != 0; there &= there - 1) {
          const int edge = __builtin_ctz(there);
          found.push_back({edge_key(w.crossed[i].key, edge), w.crossed[i].key,
                           kCellEdges * static_cast<int64_t>(w.crossed[i].index) + edge});
        }
      }
    }
    std::lock_guard<std::mutex> lock(mutex);
    all.insert(all.end(), found.begin(), found.end());
  });
  std::sort(all.begin(), all.end(), [](const Orphan& a, const Orphan& b) {
    if (a.edge != b.edge) return a.edge < b.edge;
    if (a.cell != b.cell) return a.cell > b.cell;
    return a.slot < b.slot;
  });
  const auto same = [](const Orphan& a, const Orphan& b) { return a.edge == b.edge; };
  all.erase(std::unique(all.begin(), all.end(), same), all.end());
  return all;
}

// f(begin, end, piece) over the pieces of [0, n).
template <class F>
void for_pieces(int64_t n, const F& f) {
  parallel_for((n + kPiece - 1) / kPiece, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece)
      f(piece * kPiece, std::min(n, (piece + 1) * kPiece), piece);
  });
}

// What each piece holds becomes what all before it hold; returns the sum.
int64_t exclusive_scan(std::vector<int64_t>& sums) {
  int64_t total = 0;
  for (int64_t& sum : sums) {
    const int64_t here = sum;
    sum = total;
    total += here;
  }
  return total;
}

std::vector<int64_t> per_piece(int64_t n) {
  return std::vector<int64_t>((n + kPiece - 1) / kPiece);
}

int64_t count_faces(const uint8_t* cases, int64_t begin, int64_t end) {
  int64_t faces = 0;
  for (int64_t i = begin; i < end; ++i) faces += num_triangles(cases[i]);
  return faces;
}

}  // namespace

size_t marching_cubes_sparse_workspace_bytes(int64_t num_cells) {
  return sparse_workspace(nullptr, num_cells).bytes;
}

template <class T>
void marching_cubes_sparse_count(const MarchingCubesSparse<T>& task, void* workspace,
                                 MarchingCubesCounts* counts) {
  const int64_t n = task.num_cells;
  const SparseWorkspace w = sparse_workspace(workspace, n);
  *counts = {0, 0, 0, n};

  std::vector<int64_t> crossed = per_piece(n), faces = per_piece(n), bad = per_piece(n);
  for_pieces(n, [&](int64_t begin, int64_t end, int64_t piece) {
    bad[piece] = n;
    for (int64_t i = begin; i < end; ++i) {
      const unsigned bits = cell_case(task.values + 8 * i, task.level);
      w.cases[i] = static_cast<uint8_t>(bits);
      crossed[piece] += bits != 0 && bits != 255;
      if (!is_lattice_cell(task.coords + 3 * i)) bad[piece] = std::min(bad[piece], i);
    }
    faces[piece] = count_faces(w.cases, begin, end);
  });
  for (const int64_t i : bad) counts->bad_cell = std::min(counts->bad_cell, i);
  if (counts->bad_cell < n) return;
  counts->num_faces = exclusive_scan(faces);
  counts->num_crossed = exclusive_scan(crossed);

  std::vector<KeyIndex> cells(static_cast<size_t>(counts->num_crossed));
  for_pieces(n, [&](int64_t begin, int64_t end, int64_t piece) {
    int64_t at = crossed[piece];
    for (int64_t i = begin; i < end; ++i) {
      if (w.cases[i] == 0 || w.cases[i] == 255) continue;
      const auto c = [&](int k) { return static_cast<uint64_t>(task.coords[3 * i + k]); };
      cells[at++] = {lattice_key(c(0), c(1), c(2)), static_cast<uint32_t>(i)};
    }
  });
  const auto less = [](const KeyIndex& a, const KeyIndex& b) { return a.key < b.key; };
  if (!std::is_sorted(cells.begin(), cells.end(), less)) radix_sort(cells, 3 * kLatticeBits);
  std::copy(cells.begin(), cells.end(), w.crossed);
  parallel_for(counts->num_crossed, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) w.crossed_cases[i] = w.cases[cells[i].index];
  });

  std::vector<int64_t> vertices = per_piece(counts->num_crossed);
  for_pieces(counts->num_crossed, [&](int64_t begin, int64_t end, int64_t piece) {
    for (int64_t i = begin; i < end; ++i)
      if (!is_copy(w, i)) vertices[piece] += count_three(own_edges(w.crossed_cases[i]));
  });
  counts->num_vertices =
      exclusive_scan(vertices) + static_cast<int64_t>(find_orphans(w, counts->num_crossed).size());
}

template <class T>
void marching_cubes_sparse_fill(const MarchingCubesSparse<T>& task, const void* workspace,
                                const MarchingCubesCounts& counts,
                                const MarchingCubesMesh<T>& mesh) {
  const int64_t n = task.num_cells, num_crossed = counts.num_crossed;
  const SparseWorkspace w = sparse_workspace(const_cast<void*>(workspace), n);
  const std::vector<Orphan> orphans = find_orphans(w, num_crossed);
  const auto before = [](const Orphan& a, uint64_t edge) { return a.edge < edge; };

  // first[i]: the vertex of the first edge that crossed cell i owns. Of an orphan: its place among
  // the orphans, and those that cells with lower keys own.
  std::vector<int64_t> pieces = per_piece(num_crossed);
  for_pieces(num_crossed, [&](int64_t begin, int64_t end, int64_t piece) {
    for (int64_t i = begin; i < end; ++i)
      if (!is_copy(w, i)) pieces[piece] += count_three(own_edges(w.crossed_cases[i]));
  });
  exclusive_scan(pieces);
  std::vector<int64_t> first(static_cast<size_t>(num_crossed)), orphan_vertex(orphans.size());
  for_pieces(num_crossed, [&](int64_t begin, int64_t end, int64_t piece) {
    int64_t at = pieces[piece];
    auto orphan =
        std::lower_bound(orphans.begin(), orphans.end(),
                         begin == 0 ? uint64_t{0} : w.crossed[begin - 1].key << 2, before);
    for (int64_t i = begin; i < end; ++i) {
      for (; orphan != orphans.end() && orphan->edge < w.crossed[i].key << 2; ++orphan)
        orphan_vertex[orphan - orphans.begin()] = at + (orphan - orphans.begin());
      const int64_t cell = w.crossed[i].index;
      first[i] = at + (orphan - orphans.begin());
      if (is_copy(w, i)) {
        first[i] -= count_three(own_edges(w.crossed_cases[i]));
        continue;
      }
      int64_t vertex = first[i];
      for (unsigned own = own_edges(w.crossed_cases[i]); own != 0; own &= own - 1, ++at)
        write_sparse_vertex(task, kCellEdges * cell + __builtin_ctz(own), mesh, vertex++);
    }
    if (end == num_crossed)
      for (; orphan != orphans.end(); ++orphan)
        orphan_vertex[orphan - orphans.begin()] = at + (orphan - orphans.begin());
  });
  for (size_t k = 0; k < orphans.size(); ++k)
    write_sparse_vertex(task, orphans[k].slot, mesh, orphan_vertex[k]);

  // first_face[cell], then the faces in the sorted order, where neighbors are near.
  std::vector<int64_t> face_pieces = per_piece(n), first_face(static_cast<size_t>(n));
  for_pieces(n, [&](int64_t begin, int64_t end, int64_t piece) {
    face_pieces[piece] = count_faces(w.cases, begin, end);
  });
  exclusive_scan(face_pieces);
  for_pieces(n, [&](int64_t begin, int64_t end, int64_t piece) {
    int64_t face = face_pieces[piece];
    for (int64_t i = begin; i < end; ++i) {
      first_face[i] = face;
      face += num_triangles(w.cases[i]);
    }
  });
  parallel_for(num_crossed, kPiece, [&](int64_t begin, int64_t end) {
    Ahead ahead(w.crossed, num_crossed, begin);
    int64_t vertex[kCellEdges] = {};
    for (int64_t i = begin; i < end; ++i) {
      const int64_t cell = w.crossed[i].index;
      const unsigned edges = case_edges(w.crossed_cases[i]);
      int64_t own = first[i];
      for (unsigned there = edges & 7u; there != 0; there &= there - 1)
        vertex[__builtin_ctz(there)] = own++;
      for (int k = 0; k < kAhead; ++k) {
        unsigned there = edges & kAheadEdges[k];
        if (there == 0) continue;
        const int64_t owner = ahead.find(i, k);
        const unsigned owned = owner < 0 ? 0 : own_edges(w.crossed_cases[owner]);
        for (; there != 0; there &= there - 1) {
          const int edge = __builtin_ctz(there);
          if (owner >= 0) {
            vertex[edge] = first[owner] + count_three(owned & ((1u << cell_edge_axis(edge)) - 1));
          } else {
            const auto orphan = std::lower_bound(orphans.begin(), orphans.end(),
                                                 edge_key(w.crossed[i].key, edge), before);
            vertex[edge] = orphan_vertex[orphan - orphans.begin()];
          }
        }
      }
      write_triangles(case_triangles(w.crossed_cases[i]), mesh.faces + 3 * first_face[cell],
                      [&](int edge) { return vertex[edge]; });
    }
  });
}

#define FASTSHAPE_INSTANTIATE(T)                                                          \
  template void marching_cubes_sparse_count<T>(const MarchingCubesSparse<T>&, void*,      \
                                               MarchingCubesCounts*);                     \
  template void marching_cubes_sparse_fill<T>(const MarchingCubesSparse<T>&, const void*, \
                                              const MarchingCubesCounts&,                 \
                                              const MarchingCubesMesh<T>&);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cpu
