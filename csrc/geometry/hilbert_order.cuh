// Sorting points along a Hilbert curve on the device: faces by their centers, queries by
// themselves.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"
#include "core/elementwise.cuh"
#include "core/workspace.h"
#include "geometry/hilbert.h"

#if defined(__CUDACC__)
#define FASTSHAPE_UNROLL _Pragma("unroll")
#else
#define FASTSHAPE_UNROLL
#endif

namespace fastshape::cuda {

struct HilbertWorkspace {
  unsigned long long* bounds;  // three lows, three highs, as ordered integers
  uint64_t *keys, *sorted_keys;
  uint32_t *values, *order;
  unsigned char* sort;
  size_t sort_bytes;
  size_t bytes;
};

inline HilbertWorkspace hilbert_workspace(const char* op, void* begin, int64_t n, int bits) {
  WorkspaceCutter cutter(begin);
  HilbertWorkspace w{};
  w.bounds = cutter.take<unsigned long long>(6);
  w.keys = cutter.take<uint64_t>(n);
  w.sorted_keys = cutter.take<uint64_t>(n);
  w.values = cutter.take<uint32_t>(n);
  w.order = cutter.take<uint32_t>(n);
  w.sort_bytes = device_sort_pairs_workspace_bytes<uint64_t>(op, n, 0, 3 * bits);
  w.sort = cutter.take<unsigned char>(static_cast<int64_t>(w.sort_bytes));
  w.bytes = cutter.bytes();
  return w;
}

// Integers in the order of the doubles they stand for.
__device__ __forceinline__ unsigned long long ordered_bits(double v) {
  const auto bits = static_cast<unsigned long long>(__double_as_longlong(v));
  return bits >> 63 ? ~bits : bits | 1ull << 63;
}
__device__ __forceinline__ double from_ordered_bits(unsigned long long bits) {
  return __longlong_as_double(static_cast<long long>(bits >> 63 ? bits & ~(1ull << 63) : ~bits));
}

// `source(i)` is the i-th point; those that are not finite have no say in the bounds.
template <class T, class Source>
__global__ void hilbert_bounds_kernel(Source source, int64_t n, unsigned long long* bounds) {
  unsigned long long low[3] = {~0ull, ~0ull, ~0ull}, high[3] = {0, 0, 0};
  for (int64_t i = thread_index(); i < n; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const Vec3<T> p = source(i);
    if (!is_finite(p)) continue;
    const double v[3] = {static_cast<double>(p.x), static_cast<double>(p.y),
                         static_cast<double>(p.z)};
    for (int k = 0; k < 3; ++k) {
      const unsigned long long bits = ordered_bits(v[k]);
      low[k] = bits < low[k] ? bits : low[k];
      high[k] = bits > high[k] ? bits : high[k];
    }
  }
  for (int k = 0; k < 3; ++k) {
    for (int bit = 16; bit > 0; bit /= 2) {
      const unsigned long long other_low = __shfl_xor_sync(0xffffffffu, low[k], bit);
      const unsigned long long other_high = __shfl_xor_sync(0xffffffffu, high[k], bit);
      low[k] = other_low < low[k] ? other_low : low[k];
      high[k] = other_high > high[k] ? other_high : high[k];
    }
    if (lane_id() == 0) {
      atomicMin(&bounds[k], low[k]);
      atomicMax(&bounds[3 + k], high[k]);
    }
  }
}

template <class T, class Source>
__global__ void hilbert_codes_kernel(Source source, int64_t n, int bits,
                                     const unsigned long long* bounds, uint64_t* keys,
                                     uint32_t* values) {
  const int64_t i = thread_index();
  if (i >= n) return;
  const auto bound = [&](int k) { return static_cast<T>(from_ordered_bits(bounds[k])); };
  const Vec3<T> low{bound(0), bound(1), bound(2)}, high{bound(3), bound(4), bound(5)};
  keys[i] = hilbert_code(source(i), low, grid_scale(low, high, bits), bits);
  values[i] = static_cast<uint32_t>(i);
}

// Leaves the order in workspace.order.
template <class T, class Source>
void hilbert_order(const char* op, const HilbertWorkspace& workspace, const Source& source,
                   int64_t n, int bits, cudaStream_t stream) {
  fill_bytes(op, workspace.bounds, 0xff, 3 * sizeof(unsigned long long), stream);
  fill_bytes(op, workspace.bounds + 3, 0, 3 * sizeof(unsigned long long), stream);
  const unsigned blocks = blocks_for(n).x;
  launch(op, hilbert_bounds_kernel<T, Source>, dim3(blocks < 512 ? blocks : 512), dim3(kBlock), 0,
         stream, source, n, workspace.bounds);
  launch(op, hilbert_codes_kernel<T, Source>, dim3(blocks), dim3(kBlock), 0, stream, source, n,
         bits, workspace.bounds, workspace.keys, workspace.values);
  device_sort_pairs<uint64_t>(op, workspace.sort, workspace.sort_bytes, workspace.keys,
                              workspace.sorted_keys, workspace.values, workspace.order, n, stream,
                              0, 3 * bits);
}

constexpr int kQueryBits = 10;  // an axis, for query points

template <class T>
struct PointSource {
  const T* points;
  __device__ Vec3<T> operator()(int64_t i) const { return load_point(points, i); }
};

inline size_t query_order_workspace_bytes(const char* op, int64_t num_points) {
  return hilbert_workspace(op, nullptr, num_points, kQueryBits).bytes;
}

// The order in which threads take query points, so that a warp's points are neighbors.
template <class T>
const uint32_t* query_order(const char* op, const T* points, int64_t num_points, void* workspace,
                            size_t workspace_bytes, cudaStream_t stream) {
  const HilbertWorkspace w = hilbert_workspace(op, workspace, num_points, kQueryBits);
  FASTSHAPE_CHECK_VALUE(workspace_bytes >= w.bytes, op, ": the workspace has ", workspace_bytes,
                        " bytes, ", w.bytes, " are needed");
  hilbert_order<T>(op, w, PointSource<T>{points}, num_points, kQueryBits, stream);
  return w.order;
}

}  // namespace fastshape::cuda
