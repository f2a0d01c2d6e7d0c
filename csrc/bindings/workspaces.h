// How large a workspace is, on the device that will use it.
#pragma once

#include "bindings/arguments.h"

namespace fastshape {

inline void require_workspace(const Workspace& space, size_t bytes) {
  FASTSHAPE_CHECK_VALUE(space.bytes >= bytes, "the workspace has ", space.bytes, " bytes, ", bytes,
                        " are needed");
}

// The emulated module allocates as CUDA does, this one as the tensor's device does.
template <class Cpu, class Cuda>
size_t bytes_on([[maybe_unused]] bool cuda_device, [[maybe_unused]] Cpu&& cpu,
                [[maybe_unused]] Cuda&& cuda) {
#if defined(FASTSHAPE_EMULATION)
  return cuda();
#elif defined(FASTSHAPE_HAS_CUDA)
  return cuda_device ? cuda() : cpu();
#else
  return cpu();
#endif
}

#if defined(FASTSHAPE_EMULATION)
#define FASTSHAPE_CPU_BYTES(...) [] { return size_t{0}; }
#define FASTSHAPE_CUDA_BYTES(...) [&] { return cuda::__VA_ARGS__; }
#elif defined(FASTSHAPE_HAS_CUDA)
#define FASTSHAPE_CPU_BYTES(...) [&] { return cpu::__VA_ARGS__; }
#define FASTSHAPE_CUDA_BYTES(...) [&] { return cuda::__VA_ARGS__; }
#else
#define FASTSHAPE_CPU_BYTES(...) [&] { return cpu::__VA_ARGS__; }
#define FASTSHAPE_CUDA_BYTES(...) [] { return size_t{0}; }
#endif

}  // namespace fastshape
