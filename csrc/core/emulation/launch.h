// The host's side: starting kernels and asking the device what it has.
#pragma once

#include <cstring>
#include <exception>
#include <tuple>

#include "core/emulation/scheduler.h"
#include "core/host_device.h"

namespace fastshape::emulation {

template <class... Params, class... Args>
void run_kernel(Launch&& launch, void (*kernel)(Params...), Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args),
                "the kernel takes another number of arguments");
  using Bound = std::pair<void (*)(Params...), std::tuple<std::decay_t<Params>...>>;
  const Bound bound{kernel, std::tuple<std::decay_t<Params>...>(static_cast<Params>(args)...)};
  static_assert(sizeof(bound.second) <= 4096, "CUDA passes at most 4 KiB of arguments");
  launch.context = &bound;
  launch.call = [](const void* context) {
    const auto& [function, arguments] = *static_cast<const Bound*>(context);
    try {
      std::apply(function, arguments);
    } catch (const std::exception& error) {
      fiber().engine->fail(std::string("an exception in device code: ") + error.what(), {});
    }
  };
  run(launch);
}

}  // namespace fastshape::emulation

namespace fastshape::cuda {

struct DeviceProperties {
  int multiprocessors;
  size_t shared_bytes_per_block;  // with opt-in
  int compute_capability;         // 90 for sm_90
};

inline DeviceProperties device_properties() {
  const emulation::Device& device = emulation::device();
  return {device.multiprocessors, device.shared_per_block, device.compute_capability};
}

template <class... Params, class... Args>
void launch(const char* op, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t, Args&&... args) {
  emulation::run_kernel({op, grid, block, shared_bytes, 1u, false}, kernel,
                        std::forward<Args>(args)...);
}

template <class... Params, class... Args>
void launch_cluster(const char* op, void (*kernel)(Params...), unsigned cluster_size, dim3 grid,
                    dim3 block, size_t shared_bytes, cudaStream_t, Args&&... args) {
  emulation::run_kernel({op, grid, block, shared_bytes, cluster_size, false}, kernel,
                        std::forward<Args>(args)...);
}

template <class... Params, class... Args>
void launch_cooperative(const char* op, void (*kernel)(Params...), dim3 grid, dim3 block,
                        size_t shared_bytes, cudaStream_t, Args&&... args) {
  emulation::run_kernel({op, grid, block, shared_bytes, 1u, true}, kernel,
                        std::forward<Args>(args)...);
}

template <class... Params>
int max_cooperative_blocks(void (*)(Params...), dim3 block, size_t shared_bytes) {
  return emulation::max_resident_blocks(block.x * block.y * block.z, shared_bytes);
}

inline void fill_bytes(const char*, void* pointer, int value, size_t bytes, cudaStream_t) {
  if (bytes != 0) std::memset(pointer, value, bytes);
}

}  // namespace fastshape::cuda
