// How many of some rays from a point meet the mesh an odd number of times, or how often they leave
// it more than they enter it.
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
  bool crossings;  // instead: faces left minus faces entered at t > 0, of one ray
};

// The ray of a point whose crossings count: of six, towards +x, -x, +y, -y, +z and -z, the one that
// leaves the mesh's box soonest, the first of equals; a single one where there are not six.
template <class T>
FASTSHAPE_HOST_DEVICE int64_t crossing_ray(const RayParity<T>& task, const Vec3<T>& p) {
  if (task.num_rays != 6) return 0;
  Box<T> box = load_box(task.bvh.boxes, 0, 0);
  for (int lane = 1; lane < kBvhWidth; ++lane) box = join(box, load_box(task.bvh.boxes, 0, lane));
  const T ways[6] = {box.high.x - p.x, p.x - box.low.x,  box.high.y - p.y,
                     p.y - box.low.y,  box.high.z - p.z, p.z - box.low.z};
  int64_t best = 0;
  for (int ray = 1; ray < 6; ++ray)
    if (ways[ray] < ways[best]) best = ray;
  return best;
}

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
