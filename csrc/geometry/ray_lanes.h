// One ray against eight boxes or eight triangles in the lanes of a vector register.
#pragma once

#include "geometry/ray.h"
#include "geometry/simd.h"

namespace fastshape {
namespace {

// The children whose box the ray meets at some t in [0, limit].
template <class T>
FASTSHAPE_LANES uint32_t node_candidates(const BvhView<T>& bvh, const Ray<T>& ray, int32_t node,
                                         T limit, Simd<T>* near) {
  using Lanes = Simd<T>;
  const T* rows = bvh.boxes + static_cast<int64_t>(node) * 48;
  Lanes far;
  box_stretch(ray, [rows](int row) { return load_lanes(rows + 8 * row); }, near, &far);
  return lane_bits((*near <= far) & (far >= Lanes(0)) & (*near <= Lanes(limit)));
}

// The faces of a block that the line may meet.
template <class T>
FASTSHAPE_LANES uint32_t block_candidates(const BvhView<T>& bvh, const Ray<T>& ray, int64_t block) {
  using Lanes = Simd<T>;
  const T* rows = bvh.triangles + block * 72;
  const auto vertex = [&](int first) {
    return shear<Lanes>(ray, load_lanes(rows + 8 * (first + ray.kx)),
                        load_lanes(rows + 8 * (first + ray.ky)),
                        load_lanes(rows + 8 * (first + ray.kz)));
  };
  return lane_bits(may_hit(vertex(0), vertex(3), vertex(6)));
}

}  // namespace
}  // namespace fastshape
