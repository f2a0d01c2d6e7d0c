#include "isosurface/voxel_corners.h"

#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "core/radix_sort.h"
#include "core/workspace.h"

namespace fastshape::cpu {
namespace {

// The union of a list and the same list one step further, and where both copies of an entry are.
struct Union {
  uint64_t* keys;
  uint32_t *here, *there;
};

struct CornersWorkspace {
  uint32_t* voxel;  // (N,) which of the distinct voxels a voxel is
  Union along[3];   // z, y, x: of 1, 2 and 4 times as many entries as there are voxels
  size_t bytes;
};

CornersWorkspace workspace_of(void* begin, int64_t num_voxels) {
  WorkspaceCutter cutter(begin);
  CornersWorkspace w{};
  w.voxel = cutter.take<uint32_t>(num_voxels);
  for (int i = 0; i < 3; ++i) {
    w.along[i].here = cutter.take<uint32_t>(num_voxels << i);
    w.along[i].there = cutter.take<uint32_t>(num_voxels << i);
    w.along[i].keys = cutter.take<uint64_t>(num_voxels << (i + 1));
  }
  w.bytes = cutter.bytes();
  return w;
}

// Returns how many entries the union has.
int64_t unite(const uint64_t* keys, int64_t count, uint64_t step, const Union& out) {
  int64_t here = 0, there = 0, size = 0;
  while (there < count) {
    const uint64_t moved = keys[there] + step;
    const uint64_t key = here < count && keys[here] < moved ? keys[here] : moved;
    if (here < count && keys[here] == key) out.here[here++] = static_cast<uint32_t>(size);
    if (moved == key) out.there[there++] = static_cast<uint32_t>(size);
    out.keys[size++] = key;
  }
  return size;
}

}  // namespace

size_t voxel_corners_workspace_bytes(int64_t num_voxels) {
  return workspace_of(nullptr, num_voxels).bytes;
}

void voxel_corners_count(const VoxelCorners& task, void* workspace, VoxelCornersFound* found) {
  const int64_t n = task.num_voxels;
  const CornersWorkspace w = workspace_of(workspace, n);
  *found = {0, n};
  std::vector<KeyIndex> voxels(static_cast<size_t>(n));
  bool sorted = true;
  for (int64_t i = 0; i < n; ++i) {
    if (!is_voxel(task, i)) {
      found->bad_voxel = i;
      return;
    }
    voxels[i] = {voxel_key(task, i), static_cast<uint32_t>(i)};
    sorted = sorted && (i == 0 || voxels[i - 1].key <= voxels[i].key);
  }
  if (!sorted) radix_sort(voxels, 63);
  std::vector<uint64_t> distinct;
  distinct.reserve(static_cast<size_t>(n));
  for (const KeyIndex& voxel : voxels) {
    if (distinct.empty() || distinct.back() != voxel.key) distinct.push_back(voxel.key);
    w.voxel[voxel.index] = static_cast<uint32_t>(distinct.size() - 1);
  }
  const uint64_t* keys = distinct.data();
  int64_t count = static_cast<int64_t>(distinct.size());
  for (int i = 0; i < 3; ++i) {
    count = unite(keys, count, uint64_t{1} << i * task.axis_bits, w.along[i]);
    keys = w.along[i].keys;
  }
  found->num_corners = count;
}

void voxel_corners_fill(const VoxelCorners& task, const void* workspace,
                        const VoxelCornersFound& found, const VoxelCornersOut& out) {
  const CornersWorkspace w = workspace_of(const_cast<void*>(workspace), task.num_voxels);
  parallel_for(task.num_voxels, 8192, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int k = 0; k < 8; ++k) {
        uint32_t at = w.voxel[i];
        for (int axis = 2; axis >= 0; --axis) {
          const Union& along = w.along[2 - axis];
          at = k >> axis & 1 ? along.there[at] : along.here[at];
        }
        out.index[8 * i + k] = at;
      }
    }
  });
  parallel_for(found.num_corners, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) write_corner(task, w.along[2].keys[i], i, out);
  });
}

}  // namespace fastshape::cpu
