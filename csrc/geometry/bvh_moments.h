// What the winding number needs to know of a child of the hierarchy: the first three terms of its
// far field.
//
// With r from the query to the child's center, d = |r| and u = r / d, a child of area vectors n dA
// at center + y adds, Barill et al. 2018, equation 12 and appendix A,
//
//   (1 / 4 pi) [ N.u / d^2 - 3 S(u, u) / d^3 + (15 / 2) C(u, u, u) / d^4 + ... ]
//
// where N, S and C integrate n, n y and n y y. The derivatives of 1 / r are symmetric and without
// trace, so only the symmetric and traceless parts of S and C count: five numbers and seven, in
// place of nine and twenty-seven.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "geometry/bvh.h"
#include "geometry/vec3.h"

namespace fastshape {

// Rows of the moments (num_nodes, kMomentRows, 8), one column for each child.
enum MomentRow {
  kCenter = 0,   // x, y, z: the mean of the faces' centers, by area
  kRadius2 = 3,  // squared distance from there to the farthest vertex; -1 for an absent child
  kNormal = 4,   // N: x, y, z
  kQuadric = 7,  // S: xx, yy, xy, xz, yz
  kCubic = 12,   // C: xxx, xxy, xyy, yyy, xxz, yyz, xyz
  kArea = 19,    // the sum of the faces' areas
  kMomentRows = 20
};

template <class T>
struct BvhMoments {
  BvhView<T> bvh;
  T* moments;
};

template <class T>
struct Moments {
  Vec3<T> center, normal;
  T xx, yy, zz, xy, xz, yz;                            // S
  T xxx, xxy, xyy, yyy, xxz, yyz, xyz, xzz, yzz, zzz;  // C
  T area;
};

template <class T>
FASTSHAPE_HOST_DEVICE Moments<T> no_moments() {
  const T o = T(0);
  return {{o, o, o}, {o, o, o}, o, o, o, o, o, o, o, o, o, o, o, o, o, o, o, o, o};
}

template <class T>
FASTSHAPE_HOST_DEVICE bool is_present(const BvhView<T>& bvh, int64_t block, int lane) {
  return is_finite(bvh.triangles[block * 72 + lane]);
}

// Adds the symmetric part of n d, n X, where X is symmetric.
template <class T>
FASTSHAPE_HOST_DEVICE void add_face(Moments<T>* m, const Vec3<T>& n, const Vec3<T>& d, T x_xx,
                                    T x_yy, T x_zz, T x_xy, T x_xz, T x_yz) {
  const T half = T(0.5), third = T(1) / T(3);
  m->xx = m->xx + n.x * d.x;
  m->yy = m->yy + n.y * d.y;
  m->zz = m->zz + n.z * d.z;
  m->xy = m->xy + half * (n.x * d.y + n.y * d.x);
  m->xz = m->xz + half * (n.x * d.z + n.z * d.x);
  m->yz = m->yz + half * (n.y * d.z + n.z * d.y);
  m->xxx = m->xxx + n.x * x_xx;
  m->yyy = m->yyy + n.y * x_yy;
  m->zzz = m->zzz + n.z * x_zz;
  m->xxy = m->xxy + third * (T(2) * (n.x * x_xy) + n.y * x_xx);
  m->xyy = m->xyy + third * (T(2) * (n.y * x_xy) + n.x * x_yy);
  m->xxz = m->xxz + third * (T(2) * (n.x * x_xz) + n.z * x_xx);
  m->xzz = m->xzz + third * (T(2) * (n.z * x_xz) + n.x * x_zz);
  m->yyz = m->yyz + third * (T(2) * (n.y * x_yz) + n.z * x_yy);
  m->yzz = m->yzz + third * (T(2) * (n.z * x_yz) + n.y * x_zz);
  m->xyz = m->xyz + third * ((n.x * x_yz + n.y * x_xz) + n.z * x_xy);
}

// Removes the traces: xx + yy + zz = 0, xxx + xyy + xzz = 0 and so on.
template <class T>
FASTSHAPE_HOST_DEVICE void remove_traces(Moments<T>* m) {
  const T trace = ((m->xx + m->yy) + m->zz) / T(3);
  m->xx = m->xx - trace;
  m->yy = m->yy - trace;
  m->zz = m->zz - trace;
  const T fifth = T(1) / T(5), three_fifths = T(3) / T(5);
  const T x = (m->xxx + m->xyy) + m->xzz;
  const T y = (m->xxy + m->yyy) + m->yzz;
  const T z = (m->xxz + m->yyz) + m->zzz;
  m->xxx = m->xxx - three_fifths * x;
  m->xyy = m->xyy - fifth * x;
  m->xxy = m->xxy - fifth * y;
  m->yyy = m->yyy - three_fifths * y;
  m->xxz = m->xxz - fifth * z;
  m->yyz = m->yyz - fifth * z;
}

// A block's eight faces.
template <class T>
FASTSHAPE_HOST_DEVICE Moments<T> block_moments(const BvhView<T>& bvh, int64_t block) {
  Moments<T> m = no_moments<T>();
  Vec3<T> sum{T(0), T(0), T(0)}, plain{T(0), T(0), T(0)};
  T count = T(0);
  const T third = T(1) / T(3);
  for (int lane = 0; lane < kBvhWidth; ++lane) {
    if (!is_present(bvh, block, lane)) continue;
    Vec3<T> a, b, c;
    load_triangle(bvh.triangles, block, lane, &a, &b, &c);
    const Vec3<T> n = cross(b - a, c - a);
    const T area = T(0.5) * square_root(dot(n, n));
    const Vec3<T> center = third * ((a + b) + c);
    sum = sum + area * center;
    plain = plain + center;
    m.area = m.area + area;
    count = count + T(1);
  }
  m.center = m.area > T(0) ? (T(1) / m.area) * sum : (T(1) / larger(count, T(1))) * plain;
  for (int lane = 0; lane < kBvhWidth; ++lane) {
    if (!is_present(bvh, block, lane)) continue;
    Vec3<T> a, b, c;
    load_triangle(bvh.triangles, block, lane, &a, &b, &c);
    const Vec3<T> n = T(0.5) * cross(b - a, c - a);
    a = a - m.center, b = b - m.center, c = c - m.center;
    const Vec3<T> d = third * ((a + b) + c);
    // The mean of y y over a triangle: (a a + b b + c c + 9 d d) / 12.
    const T nine = T(9), twelfth = T(1) / T(12);
    m.normal = m.normal + n;
    add_face(&m, n, d, twelfth * (((a.x * a.x + b.x * b.x) + c.x * c.x) + nine * (d.x * d.x)),
             twelfth * (((a.y * a.y + b.y * b.y) + c.y * c.y) + nine * (d.y * d.y)),
             twelfth * (((a.z * a.z + b.z * b.z) + c.z * c.z) + nine * (d.z * d.z)),
             twelfth * (((a.x * a.y + b.x * b.y) + c.x * c.y) + nine * (d.x * d.y)),
             twelfth * (((a.x * a.z + b.x * b.z) + c.x * c.z) + nine * (d.x * d.z)),
             twelfth * (((a.y * a.z + b.y * b.z) + c.y * c.z) + nine * (d.y * d.z)));
  }
  remove_traces(&m);
  return m;
}

template <class T>
FASTSHAPE_HOST_DEVICE void store_moments(T* moments, int64_t node, int lane, const Moments<T>& m,
                                         T radius2) {
  T* rows = moments + node * (kMomentRows * 8) + lane;
  const T values[kMomentRows] = {m.center.x, m.center.y, m.center.z, radius2, m.normal.x,
                                 m.normal.y, m.normal.z, m.xx,       m.yy,    m.xy,
                                 m.xz,       m.yz,       m.xxx,      m.xxy,   m.xyy,
                                 m.yyy,      m.xxz,      m.yyz,      m.xyz,   m.area};
  for (int row = 0; row < kMomentRows; ++row) rows[8 * row] = values[row];
}

template <class T>
FASTSHAPE_HOST_DEVICE Moments<T> load_moments(const T* moments, int64_t node, int lane) {
  const T* rows = moments + node * (kMomentRows * 8) + lane;
  const auto at = [&](int row) { return rows[8 * row]; };
  Moments<T> m;
  m.center = {at(kCenter), at(kCenter + 1), at(kCenter + 2)};
  m.normal = {at(kNormal), at(kNormal + 1), at(kNormal + 2)};
  m.xx = at(kQuadric), m.yy = at(kQuadric + 1), m.xy = at(kQuadric + 2);
  m.xz = at(kQuadric + 3), m.yz = at(kQuadric + 4), m.zz = -(m.xx + m.yy);
  m.xxx = at(kCubic), m.xxy = at(kCubic + 1), m.xyy = at(kCubic + 2), m.yyy = at(kCubic + 3);
  m.xxz = at(kCubic + 4), m.yyz = at(kCubic + 5), m.xyz = at(kCubic + 6);
  m.xzz = -(m.xxx + m.xyy), m.yzz = -(m.xxy + m.yyy), m.zzz = -(m.xxz + m.yyz);
  m.area = at(kArea);
  return m;
}

// A node's moments from its children's, moved from center to center. With y' = y + d the integrals
// of n y' and n y' y' are S + N d and C + 2 S d + N d d; traces stay traces.
template <class T>
FASTSHAPE_HOST_DEVICE Moments<T> node_moments(const T* moments, int64_t node) {
  const T* rows = moments + node * (kMomentRows * 8);
  Moments<T> m = no_moments<T>();
  Vec3<T> sum{T(0), T(0), T(0)}, plain{T(0), T(0), T(0)};
  T count = T(0);
  for (int lane = 0; lane < kBvhWidth; ++lane) {
    if (rows[8 * kRadius2 + lane] < T(0)) continue;
    const T area = rows[8 * kArea + lane];
    const Vec3<T> center{rows[lane], rows[8 + lane], rows[16 + lane]};
    sum = sum + area * center;
    plain = plain + center;
    m.area = m.area + area;
    count = count + T(1);
  }
  m.center = m.area > T(0) ? (T(1) / m.area) * sum : (T(1) / larger(count, T(1))) * plain;
  for (int lane = 0; lane < kBvhWidth; ++lane) {
    if (rows[8 * kRadius2 + lane] < T(0)) continue;
    const Moments<T> c = load_moments(moments, node, lane);
    const Vec3<T> d = c.center - m.center;
    const T third = T(1) / T(3), two = T(2);
    m.normal = m.normal + c.normal;
    m.xx = m.xx + c.xx, m.yy = m.yy + c.yy, m.zz = m.zz + c.zz;
    m.xy = m.xy + c.xy, m.xz = m.xz + c.xz, m.yz = m.yz + c.yz;
    // The symmetric part of 2 S d: (2 / 3)(S_ij d_k + S_ik d_j + S_jk d_i).
    const T s = two * third;
    m.xxx = (m.xxx + c.xxx) + two * (c.xx * d.x);
    m.yyy = (m.yyy + c.yyy) + two * (c.yy * d.y);
    m.zzz = (m.zzz + c.zzz) + two * (c.zz * d.z);
    m.xxy = (m.xxy + c.xxy) + s * (c.xx * d.y + two * (c.xy * d.x));
    m.xyy = (m.xyy + c.xyy) + s * (c.yy * d.x + two * (c.xy * d.y));
    m.xxz = (m.xxz + c.xxz) + s * (c.xx * d.z + two * (c.xz * d.x));
    m.xzz = (m.xzz + c.xzz) + s * (c.zz * d.x + two * (c.xz * d.z));
    m.yyz = (m.yyz + c.yyz) + s * (c.yy * d.z + two * (c.yz * d.y));
    m.yzz = (m.yzz + c.yzz) + s * (c.zz * d.y + two * (c.yz * d.z));
    m.xyz = (m.xyz + c.xyz) + s * ((c.xy * d.z + c.xz * d.y) + c.yz * d.x);
    add_face(&m, c.normal, d, d.x * d.x, d.y * d.y, d.z * d.z, d.x * d.y, d.x * d.z, d.y * d.z);
  }
  remove_traces(&m);
  return m;
}

template <class T>
FASTSHAPE_HOST_DEVICE T distance2(const Vec3<T>& a, const Vec3<T>& b) {
  const Vec3<T> d = a - b;
  return dot(d, d);
}

// The farthest vertex of one face slot from `center`, squared; 0 for an absent face.
template <class T>
FASTSHAPE_HOST_DEVICE T slot_radius2(const BvhView<T>& bvh, int64_t slot, const Vec3<T>& center) {
  const int64_t block = slot >> 3;
  const int lane = static_cast<int>(slot & 7);
  if (!is_present(bvh, block, lane)) return T(0);
  Vec3<T> a, b, c;
  load_triangle(bvh.triangles, block, lane, &a, &b, &c);
  return larger(larger(distance2(a, center), distance2(b, center)), distance2(c, center));
}

// Child `child` of `level` (counted over the level's nodes): which node and lane hold it, which
// blocks it covers (none: it is absent), and its moments.
struct MomentChild {
  int64_t node;
  int lane;
  int64_t first_block, last_block;
};

FASTSHAPE_HOST_DEVICE MomentChild moment_child(const BvhLevels& levels, int level, int64_t child) {
  const int64_t first = child << (3 * level), last = (child + 1) << (3 * level);
  return {levels.offset[level] + (child >> 3), static_cast<int>(child & 7), first,
          last < levels.num_blocks ? last : levels.num_blocks};
}

template <class T>
FASTSHAPE_HOST_DEVICE Moments<T> child_moments(const BvhMoments<T>& task, const BvhLevels& levels,
                                               int level, int64_t child) {
  return level == 0 ? block_moments(task.bvh, child)
                    : node_moments(task.moments, levels.offset[level - 1] + child);
}

namespace cpu {
template <class T>
void bvh_moments(const BvhMoments<T>& task);
}  // namespace cpu

namespace cuda {
template <class T>
void bvh_moments(const BvhMoments<T>& task, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
