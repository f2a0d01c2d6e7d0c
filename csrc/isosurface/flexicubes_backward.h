// The gradient of FlexiCubes' vertices, features and deviations with respect to the values,
// positions, features and weights.
//
// Each crossed cube evaluates its dual vertices once more and writes what they give to its own
// weights; a corner sums what its cubes give to it, in the order of the cubes. Nothing is added by
// two at a time, so the result does not depend on the threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "isosurface/flexicubes.h"
#include "isosurface/flexicubes_weights.h"

namespace fastshape {

template <class T>
struct FlexiCubesBackward {
  FlexiCubes<T> task;
  const T* vertices;        // what forward gave: with centers, (V + Q, 3)
  const T* out_features;    // (as vertices, num_features), or null
  const T* grad_vertices;   // as vertices
  const T* grad_features;   // as out_features, or null
  const T* grad_deviation;  // (E,)
  int64_t num_points;       // P
  // Nothing everywhere before, and where the surface does not pass after.
  T* grad_values;           // (P,)
  T* grad_positions;        // (P, 3), null without positions
  T* grad_corner_features;  // (P, num_features), null without features
  // Of the weights of all N cubes, or null without them.
  bool activated;  // with respect to what `activated` was given
  T* grad_alpha;   // (N, 8)
  T* grad_beta;    // (N, 12)
  T* grad_gamma;   // (N,)
};

// incidence[12 * cube + edge]: 4 * quad + corner of the quad that has the cube's dual vertex of
// that edge; -1 where the edge has no quad. With centers only.
template <class T>
FASTSHAPE_HOST_DEVICE void write_incidence(const FlexiCubes<T>& task, int64_t quad,
                                           int64_t* incidence) {
  const int axis = task.quad_kinds[quad] & 3;
  const bool outside = (task.quad_kinds[quad] & 4) != 0;
  for (int i = 0; i < 4; ++i) {
    const int64_t cube = task.vertex_cubes[task.quads[4 * quad + i]];
    incidence[kDualEdges * cube + quad_edge(axis, quad_turn(outside, i))] = 4 * quad + i;
  }
}

// What flows back from the centers of the quads around a vertex.
template <class T>
struct CenterShares {
  int num;
  int64_t center[kMaxVertexEdges];  // row of the outputs
  T weight[kMaxVertexEdges];        // of the vertex in it
};

// Also adds to the gradient of the cube's gamma.
template <class T>
FASTSHAPE_HOST_DEVICE CenterShares<T> center_shares(const FlexiCubesBackward<T>& b,
                                                    const int64_t* incidence, int64_t s,
                                                    const DualVertex<T>& v, T* grad_gamma) {
  CenterShares<T> shares;
  shares.num = 0;
  if (!b.task.centers) return shares;
  for (int k = 0; k < v.num_edges; ++k) {
    const int64_t at = incidence[kDualEdges * s + v.edge[k]];
    if (at < 0) continue;
    const int64_t quad = at / 4, center = b.task.num_vertices + quad;
    const int corner = static_cast<int>(at & 3);
    const QuadWeights<T> w = quad_weights(b.task, quad);
    shares.center[shares.num] = center;
    shares.weight[shares.num] = (corner & 1 ? w.odd : w.even) / (T(2) * w.sum);
    ++shares.num;
    if (b.task.gamma == nullptr) continue;
    const int64_t* q = b.task.quads + 4 * quad;
    const int64_t here = q[corner], there = q[corner ^ 2];
    const auto moved = [&](const T* out, const T* grad, int64_t width, int64_t i) {
      const T middle = (out[width * here + i] + out[width * there + i]) / T(2);
      return grad[width * center + i] * (middle - out[width * center + i]);
    };
    T sum = T(0);
    for (int i = 0; i < 3; ++i) sum += moved(b.vertices, b.grad_vertices, 3, i);
    for (int64_t j = 0; j < b.task.num_features; ++j)
      sum += moved(b.out_features, b.grad_features, b.task.num_features, j);
    *grad_gamma += sum * w.gamma[corner ^ 2] / w.sum;
  }
  return shares;
}

// The gradient of row `vertex`, number i of it.
template <class T>
FASTSHAPE_HOST_DEVICE T vertex_gradient(const CenterShares<T>& shares, const T* grad, int64_t width,
                                        int64_t vertex, int64_t i) {
  T sum = grad[width * vertex + i];
  for (int k = 0; k < shares.num; ++k) sum += shares.weight[k] * grad[width * shares.center[k] + i];
  return sum;
}

// What the deviations give: to the distances' offsets (out), and to the vertex (added).
template <class T>
FASTSHAPE_HOST_DEVICE void deviation_gradients(const DualVertex<T>& v, const T* grad_deviation,
                                               T grad_offset[][3], T* grad_position) {
  T signs[kMaxVertexEdges], mean = T(0);
  for (int k = 0; k < v.num_edges; ++k) {
    const T d = v.distance[k] - v.mean_distance;
    signs[k] = d > T(0) ? grad_deviation[k] : d < T(0) ? -grad_deviation[k] : T(0);
    mean += signs[k];
  }
  mean /= static_cast<T>(v.num_edges);
  for (int k = 0; k < v.num_edges; ++k) {
    const T grad = signs[k] - mean;
    const T scale = v.distance[k] > T(0) ? grad / v.distance[k] : T(0);
    for (int i = 0; i < 3; ++i) {
      grad_offset[k][i] = v.distance[k] > T(0) ? scale * v.offset[k][i] : T(0);
      grad_position[i] -= grad_offset[k][i];
    }
  }
}

// What a cube gives to its corners.
template <class T>
struct CornerGradients {
  T value[8];
  T position[8][3];
  T* features;     // num_features of each corner
  int64_t stride;  // from one corner's to the next's
};

// All that cube s gives to its corners.
template <class T>
FASTSHAPE_HOST_DEVICE void cube_gradients(const FlexiCubesBackward<T>& b, const int64_t* incidence,
                                          int64_t s, bool with_weights, CornerGradients<T>* out) {
  const FlexiCubes<T>& task = b.task;
  const CubeData<T> c = load_cube(task, s);
  for (int k = 0; k < 8; ++k) {
    out->value[k] = T(0);
    for (int i = 0; i < 3; ++i) out->position[k][i] = T(0);
    for (int64_t j = 0; j < task.num_features; ++j) out->features[out->stride * k + j] = T(0);
  }
  T grad_alpha[8] = {}, grad_beta[kDualEdges] = {}, grad_gamma = T(0);

  for_each_vertex(task, s, c, true, [&](int64_t vertex, int64_t pair, const DualVertex<T>& v) {
    const CenterShares<T> shares = center_shares(b, incidence, s, v, &grad_gamma);
    T grad_position[3], grad_offset[kMaxVertexEdges][3];
    for (int i = 0; i < 3; ++i)
      grad_position[i] = vertex_gradient(shares, b.grad_vertices, 3, vertex, i);
    deviation_gradients(v, b.grad_deviation + pair, grad_offset, grad_position);

    T grad_weight[kMaxVertexEdges] = {}, grad_share[kMaxVertexEdges] = {};
    for (int64_t j = 0; j < task.num_features; ++j) {
      const T grad = vertex_gradient(shares, b.grad_features, task.num_features, vertex, j);
      const T mean = mean_feature(task, c, v, j);
      for (int k = 0; k < v.num_edges; ++k) {
        const int begin = dual_edge_begin(v.edge[k]), end = dual_edge_end(v.edge[k]);
        const T weight = v.crossing[k].weight, here = grad * v.share[k] / v.sum;
        grad_share[k] += grad * (feature_at(task, c, v, k, j) - mean) / v.sum;
        grad_weight[k] += here * (task.features[task.num_features * c.corner[begin] + j] -
                                  task.features[task.num_features * c.corner[end] + j]);
        out->features[out->stride * begin + j] += here * weight;
        out->features[out->stride * end + j] += here * (T(1) - weight);
      }
    }

    for (int k = 0; k < v.num_edges; ++k) {
      const int begin = dual_edge_begin(v.edge[k]), end = dual_edge_end(v.edge[k]);
      const T weight = v.crossing[k].weight, plain = v.plain[k].weight;
      const T part = v.share[k] / v.sum;
      T grad_plain = T(0), moved = T(0);
      for (int i = 0; i < 3; ++i) {
        const T along = c.place[begin][i] - c.place[end][i];
        const T here = grad_position[i] * part;
        moved += grad_position[i] * (v.point[k][i] - v.position[i]);
        grad_weight[k] += here * along;
        grad_plain += grad_offset[k][i] * along;
        out->position[begin][i] += here * weight + grad_offset[k][i] * plain;
        out->position[end][i] += here * (T(1) - weight) + grad_offset[k][i] * (T(1) - plain);
      }
      grad_share[k] += moved / v.sum;
      const T by_begin = grad_weight[k] * by_a(v.crossing[k]);
      const T by_end = grad_weight[k] * by_b(v.crossing[k]);
      T to_begin = by_begin, to_end = by_end;
      if (task.alpha != nullptr) {
        to_begin *= task.alpha[8 * s + begin];
        to_end *= task.alpha[8 * s + end];
        grad_alpha[begin] += by_begin * c.value[begin];
        grad_alpha[end] += by_end * c.value[end];
      }
      out->value[begin] += to_begin + grad_plain * by_a(v.plain[k]);
      out->value[end] += to_end + grad_plain * by_b(v.plain[k]);
      grad_beta[v.edge[k]] += grad_share[k];
    }
  });

  if (!with_weights) return;
  const auto slope = [&](T weight, bool sigmoid) {
    return b.activated ? activation_slope(weight, sigmoid) : T(1);
  };
  const int64_t row = task.cubes.rows[s];
  if (b.grad_alpha != nullptr)
    for (int k = 0; k < 8; ++k)
      b.grad_alpha[8 * row + k] = grad_alpha[k] * slope(task.alpha[8 * s + k], false);
  if (b.grad_beta != nullptr)
    for (int e = 0; e < kDualEdges; ++e)
      b.grad_beta[kDualEdges * row + e] =
          grad_beta[e] * slope(task.beta[kDualEdges * s + e], false);
  if (b.grad_gamma != nullptr) b.grad_gamma[row] = grad_gamma * slope(task.gamma[s], true);
}

// Adds what a cube gives to its corner k.
template <class T>
FASTSHAPE_HOST_DEVICE void add_to_corner(const FlexiCubesBackward<T>& b,
                                         const CornerGradients<T>& from, int k, int64_t corner) {
  b.grad_values[corner] += from.value[k];
  if (b.grad_positions != nullptr)
    for (int i = 0; i < 3; ++i) b.grad_positions[3 * corner + i] += from.position[k][i];
  for (int64_t j = 0; j < b.task.num_features; ++j)
    b.grad_corner_features[b.task.num_features * corner + j] += from.features[from.stride * k + j];
}

// ---- What cubes give, kept until the corners sum it --------------------------------------------

// How many numbers that is for a corner: value, position, features.
template <class T>
FASTSHAPE_HOST_DEVICE int64_t corner_width(const FlexiCubesBackward<T>& b) {
  return 1 + (b.grad_positions != nullptr ? 3 : 0) + b.task.num_features;
}

// `corners`: (8, corner_width) of cube s.
template <class T>
FASTSHAPE_HOST_DEVICE void keep_cube_gradients(const FlexiCubesBackward<T>& b,
                                               const int64_t* incidence, int64_t s, T* corners) {
  const int64_t width = corner_width(b);
  CornerGradients<T> gradients;
  gradients.features = corners + (width - b.task.num_features);
  gradients.stride = width;
  cube_gradients(b, incidence, s, true, &gradients);
  for (int k = 0; k < 8; ++k) {
    corners[width * k] = gradients.value[k];
    for (int i = 0; i < 3 && b.grad_positions != nullptr; ++i)
      corners[width * k + 1 + i] = gradients.position[k][i];
  }
}

// Adds what a cube kept for a corner.
template <class T>
FASTSHAPE_HOST_DEVICE void add_kept(const FlexiCubesBackward<T>& b, const T* from, int64_t corner) {
  b.grad_values[corner] += *from++;
  if (b.grad_positions != nullptr)
    for (int i = 0; i < 3; ++i) b.grad_positions[3 * corner + i] += *from++;
  for (int64_t j = 0; j < b.task.num_features; ++j)
    b.grad_corner_features[b.task.num_features * corner + j] += *from++;
}

namespace cpu {
template <class T>
size_t flexicubes_backward_workspace_bytes(const FlexiCubesBackward<T>& backward);
template <class T>
void flexicubes_backward(const FlexiCubesBackward<T>& backward, void* workspace);
}  // namespace cpu

namespace cuda {
template <class T>
size_t flexicubes_backward_workspace_bytes(const FlexiCubesBackward<T>& backward);
template <class T>
void flexicubes_backward(const FlexiCubesBackward<T>& backward, void* workspace,
                         cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
