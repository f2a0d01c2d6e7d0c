// The mean of what voxels say of each of their common corners, summed in the order of the voxels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"

namespace fastshape {

template <class T>
struct CornerMean {
  const T* values;       // (num_voxels, 8, width)
  const int64_t* index;  // (num_voxels, 8) corners; those that are not there are left out
  int64_t num_voxels;    // below 2^29
  int64_t width;
  int64_t num_corners;  // below 2^32
  T* mean;              // (num_corners, width), zero where no voxel says anything
  int64_t* counts;      // (num_corners,) how many did
};

template <class T>
FASTSHAPE_HOST_DEVICE void add_to_mean(const CornerMean<T>& task, int64_t slot, int64_t corner) {
  for (int64_t j = 0; j < task.width; ++j)
    task.mean[task.width * corner + j] += task.values[task.width * slot + j];
  ++task.counts[corner];
}

template <class T>
FASTSHAPE_HOST_DEVICE void finish_mean(const CornerMean<T>& task, int64_t corner) {
  const T count = static_cast<T>(task.counts[corner]);
  for (int64_t j = 0; j < task.width; ++j) task.mean[task.width * corner + j] /= count;
}

namespace cpu {
template <class T>
void corner_mean(const CornerMean<T>& task);
}  // namespace cpu

namespace cuda {
size_t corner_mean_workspace_bytes(int64_t num_voxels);
template <class T>
void corner_mean(const CornerMean<T>& task, void* workspace, size_t workspace_bytes,
                 cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
