// Sorting and scanning whole arrays: CUB on the GPU, the standard library under the emulation.
//
// Workspace is the caller's: ask `..._workspace_bytes` with the same arguments first. Nothing is
// allocated and nothing waits for the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/cuda_utils.cuh"

#if defined(__CUDACC__)
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#else
#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>
#endif

namespace fastshape::cuda {

namespace detail {

// Key: uint32_t or uint64_t, compared in bits [begin_bit, end_bit) only.
template <class Key>
constexpr int key_bits() {
  static_assert(std::is_same<Key, uint32_t>::value || std::is_same<Key, uint64_t>::value,
                "keys are uint32_t or uint64_t");
  return 8 * static_cast<int>(sizeof(Key));
}

#if !defined(__CUDACC__)
constexpr size_t kEmulatedWorkspaceBytes = 256;

// As on the device: the contents of the workspace are lost, too little of it is an error.
inline void use_workspace(const char* op, void* workspace, size_t workspace_bytes) {
  if (workspace == nullptr || workspace_bytes < kEmulatedWorkspaceBytes) {
    FASTSHAPE_FAIL_RUNTIME(op, ": the workspace has ", workspace_bytes, " bytes, ",
                           kEmulatedWorkspaceBytes, " are needed");
  }
  std::memset(workspace, 0xA5, workspace_bytes);
}
#endif

}  // namespace detail

// ---- Sort --------------------------------------------------------------------------------------

template <class Key>
size_t device_sort_pairs_workspace_bytes(const char* op, int64_t n, int begin_bit = 0,
                                         int end_bit = detail::key_bits<Key>()) {
#if defined(__CUDACC__)
  size_t bytes = 0;
  check(op, cub::DeviceRadixSort::SortPairs(
                nullptr, bytes, static_cast<const Key*>(nullptr), static_cast<Key*>(nullptr),
                static_cast<const uint32_t*>(nullptr), static_cast<uint32_t*>(nullptr), n,
                begin_bit, end_bit));
  return bytes;
#else
  static_cast<void>(op), static_cast<void>(n), static_cast<void>(begin_bit),
      static_cast<void>(end_bit);
  return detail::kEmulatedWorkspaceBytes;
#endif
}

// Stable, ascending. Inputs and outputs do not overlap.
template <class Key>
void device_sort_pairs(const char* op, void* workspace, size_t workspace_bytes, const Key* keys_in,
                       Key* keys_out, const uint32_t* values_in, uint32_t* values_out, int64_t n,
                       cudaStream_t stream, int begin_bit = 0,
                       int end_bit = detail::key_bits<Key>()) {
  if (n == 0) return;
#if defined(__CUDACC__)
  check(op, cub::DeviceRadixSort::SortPairs(workspace, workspace_bytes, keys_in, keys_out,
                                            values_in, values_out, n, begin_bit, end_bit, stream));
#else
  static_cast<void>(stream);
  detail::use_workspace(op, workspace, workspace_bytes);
  const int width = end_bit - begin_bit;
  const Key mask = width >= detail::key_bits<Key>() ? ~Key{0} : (Key{1} << width) - 1;
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return (keys_in[a] >> begin_bit & mask) < (keys_in[b] >> begin_bit & mask);
  });
  for (int64_t i = 0; i < n; ++i) {
    keys_out[i] = keys_in[order[static_cast<size_t>(i)]];
    values_out[i] = values_in[order[static_cast<size_t>(i)]];
  }
#endif
}

// ---- Scan --------------------------------------------------------------------------------------

template <class T>
size_t device_exclusive_scan_workspace_bytes(const char* op, int64_t n) {
#if defined(__CUDACC__)
  size_t bytes = 0;
  check(op, cub::DeviceScan::ExclusiveSum(nullptr, bytes, static_cast<const T*>(nullptr),
                                          static_cast<T*>(nullptr), n));
  return bytes;
#else
  static_cast<void>(op), static_cast<void>(n);
  return detail::kEmulatedWorkspaceBytes;
#endif
}

// out[i] = in[0] + ... + in[i - 1]; integers only, where the order of additions does not matter. In
// place is allowed.
template <class T>
void device_exclusive_scan(const char* op, void* workspace, size_t workspace_bytes, const T* in,
                           T* out, int64_t n, cudaStream_t stream) {
  static_assert(std::is_integral<T>::value, "sums of floats would depend on the device");
  if (n == 0) return;
#if defined(__CUDACC__)
  check(op, cub::DeviceScan::ExclusiveSum(workspace, workspace_bytes, in, out, n, stream));
#else
  static_cast<void>(stream);
  detail::use_workspace(op, workspace, workspace_bytes);
  T sum{0};
  for (int64_t i = 0; i < n; ++i) {
    const T value = in[i];
    out[i] = sum;
    sum = static_cast<T>(sum + value);
  }
#endif
}

}  // namespace fastshape::cuda
