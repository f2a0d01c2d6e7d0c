// The dual vertices of FlexiCubes and the triangles between them.
//
// On an edge with values a and b at its ends, scaled by the cube's alpha of both corners, the
// surface lies at (x_a b - x_b a) / (b - a); a dual vertex is the mean of the crossings of its
// edges, weighted by the cube's beta. Its deviations are how much the distances to the crossings
// without alpha differ from their mean. A quad is split along a diagonal, or, for training, into
// four triangles around a center, both by the cubes' gamma. Without weights all are one: dual
// marching cubes.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"
#include "isosurface/dual_surface.h"

namespace fastshape {

constexpr int kMaxVertexEdges = 7;

template <class T>
struct FlexiCubes {
  const T* values;     // (P,)
  const T* positions;  // (P, 3), or null: the lattice's own
  const T* features;   // (P, num_features), or null
  int64_t num_features;
  CubeCorners corners;
  T level;
  // Of the crossed cubes, or null: all one.
  const T* alpha;  // (S, 8)
  const T* beta;   // (S, 12)
  const T* gamma;  // (S,)
  DualCubes cubes;
  const int64_t* vertex_cubes;  // (V,)
  const int64_t* quads;         // (Q, 4)
  const uint8_t* quad_kinds;    // (Q,)
  int64_t num_vertices, num_quads;
  bool centers;  // four triangles a quad
};

template <class T>
struct FlexiCubesMesh {
  T* vertices;     // (V, 3), with centers (V + Q, 3)
  T* features;     // (as vertices, num_features), or null
  T* deviation;    // (E,), or null
  int64_t* faces;  // (2 Q, 3), with centers (4 Q, 3)
};

// ---- One crossing ------------------------------------------------------------------------------

// The weight of the edge's beginning where its values are a and b, less and not less than nothing
// or the other way round: in [0, 1]. The middle where infinities or NaN leave it undefined, which
// has no derivatives.
template <class T>
struct Crossing {
  T weight;
  T difference;  // b - a
};

template <class T>
FASTSHAPE_HOST_DEVICE Crossing<T> crossing_at(T a, T b) {
  const T d = b - a, w = b / d;
  if (!(w == w)) return {T(0.5), static_cast<T>(INFINITY)};
  return {w, d};
}

// The derivatives of the weight.
template <class T>
FASTSHAPE_HOST_DEVICE T by_a(const Crossing<T>& c) {
  return c.weight / c.difference;
}
template <class T>
FASTSHAPE_HOST_DEVICE T by_b(const Crossing<T>& c) {
  return (T(1) - c.weight) / c.difference;
}

// ---- One cube ----------------------------------------------------------------------------------

template <class T>
struct CubeData {
  int64_t corner[8];
  T value[8];     // less the level
  T scaled[8];    // times alpha
  T place[8][3];  // positions
};

// Where a point of a lattice is. Numbers of 32 bits, which all but huge lattices have, are divided
// several times as fast.
FASTSHAPE_HOST_DEVICE void find_point(const CubeCorners& c, int64_t point, int64_t* at) {
  if (point >> 32 == 0 && c.size_y >> 32 == 0 && c.size_z >> 32 == 0) {
    const auto size_y = static_cast<uint32_t>(c.size_y), size_z = static_cast<uint32_t>(c.size_z);
    const uint32_t row = static_cast<uint32_t>(point) / size_z;
    at[0] = row / size_y;
    at[1] = row % size_y;
    at[2] = static_cast<uint32_t>(point) % size_z;
    return;
  }
  const int64_t row = point / c.size_z;
  at[0] = row / c.size_y;
  at[1] = row % c.size_y;
  at[2] = point % c.size_z;
}

template <class T>
FASTSHAPE_HOST_DEVICE CubeData<T> load_cube(const FlexiCubes<T>& task, int64_t s) {
  CubeData<T> c;
  const int64_t lowest = task.cubes.lowest[s];
  const int64_t row = task.corners.cubes == nullptr ? 0 : task.cubes.rows[s];
  int64_t at[3] = {0, 0, 0};
  if (task.positions == nullptr) find_point(task.corners, lowest, at);
  for (int k = 0; k < 8; ++k) {
    c.corner[k] = cube_corner(task.corners, lowest, row, k);
    c.value[k] = task.values[c.corner[k]] - task.level;
    c.scaled[k] = task.alpha == nullptr ? c.value[k] : c.value[k] * task.alpha[8 * s + k];
    if (task.positions == nullptr) {
      for (int i = 0; i < 3; ++i) c.place[k][i] = static_cast<T>(at[i] + (k >> i & 1));
    } else {
      for (int i = 0; i < 3; ++i) c.place[k][i] = task.positions[3 * c.corner[k] + i];
    }
  }
  return c;
}

// One dual vertex: what its edges' crossings are and where their mean is.
template <class T>
struct DualVertex {
  int num_edges;
  int edge[kMaxVertexEdges];
  Crossing<T> crossing[kMaxVertexEdges];  // with alpha
  Crossing<T> plain[kMaxVertexEdges];     // without
  T share[kMaxVertexEdges];               // beta
  T sum;                                  // of the shares
  T point[kMaxVertexEdges][3];            // of `crossing`
  T position[3];
  T offset[kMaxVertexEdges][3];  // from position to the crossing without alpha
  T distance[kMaxVertexEdges];
  T mean_distance;
};

template <class T>
FASTSHAPE_HOST_DEVICE T between(const Crossing<T>& c, T begin, T end) {
  return begin * c.weight + end * (T(1) - c.weight);
}

FASTSHAPE_HOST_DEVICE float root(float x) { return sqrtf(x); }
FASTSHAPE_HOST_DEVICE double root(double x) { return sqrt(x); }

// `edges`: the cube's, four bits each, those of this vertex first; `count` of them.
template <class T>
FASTSHAPE_HOST_DEVICE void make_vertex(const FlexiCubes<T>& task, int64_t s, const CubeData<T>& c,
                                       uint64_t edges, int count, DualVertex<T>* v) {
  v->num_edges = count;
  v->sum = T(0);
  for (int i = 0; i < 3; ++i) v->position[i] = T(0);
  for (int k = 0; k < count; ++k) {
    const int e = static_cast<int>(edges >> 4 * k & 15);
    const int a = dual_edge_begin(e), b = dual_edge_end(e);
    v->edge[k] = e;
    v->crossing[k] = crossing_at(c.scaled[a], c.scaled[b]);
    v->share[k] = task.beta == nullptr ? T(1) : task.beta[kDualEdges * s + e];
    v->sum += v->share[k];
    for (int i = 0; i < 3; ++i) {
      v->point[k][i] = between(v->crossing[k], c.place[a][i], c.place[b][i]);
      v->position[i] += v->share[k] * v->point[k][i];
    }
  }
  for (int i = 0; i < 3; ++i) v->position[i] /= v->sum;
}

// The rest of a vertex that make_vertex made: its distances.
template <class T>
FASTSHAPE_HOST_DEVICE void measure_vertex(const FlexiCubes<T>& task, const CubeData<T>& c,
                                          DualVertex<T>* v) {
  const int count = v->num_edges;
  v->mean_distance = T(0);
  for (int k = 0; k < count; ++k) {
    const int a = dual_edge_begin(v->edge[k]), b = dual_edge_end(v->edge[k]);
    v->plain[k] = task.alpha == nullptr ? v->crossing[k] : crossing_at(c.value[a], c.value[b]);
    for (int i = 0; i < 3; ++i)
      v->offset[k][i] = between(v->plain[k], c.place[a][i], c.place[b][i]) - v->position[i];
    const T* o = v->offset[k];
    v->distance[k] = root(o[0] * o[0] + o[1] * o[1] + o[2] * o[2]);
    v->mean_distance += v->distance[k];
  }
  v->mean_distance /= static_cast<T>(count);
}

// Feature j at the crossing of the vertex's k-th edge.
template <class T>
FASTSHAPE_HOST_DEVICE T feature_at(const FlexiCubes<T>& task, const CubeData<T>& c,
                                   const DualVertex<T>& v, int k, int64_t j) {
  const int a = dual_edge_begin(v.edge[k]), b = dual_edge_end(v.edge[k]);
  return between(v.crossing[k], task.features[task.num_features * c.corner[a] + j],
                 task.features[task.num_features * c.corner[b] + j]);
}

template <class T>
FASTSHAPE_HOST_DEVICE T mean_feature(const FlexiCubes<T>& task, const CubeData<T>& c,
                                     const DualVertex<T>& v, int64_t j) {
  T sum = T(0);
  for (int k = 0; k < v.num_edges; ++k) sum += v.share[k] * feature_at(task, c, v, k, j);
  return sum / v.sum;
}

// f(vertex, first pair, DualVertex) for each dual vertex of cube s, with its distances or without.
template <class T, class F>
FASTSHAPE_HOST_DEVICE void for_each_vertex(const FlexiCubes<T>& task, int64_t s,
                                           const CubeData<T>& c, bool distances, const F& f) {
  uint64_t edges = dual_edges(task.cubes.cases[s]);
  uint64_t counts = edges >> 48;
  int64_t vertex = task.cubes.first_vertex[s];
  int64_t pair = task.cubes.first_pair == nullptr ? 0 : task.cubes.first_pair[s];
  DualVertex<T> v;
  for (; counts != 0; counts >>= 4, ++vertex) {
    const int count = static_cast<int>(counts & 15);
    make_vertex(task, s, c, edges, count, &v);
    if (distances) measure_vertex(task, c, &v);
    f(vertex, pair, v);
    edges >>= 4 * count;
    pair += count;
  }
}

template <class T>
FASTSHAPE_HOST_DEVICE void write_vertices(const FlexiCubes<T>& task, int64_t s,
                                          const FlexiCubesMesh<T>& mesh) {
  const CubeData<T> c = load_cube(task, s);
  const bool distances = mesh.deviation != nullptr;
  for_each_vertex(task, s, c, distances, [&](int64_t vertex, int64_t pair, const DualVertex<T>& v) {
    for (int i = 0; i < 3; ++i) mesh.vertices[3 * vertex + i] = v.position[i];
    for (int k = 0; distances && k < v.num_edges; ++k) {
      const T d = v.distance[k] - v.mean_distance;
      mesh.deviation[pair + k] = d < T(0) ? -d : d;
    }
    for (int64_t j = 0; j < task.num_features; ++j)
      mesh.features[task.num_features * vertex + j] = mean_feature(task, c, v, j);
  });
}

// ---- One quad ----------------------------------------------------------------------------------

template <class T>
struct QuadWeights {
  T gamma[4];
  T even, odd;  // of the diagonals between corners 0 and 2, and 1 and 3
  T sum;
};

template <class T>
FASTSHAPE_HOST_DEVICE QuadWeights<T> quad_weights(const FlexiCubes<T>& task, int64_t quad) {
  QuadWeights<T> w;
  for (int i = 0; i < 4; ++i)
    w.gamma[i] =
        task.gamma == nullptr ? T(1) : task.gamma[task.vertex_cubes[task.quads[4 * quad + i]]];
  w.even = w.gamma[0] * w.gamma[2];
  w.odd = w.gamma[1] * w.gamma[3];
  w.sum = w.even + w.odd + T(1e-8);
  return w;
}

template <class T>
FASTSHAPE_HOST_DEVICE T quad_center(const QuadWeights<T>& w, T a, T b, T c, T d) {
  return (w.even * ((a + c) / T(2)) + w.odd * ((b + d) / T(2))) / w.sum;
}

// After all dual vertices are written.
template <class T>
FASTSHAPE_HOST_DEVICE void write_faces(const FlexiCubes<T>& task, int64_t quad,
                                       const FlexiCubesMesh<T>& mesh) {
  const int64_t* q = task.quads + 4 * quad;
  const QuadWeights<T> w = quad_weights(task, quad);
  if (!task.centers) {
    split_quad(q, w.even > w.odd, mesh.faces + 6 * quad);
    return;
  }
  const int64_t center = task.num_vertices + quad;
  for (int i = 0; i < 3; ++i) {
    const auto at = [&](int k) { return mesh.vertices[3 * q[k] + i]; };
    mesh.vertices[3 * center + i] = quad_center(w, at(0), at(1), at(2), at(3));
  }
  for (int64_t j = 0; j < task.num_features; ++j) {
    const auto at = [&](int k) { return mesh.features[task.num_features * q[k] + j]; };
    mesh.features[task.num_features * center + j] = quad_center(w, at(0), at(1), at(2), at(3));
  }
  for (int i = 0; i < 4; ++i) {
    int64_t* const face = mesh.faces + 12 * quad + 3 * i;
    face[0] = q[i];
    face[1] = q[(i + 1) & 3];
    face[2] = center;
  }
}

namespace cpu {
template <class T>
void flexicubes(const FlexiCubes<T>& task, const FlexiCubesMesh<T>& mesh);
}  // namespace cpu

namespace cuda {
template <class T>
void flexicubes(const FlexiCubes<T>& task, const FlexiCubesMesh<T>& mesh, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
