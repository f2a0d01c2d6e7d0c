// The voxels of a grid that a mesh touches, of open surfaces and inner ones as of closed ones.
//
// A voxel is a closed box: a triangle that ends on its face touches it. Triangle against box is
// decided by separating axes (Akenine-Moeller 2001) in double precision, with a bound of the
// rounding on each axis, so that no touched voxel is lost; one that is missed by less than about
// 1e-12 of its side may be counted. A triangle with a vertex that is not finite touches nothing.
//
// A triangle's candidates are found column by column: over the rectangle that it covers of two
// axes, the extent along the third of its part in the column.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "geometry/vec3.h"

namespace fastshape {

constexpr int64_t kMaxVoxelResolution = int64_t{1} << 20;

template <class T>
struct VoxelizeMesh {
  const T* vertices;     // (num_vertices, 3)
  const int64_t* faces;  // (num_faces, 3), rows of vertices
  int64_t num_vertices;
  int64_t num_faces;
  int64_t resolution;  // voxels along an axis, at most kMaxVoxelResolution
  double low;          // where the grid begins, on every axis
  double scale;        // voxels for a unit of length
};

// A triangle in units of voxels, what there is to know of it before any voxel is looked at.
struct VoxelTriangle {
  double corner[3][3];
  double low[3], high[3];    // its bounds
  int64_t first[3], end[3];  // the voxels that these touch, of the grid
  int across, up, along;     // the axes of the columns' rectangle, and of the columns
  int64_t num_columns;       // 0 if it touches nothing
};

namespace voxelize {

constexpr double kRounding = 8.0 * Limits<double>::kEpsilon;
constexpr double kMargin = 1e-6;  // of candidates, far above any rounding

FASTSHAPE_HOST_DEVICE double absolute(double v) { return v < 0.0 ? -v : v; }

// floor(v) and ceil(v) within [low, high], which need not be tested for overflow any more.
FASTSHAPE_HOST_DEVICE int64_t floor_within(double v, int64_t low, int64_t high) {
  if (!(v > static_cast<double>(low))) return low;
  if (v >= static_cast<double>(high)) return high;
  return static_cast<int64_t>(v);  // toward zero, and low >= 0
}

// Keeps what a polygon has at most (sign = 1) or at least (sign = -1) `bound` on an axis.
FASTSHAPE_HOST_DEVICE int clip(double (*in)[3], int count, int axis, double bound, double sign,
                               double (*out)[3]) {
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    const double* a = in[i];
    const double* b = in[i + 1 == count ? 0 : i + 1];
    const double over_a = sign * (a[axis] - bound), over_b = sign * (b[axis] - bound);
    if (over_a <= 0.0) {
      for (int k = 0; k < 3; ++k) out[kept][k] = a[k];
      ++kept;
    }
    if ((over_a < 0.0 && over_b > 0.0) || (over_a > 0.0 && over_b < 0.0)) {
      const double t = over_a / (over_a - over_b);
      for (int k = 0; k < 3; ++k) out[kept][k] = a[k] + t * (b[k] - a[k]);
      ++kept;
    }
  }
  return kept;
}

// The axis of a projection separates the corners, relative to the voxel's center, from the box.
FASTSHAPE_HOST_DEVICE bool separates(double p0, double p1, double p2, double radius) {
  const double least = smaller(smaller(p0, p1), p2), most = larger(larger(p0, p1), p2);
  return least > radius || most < -radius;
}

}  // namespace voxelize

template <class T>
FASTSHAPE_HOST_DEVICE VoxelTriangle voxel_triangle(const VoxelizeMesh<T>& task, int64_t face) {
  VoxelTriangle t;
  t.num_columns = 0;
  t.across = 0, t.up = 1, t.along = 2;
  for (int i = 0; i < 3; ++i) {
    const int64_t vertex = task.faces[3 * face + i];
    if (vertex < 0 || vertex >= task.num_vertices) return t;
    for (int k = 0; k < 3; ++k) {
      const double place = static_cast<double>(task.vertices[3 * vertex + k]);
      t.corner[i][k] = (place - task.low) * task.scale;
      if (!is_finite(t.corner[i][k])) return t;
    }
  }
  for (int k = 0; k < 3; ++k) {
    t.low[k] = smaller(smaller(t.corner[0][k], t.corner[1][k]), t.corner[2][k]);
    t.high[k] = larger(larger(t.corner[0][k], t.corner[1][k]), t.corner[2][k]);
    if (t.high[k] < 0.0 || t.low[k] > static_cast<double>(task.resolution)) return t;
    // A voxel that ends where the triangle begins touches it.
    const int64_t first = voxelize::floor_within(t.low[k], 0, task.resolution);
    t.first[k] = first > 0 && static_cast<double>(first) == t.low[k] ? first - 1 : first;
    if (t.first[k] == task.resolution) t.first[k] = task.resolution - 1;
    t.end[k] = voxelize::floor_within(t.high[k], 0, task.resolution - 1) + 1;
  }
  // Columns along the axis that the triangle faces most; for a segment, along its longest extent.
  double size[3];
  for (int k = 0; k < 3; ++k) {
    const int a = k == 2 ? 0 : k + 1, b = a == 2 ? 0 : a + 1;
    size[k] =
        voxelize::absolute((t.corner[1][a] - t.corner[0][a]) * (t.corner[2][b] - t.corner[0][b]) -
                           (t.corner[1][b] - t.corner[0][b]) * (t.corner[2][a] - t.corner[0][a]));
  }
  if (size[0] == 0.0 && size[1] == 0.0 && size[2] == 0.0)
    for (int k = 0; k < 3; ++k) size[k] = t.high[k] - t.low[k];
  t.along = size[1] > size[0] ? 1 : 0;
  if (size[2] > size[t.along]) t.along = 2;
  t.across = t.along == 0 ? 1 : 0;
  t.up = t.along == 2 ? 1 : 2;
  t.num_columns = (t.end[t.across] - t.first[t.across]) * (t.end[t.up] - t.first[t.up]);
  return t;
}

FASTSHAPE_HOST_DEVICE bool touches_voxel(const VoxelTriangle& t, const int64_t voxel[3]) {
  double c[3][3];  // the corners from the voxel's center
  double reach = 1.0;
  for (int k = 0; k < 3; ++k) {
    // Against the box's own axes first, without any rounding.
    const double begin = static_cast<double>(voxel[k]);
    if (t.low[k] > begin + 1.0 || t.high[k] < begin) return false;
    for (int i = 0; i < 3; ++i) {
      c[i][k] = t.corner[i][k] - (begin + 0.5);
      reach = larger(reach, voxelize::absolute(t.corner[i][k]));
      reach = larger(reach, voxelize::absolute(c[i][k]));
    }
  }
  double edge[3][3];
  for (int i = 0; i < 3; ++i)
    for (int k = 0; k < 3; ++k) edge[i][k] = c[i == 2 ? 0 : i + 1][k] - c[i][k];
  for (int i = 0; i < 3; ++i) {
    for (int k = 0; k < 3; ++k) {
      const int a = k == 2 ? 0 : k + 1, b = a == 2 ? 0 : a + 1;
      const double ea = edge[i][a], eb = edge[i][b];
      const double sum = voxelize::absolute(ea) + voxelize::absolute(eb);
      const double radius = 0.5 * sum + voxelize::kRounding * reach * sum;
      if (voxelize::separates(eb * c[0][a] - ea * c[0][b], eb * c[1][a] - ea * c[1][b],
                              eb * c[2][a] - ea * c[2][b], radius))
        return false;
    }
  }
  double offset = 0.0, radius = 0.0, bound = 0.0;
  for (int k = 0; k < 3; ++k) {
    const int a = k == 2 ? 0 : k + 1, b = a == 2 ? 0 : a + 1;
    const double normal = edge[0][a] * edge[1][b] - edge[0][b] * edge[1][a];
    const double most =
        voxelize::absolute(edge[0][a] * edge[1][b]) + voxelize::absolute(edge[0][b] * edge[1][a]);
    offset += normal * c[0][k];
    radius += 0.5 * voxelize::absolute(normal);
    bound += most;
  }
  radius += 4.0 * voxelize::kRounding * reach * bound;
  return !(offset > radius || offset < -radius);
}

// Calls visit(key) for each voxel of a column that the triangle touches; the key is (x R + y) R +
// z.
template <class Visit>
FASTSHAPE_HOST_DEVICE void visit_column(const VoxelTriangle& t, int64_t resolution, int64_t column,
                                        Visit&& visit) {
  const int64_t width = t.end[t.up] - t.first[t.up];
  int64_t voxel[3];
  voxel[t.across] = t.first[t.across] + column / width;
  voxel[t.up] = t.first[t.up] + column % width;
  int64_t first = t.first[t.along], end = t.end[t.along];
  if (end - first > 4) {
    // The extent of the triangle's part in the column.
    double a[8][3], b[8][3];
    for (int i = 0; i < 3; ++i)
      for (int k = 0; k < 3; ++k) a[i][k] = t.corner[i][k];
    const double x = static_cast<double>(voxel[t.across]), y = static_cast<double>(voxel[t.up]);
    int count = voxelize::clip(a, 3, t.across, x + 1.0 + voxelize::kMargin, 1.0, b);
    count = voxelize::clip(b, count, t.across, x - voxelize::kMargin, -1.0, a);
    count = voxelize::clip(a, count, t.up, y + 1.0 + voxelize::kMargin, 1.0, b);
    count = voxelize::clip(b, count, t.up, y - voxelize::kMargin, -1.0, a);
    if (count == 0) return;
    double low = a[0][t.along], high = low;
    for (int i = 1; i < count; ++i) {
      low = smaller(low, a[i][t.along]);
      high = larger(high, a[i][t.along]);
    }
    const int64_t from = voxelize::floor_within(low - 1.0 - voxelize::kMargin, 0, resolution);
    const int64_t to = voxelize::floor_within(high + voxelize::kMargin, 0, resolution - 1) + 1;
    first = from > first ? from : first;
    end = to < end ? to : end;
  }
  for (int64_t k = first; k < end; ++k) {
    voxel[t.along] = k;
    if (touches_voxel(t, voxel)) visit((voxel[0] * resolution + voxel[1]) * resolution + voxel[2]);
  }
}

namespace cpu {
// counts (num_faces,): the voxels that each face touches.
template <class T>
void voxelize_mesh_count(const VoxelizeMesh<T>& task, int64_t* counts);
// Writes each face's keys from offsets[face] on, in an order of its own.
template <class T>
void voxelize_mesh_fill(const VoxelizeMesh<T>& task, const int64_t* offsets, int64_t num_keys,
                        int64_t* keys);
}  // namespace cpu

namespace cuda {
template <class T>
void voxelize_mesh_count(const VoxelizeMesh<T>& task, int64_t* counts, cudaStream_t stream);
template <class T>
void voxelize_mesh_fill(const VoxelizeMesh<T>& task, const int64_t* offsets, int64_t num_keys,
                        int64_t* keys, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
