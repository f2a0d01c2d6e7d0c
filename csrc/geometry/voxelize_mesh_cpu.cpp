#include "core/parallel.h"
#include "geometry/voxelize_mesh.h"

namespace fastshape::cpu {
namespace {

constexpr int64_t kGrain = 256;  // faces

template <class T, class Visit>
void visit_face(const VoxelizeMesh<T>& task, int64_t face, Visit&& visit) {
  const VoxelTriangle triangle = voxel_triangle(task, face);
  for (int64_t column = 0; column < triangle.num_columns; ++column)
    visit_column(triangle, task.resolution, column, visit);
}

}  // namespace

template <class T>
void voxelize_mesh_count(const VoxelizeMesh<T>& task, int64_t* counts) {
  parallel_for(task.num_faces, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t face = begin; face < end; ++face) {
      int64_t count = 0;
      visit_face(task, face, [&](int64_t) { ++count; });
      counts[face] = count;
    }
  });
}

template <class T>
void voxelize_mesh_fill(const VoxelizeMesh<T>& task, const int64_t* offsets, int64_t num_keys,
                        int64_t* keys) {
  parallel_for(task.num_faces, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t face = begin; face < end; ++face) {
      int64_t at = offsets[face];
      visit_face(task, face, [&](int64_t key) {
        if (at < num_keys) keys[at++] = key;
      });
    }
  });
}

template void voxelize_mesh_count<float>(const VoxelizeMesh<float>&, int64_t*);
template void voxelize_mesh_count<double>(const VoxelizeMesh<double>&, int64_t*);
template void voxelize_mesh_fill<float>(const VoxelizeMesh<float>&, const int64_t*, int64_t,
                                        int64_t*);
template void voxelize_mesh_fill<double>(const VoxelizeMesh<double>&, const int64_t*, int64_t,
                                         int64_t*);

}  // namespace fastshape::cpu
