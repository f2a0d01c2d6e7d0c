// How many of some rays from a point meet the mesh an odd number of times.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "geometry/bvh.h"
#include "geometry/ray.h"

namespace fastshape {

template <class T>
struct RayParity {
  BvhView<T> bvh;
  const T* points;      // (num_points, 3)
  const T* directions;  // (num_rays, 3)
  int64_t num_points;
  int64_t num_rays;
  int32_t* votes;  // (num_points,): rays with an odd number of faces at t > 0; 0 for a point that
                   // is not finite
};

namespace cpu {
template <class T>
void ray_parity(const RayParity<T>& task);
}  // namespace cpu

namespace cuda {
size_t ray_parity_workspace_bytes(int64_t num_points);
template <class T>
void ray_parity(const RayParity<T>& task, void* workspace, size_t workspace_bytes,
                cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
