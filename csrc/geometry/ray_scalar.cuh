// One ray against one box, for kernels that take a ray a thread.
#pragma once

#include "core/cuda_utils.cuh"
#include "geometry/ray.h"

namespace fastshape::cuda {

template <class T>
__device__ __forceinline__ bool meets_box(const BvhView<T>& bvh, const Ray<T>& ray, int32_t node,
                                          int lane, T limit, T* near) {
  const T* rows = bvh.boxes + static_cast<int64_t>(node) * 48 + lane;
  T far;
  box_stretch(ray, [rows](int row) { return rows[8 * row]; }, near, &far);
  return *near <= far && far >= T(0) && *near <= limit;
}

}  // namespace fastshape::cuda
