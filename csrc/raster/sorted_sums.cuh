// Sums by vertex without atomics: the entries are sorted by vertex, stably, and a warp adds up each
// vertex's run in an order that only the entries decide.
#pragma once

#include "core/block.cuh"
#include "core/cuda_utils.cuh"
#include "core/device_algorithms.cuh"
#include "core/elementwise.cuh"
#include "core/workspace.h"

namespace fastshape::cuda {
namespace {

constexpr uint32_t kNoVertex = 0xffffffffu;

struct SortedSums {
  uint32_t *keys, *sorted_keys, *entries, *sorted_entries;
  unsigned char* sort;
  size_t sort_bytes;
  size_t bytes;
};

inline SortedSums sorted_sums(const char* op, void* begin, int64_t n) {
  WorkspaceCutter cutter(begin);
  SortedSums w{};
  w.keys = cutter.take<uint32_t>(n);
  w.sorted_keys = cutter.take<uint32_t>(n);
  w.entries = cutter.take<uint32_t>(n);
  w.sorted_entries = cutter.take<uint32_t>(n);
  w.sort_bytes = device_sort_pairs_workspace_bytes<uint32_t>(op, n);
  w.sort = cutter.take<unsigned char>(static_cast<int64_t>(w.sort_bytes));
  w.bytes = cutter.bytes();
  return w;
}

// `add(entry, channel, weight)` gives an entry's share. A warp looks at 32 places of the sorted
// list and takes the runs that begin there one by one, all lanes together.
template <class T, class Share>
__global__ void sum_runs_kernel(Share share, const uint32_t* keys, const uint32_t* entries,
                                int64_t n, int channels, T* sums) {
  const int64_t first = thread_index() / 32 * 32;
  if (first >= n) return;
  const int64_t mine = first + lane_id();
  const bool begins =
      mine < n && keys[mine] != kNoVertex && (mine == 0 || keys[mine - 1] != keys[mine]);
  for (unsigned left = __ballot_sync(kAllLanes, begins); left != 0; left &= left - 1) {
    const int64_t begin = first + __ffs(static_cast<int>(left)) - 1;
    const uint32_t vertex = keys[begin];
    for (int channel = 0; channel < channels; ++channel) {
      double sum = 0.0;
      for (int64_t chunk = begin; chunk < n && keys[chunk] == vertex; chunk += 32) {
        const int64_t i = chunk + lane_id();
        if (i < n && keys[i] == vertex) sum += share(entries[i], channel);
      }
      sum = warp_reduce(sum, Sum());
      if (lane_id() == 0)
        sums[static_cast<int64_t>(vertex) * channels + channel] = static_cast<T>(sum);
    }
  }
}

// After `w.keys` and `w.entries` were written.
template <class T, class Share>
void sum_by_vertex(const char* op, const SortedSums& w, int64_t n, const Share& share, int channels,
                   T* sums, cudaStream_t stream) {
  device_sort_pairs<uint32_t>(op, w.sort, w.sort_bytes, w.keys, w.sorted_keys, w.entries,
                              w.sorted_entries, n, stream);
  launch(op, sum_runs_kernel<T, Share>, blocks_for(n), dim3(kBlock), 0, stream, share,
         w.sorted_keys, w.sorted_entries, n, channels, sums);
}

}  // namespace
}  // namespace fastshape::cuda
