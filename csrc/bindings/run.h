// Picks the device: run(tensor, CPU(...), CUDA(...)) releases the GIL and calls the kernel of the
// tensor's device.
//
// The emulated module is these same bindings compiled with FASTSHAPE_EMULATION: there a CPU tensor
// goes to the CUDA kernel, which runs on the CPU.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/tensor.h"
#include "core/host_device.h"

#if defined(FASTSHAPE_HAS_CUDA) && !defined(FASTSHAPE_EMULATION)
#include <cuda_runtime_api.h>
#endif

namespace fastshape {

struct NotBuilt {};

// pybind11's own also keeps books on the thread, which a small op would feel.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() { PyEval_RestoreThread(state_); }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

// The expressions may use `stream`.
#if defined(FASTSHAPE_EMULATION)
#define FASTSHAPE_CPU(...) \
  ::fastshape::NotBuilt {}
#define FASTSHAPE_CUDA(...) [&]([[maybe_unused]] cudaStream_t stream) { __VA_ARGS__; }
#elif defined(FASTSHAPE_HAS_CUDA)
#define FASTSHAPE_CPU(...) [&] { __VA_ARGS__; }
#define FASTSHAPE_CUDA(...) [&]([[maybe_unused]] cudaStream_t stream) { __VA_ARGS__; }
#else
#define FASTSHAPE_CPU(...) [&] { __VA_ARGS__; }
#define FASTSHAPE_CUDA(...) \
  ::fastshape::NotBuilt {}
#endif

#if defined(FASTSHAPE_HAS_CUDA) && !defined(FASTSHAPE_EMULATION)
// Makes the tensor's device the current one and puts the former back.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    cudaGetDevice(&former_);
    if (former_ != device) cudaSetDevice(device);
    changed_ = former_ != device;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(former_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int former_ = 0;
  bool changed_ = false;
};
#endif

template <class Cpu, class Cuda>
void run([[maybe_unused]] const Tensor& tensor, [[maybe_unused]] Cpu&& cpu,
         [[maybe_unused]] Cuda&& cuda) {
#if defined(FASTSHAPE_EMULATION)
  GilRelease release;
  cuda(nullptr);
#else
  if (tensor.device() == Device::cpu) {
    GilRelease release;
    cpu();
    return;
  }
#if defined(FASTSHAPE_HAS_CUDA)
  const auto stream = static_cast<cudaStream_t>(current_stream(tensor));
  DeviceGuard guard(tensor.device_index());
  GilRelease release;
  cuda(stream);
#else
  FASTSHAPE_FAIL_RUNTIME("this fastshape was built without CUDA and got a tensor on ",
                         tensor.device_text(),
                         "; install it where nvcc is found (or with -C "
                         "cmake.define.FASTSHAPE_CUDA=ON), or move the tensor to the CPU");
#endif
#endif
}

}  // namespace fastshape
