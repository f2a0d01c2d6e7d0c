// The one CUDA header of the library: launches, shared memory, clusters, grids, ordered loads and
// stores.
//
// Kernels are written against this interface and CUDA's own builtins. Under nvcc it is a thin layer
// over CUDA; with FASTSHAPE_EMULATION and a C++ compiler it runs kernels on the CPU:
// core/emulation/emulation.h says how, and what a kernel may do.
#pragma once

#include "core/check.h"
#include "core/host_device.h"

#if defined(FASTSHAPE_EMULATION) && !defined(__CUDACC__)

#include "core/emulation/emulation.h"

#else

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

namespace fastshape::cuda {

// ---- Host: errors and the device ---------------------------------------------------------------

inline void check(const char* op, cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next, innocent call reports it once more
  FASTSHAPE_FAIL_RUNTIME(op, ": ", cudaGetErrorString(status));
}

struct DeviceProperties {
  int multiprocessors;
  size_t shared_bytes_per_block;  // with opt-in
  int compute_capability;         // 90 for sm_90
};

// Of the current device. Attribute queries cost well below a microsecond, so nothing is cached.
inline DeviceProperties device_properties() {
  int device = 0, multiprocessors = 0, shared = 0, major = 0, minor = 0;
  check("device_properties", cudaGetDevice(&device));
  check("device_properties",
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  check("device_properties",
        cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check("device_properties",
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check("device_properties",
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return {multiprocessors, static_cast<size_t>(shared), 10 * major + minor};
}

// ---- Host: launches ----------------------------------------------------------------------------

namespace detail {

constexpr size_t kDefaultSharedBytes = 48 * 1024;  // more must be asked for
constexpr unsigned kPortableClusterSize = 8;       // so must more than this

template <class... Params>
void allow_shared_memory(const char* op, void (*kernel)(Params...), size_t shared_bytes) {
  if (shared_bytes <= kDefaultSharedBytes) return;
  check(op, cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)));
}

template <class... Params, class... Args, size_t... I>
void launch(const char* op, void (*kernel)(Params...), cudaLaunchConfig_t& config,
            std::index_sequence<I...>, Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args),
                "the kernel takes another number of arguments");
  allow_shared_memory(op, kernel, config.dynamicSmemBytes);
  std::tuple<std::decay_t<Params>...> values(static_cast<Params>(args)...);
  void* pointers[] = {static_cast<void*>(&std::get<I>(values))..., nullptr};
  check(op, cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers));
}

inline cudaLaunchConfig_t configuration(dim3 grid, dim3 block, size_t shared_bytes,
                                        cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return config;
}

}  // namespace detail

// Starts `kernel`; throws RuntimeError with the op's name and CUDA's text where CUDA refuses.
template <class... Params, class... Args>
void launch(const char* op, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, Args&&... args) {
  cudaLaunchConfig_t config = detail::configuration(grid, block, shared_bytes, stream);
  detail::launch(op, kernel, config, std::index_sequence_for<Params...>(),
                 std::forward<Args>(args)...);
}

// In clusters of `cluster_size` consecutive blocks along x; sm_90 and later.
template <class... Params, class... Args>
void launch_cluster(const char* op, void (*kernel)(Params...), unsigned cluster_size, dim3 grid,
                    dim3 block, size_t shared_bytes, cudaStream_t stream, Args&&... args) {
  cudaLaunchConfig_t config = detail::configuration(grid, block, shared_bytes, stream);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster_size;
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  if (cluster_size > detail::kPortableClusterSize) {
    check(op, cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                   cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  }
  detail::launch(op, kernel, config, std::index_sequence_for<Params...>(),
                 std::forward<Args>(args)...);
}

// All blocks resident at the same time: at most max_cooperative_blocks().
template <class... Params, class... Args>
void launch_cooperative(const char* op, void (*kernel)(Params...), dim3 grid, dim3 block,
                        size_t shared_bytes, cudaStream_t stream, Args&&... args) {
  cudaLaunchConfig_t config = detail::configuration(grid, block, shared_bytes, stream);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  detail::launch(op, kernel, config, std::index_sequence_for<Params...>(),
                 std::forward<Args>(args)...);
}

template <class... Params>
int max_cooperative_blocks(void (*kernel)(Params...), dim3 block, size_t shared_bytes) {
  const char* op = "max_cooperative_blocks";
  detail::allow_shared_memory(op, kernel, shared_bytes);
  int per_multiprocessor = 0;
  check(op, cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                &per_multiprocessor, reinterpret_cast<const void*>(kernel),
                static_cast<int>(block.x * block.y * block.z), shared_bytes));
  return per_multiprocessor * device_properties().multiprocessors;
}

// cudaMemsetAsync, for counters and barriers.
inline void fill_bytes(const char* op, void* pointer, int value, size_t bytes,
                       cudaStream_t stream) {
  if (bytes != 0) check(op, cudaMemsetAsync(pointer, value, bytes, stream));
}

// ---- Device: who and where ---------------------------------------------------------------------

__device__ __forceinline__ unsigned lane_id() {
  unsigned lane;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}
__device__ __forceinline__ unsigned warp_id() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) / 32;
}

// ---- Device: shared memory ---------------------------------------------------------------------

namespace detail {
extern __shared__ __align__(128) unsigned char shared_bytes[];
}

// The block's shared memory as the kernel's struct; launch with sizeof(S), plus what shared_tail
// takes.
template <class S>
__device__ __forceinline__ S& shared_memory() {
  static_assert(
      std::is_trivially_default_constructible<S>::value && std::is_trivially_destructible<S>::value,
      "nobody constructs what is in shared memory");
  return *reinterpret_cast<S*>(detail::shared_bytes);
}
// A dynamic array behind the struct: `offset` bytes into the block's shared memory.
template <class T>
__device__ __forceinline__ T* shared_tail(size_t offset) {
  return reinterpret_cast<T*>(detail::shared_bytes + offset);
}

// ---- Device: clusters --------------------------------------------------------------------------

// Kernels with clusters also compile for sm_80, where they cannot be launched and trap.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define FASTSHAPE_CLUSTER_ASM(...) asm volatile(__VA_ARGS__)
#else
#define FASTSHAPE_CLUSTER_ASM(...) __trap()
#endif

__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank = 0;
  FASTSHAPE_CLUSTER_ASM("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ unsigned cluster_size() {
  unsigned size = 1;
  FASTSHAPE_CLUSTER_ASM("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
// All threads of the cluster's blocks; what they wrote before it, distributed shared memory
// included, is seen after it. Not the .aligned forms: a warp may arrive in parts.
__device__ __forceinline__ void cluster_arrive() {
  FASTSHAPE_CLUSTER_ASM("barrier.cluster.arrive.release;" :: : "memory");
}
__device__ __forceinline__ void cluster_wait() {
  FASTSHAPE_CLUSTER_ASM("barrier.cluster.wait.acquire;" :: : "memory");
}
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
// Another block's copy of what `pointer` points to in this block's shared memory.
template <class T>
__device__ __forceinline__ T* cluster_map(T* pointer, unsigned rank) {
  unsigned long long mapped = 0;
  FASTSHAPE_CLUSTER_ASM("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(pointer), "r"(rank));
  return reinterpret_cast<T*>(mapped);
}
#undef FASTSHAPE_CLUSTER_ASM

// ---- Device: ordered loads and stores, at device scope -----------------------------------------

namespace detail {

template <size_t>
struct Word;
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<8> {
  using type = unsigned long long;
};
template <class T>
using word_of = typename Word<sizeof(T)>::type;

template <class To, class From>
__device__ __forceinline__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace detail

#define FASTSHAPE_LOAD(name, instruction)                                                \
  template <class T>                                                                     \
  __device__ __forceinline__ T name(const T* address) {                                  \
    detail::word_of<T> bits;                                                             \
    if constexpr (sizeof(T) == 4) {                                                      \
      asm volatile(instruction ".b32 %0, [%1];" : "=r"(bits) : "l"(address) : "memory"); \
    } else {                                                                             \
      asm volatile(instruction ".b64 %0, [%1];" : "=l"(bits) : "l"(address) : "memory"); \
    }                                                                                    \
    return detail::bits_as<T>(bits);                                                     \
  }
FASTSHAPE_LOAD(load_acquire, "ld.acquire.gpu")
FASTSHAPE_LOAD(load_relaxed, "ld.relaxed.gpu")
#undef FASTSHAPE_LOAD

#define FASTSHAPE_STORE(name, instruction)                                             \
  template <class T>                                                                   \
  __device__ __forceinline__ void name(T* address, std::common_type_t<T> value) {      \
    const auto bits = detail::bits_as<detail::word_of<T>>(value);                      \
    if constexpr (sizeof(T) == 4) {                                                    \
      asm volatile(instruction ".b32 [%0], %1;" ::"l"(address), "r"(bits) : "memory"); \
    } else {                                                                           \
      asm volatile(instruction ".b64 [%0], %1;" ::"l"(address), "l"(bits) : "memory"); \
    }                                                                                  \
  }
FASTSHAPE_STORE(store_release, "st.release.gpu")
FASTSHAPE_STORE(store_relaxed, "st.relaxed.gpu")
#undef FASTSHAPE_STORE

// In every loop that waits for another thread's write: nothing here, where the loads themselves
// take their time.
__device__ __forceinline__ void spin_wait() {}

namespace detail {
__device__ __forceinline__ void check_cooperative() {}  // the emulation's checks
}  // namespace detail

}  // namespace fastshape::cuda

#endif

namespace fastshape::cuda {

// A barrier of all blocks of a co-operative launch, in global memory; zeroed once, then used any
// number of times.
struct GridBarrier {
  unsigned arrived;
  unsigned generation;
};

// Called by all threads of all blocks.
__device__ inline void grid_sync(GridBarrier* barrier) {
  detail::check_cooperative();
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
    const unsigned generation = load_relaxed(&barrier->generation);
    __threadfence();  // what this block wrote comes before its arrival
    if (atomicAdd(&barrier->arrived, 1u) == blocks - 1) {
      __threadfence();  // what the others wrote comes before the release
      store_relaxed(&barrier->arrived, 0u);
      store_release(&barrier->generation, generation + 1);
    } else {
      while (load_acquire(&barrier->generation) == generation) spin_wait();
    }
  }
  __syncthreads();
}

}  // namespace fastshape::cuda
