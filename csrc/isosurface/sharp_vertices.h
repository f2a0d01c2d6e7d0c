// Dual vertices where the tangent planes at a cube's crossings meet: corners and creases stay
// sharp.
//
// Of the points of a cube the one with the least sum of squared distances to the planes, each
// through a crossing with the field's gradient there as its normal, and of so many times the
// regularization its squared distance to the crossings' mean, which decides where the planes leave
// it open.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace fastshape {

template <class T>
struct SharpVertices {
  const T* points;          // (M, 3) crossings
  const T* normals;         // (M, 3), of any length; those that have none are left out
  const int64_t* crossing;  // (E,) the crossing of each pair of a vertex and an edge, in [0, M)
  const int64_t* first;     // (V + 1,) the pairs of each vertex
  const T* lower;           // (V, 3) the cube of each vertex
  const T* upper;           // (V, 3)
  int64_t num_vertices;
  T regularization;
  T* vertices;  // (V, 3)
};

FASTSHAPE_HOST_DEVICE float square_root(float x) { return sqrtf(x); }
FASTSHAPE_HOST_DEVICE double square_root(double x) { return sqrt(x); }

// x with A x = b; A symmetric and positive definite: xx, xy, xz, yy, yz, zz.
template <class T>
FASTSHAPE_HOST_DEVICE void solve3(const T* a, const T* b, T* x) {
  const T l0 = square_root(a[0]), l1 = a[1] / l0, l2 = a[2] / l0;  // Cholesky
  const T l3 = square_root(a[3] - l1 * l1), l4 = (a[4] - l2 * l1) / l3;
  const T l5 = square_root(a[5] - l2 * l2 - l4 * l4);
  const T y0 = b[0] / l0, y1 = (b[1] - l1 * y0) / l3, y2 = (b[2] - l2 * y0 - l4 * y1) / l5;
  x[2] = y2 / l5;
  x[1] = (y1 - l4 * x[2]) / l3;
  x[0] = (y0 - l1 * x[1] - l2 * x[2]) / l0;
}

template <class T>
FASTSHAPE_HOST_DEVICE void write_sharp_vertex(const SharpVertices<T>& task, int64_t vertex) {
  const int64_t begin = task.first[vertex], end = task.first[vertex + 1];
  const T count = static_cast<T>(end - begin);
  T mean[3] = {};
  for (int64_t pair = begin; pair < end; ++pair)
    for (int i = 0; i < 3; ++i) mean[i] += task.points[3 * task.crossing[pair] + i];
  for (int i = 0; i < 3; ++i) mean[i] /= count;
  T a[6] = {}, b[3] = {}, x[3];
  a[0] = a[3] = a[5] = task.regularization * count;
  for (int64_t pair = begin; pair < end; ++pair) {
    const T* n = task.normals + 3 * task.crossing[pair];
    const T* p = task.points + 3 * task.crossing[pair];
    const T length = square_root(n[0] * n[0] + n[1] * n[1] + n[2] * n[2]);
    const T scale = T(1) / length;
    if (!(length > T(0)) || scale == T(0)) continue;  // zero, NaN, or too long to have a direction
    const T u[3] = {n[0] * scale, n[1] * scale, n[2] * scale};
    const T d = u[0] * (p[0] - mean[0]) + u[1] * (p[1] - mean[1]) + u[2] * (p[2] - mean[2]);
    a[0] += u[0] * u[0];
    a[1] += u[0] * u[1];
    a[2] += u[0] * u[2];
    a[3] += u[1] * u[1];
    a[4] += u[1] * u[2];
    a[5] += u[2] * u[2];
    for (int i = 0; i < 3; ++i) b[i] += u[i] * d;
  }
  solve3(a, b, x);
  for (int i = 0; i < 3; ++i) {
    T place = mean[i] + x[i];
    const T low = task.lower[3 * vertex + i], high = task.upper[3 * vertex + i];
    place = place < low ? low : place;
    task.vertices[3 * vertex + i] = place > high ? high : place;
  }
}

namespace cpu {
template <class T>
void sharp_vertices(const SharpVertices<T>& task);
}  // namespace cpu

namespace cuda {
template <class T>
void sharp_vertices(const SharpVertices<T>& task, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
