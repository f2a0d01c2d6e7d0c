// What the bindings of several families check and open.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>

#include "bindings/tensor.h"
#include "core/half.h"

namespace fastshape {

inline const std::initializer_list<DType> kFloats = {DType::float32, DType::float64};
inline const std::initializer_list<DType> kAllFloats = {DType::float32, DType::float64,
                                                        DType::float16, DType::bfloat16};

inline void require_like(const Tensor& first, const char* first_name, const Tensor& tensor,
                         const char* name) {
  require_dtype(tensor, name, kFloats);
  FASTSHAPE_CHECK_TYPE(tensor.dtype() == first.dtype(), "`", name, "` must be ",
                       dtype_name(first.dtype()), " as `", first_name, "`, got ",
                       dtype_name(tensor.dtype()));
  require_same_device(first, first_name, tensor, name);
}

// Calls f(float()) or f(double()).
template <class F>
void with_dtype(const Tensor& tensor, F&& f) {
  if (tensor.dtype() == DType::float32)
    f(float());
  else
    f(double());
}

// Calls f with a zero of the tensor's type, one of kAllFloats.
template <class F>
void with_any_float(const Tensor& tensor, F&& f) {
  switch (tensor.dtype()) {
    case DType::float32:
      return f(float());
    case DType::float64:
      return f(double());
    case DType::float16:
      return f(Float16());
    default:
      return f(BFloat16());
  }
}

// An array beside `first`: same dtype, same device.
inline void require_output(const Tensor& first, const char* first_name, const Tensor& tensor,
                           const char* name, std::initializer_list<int64_t> shape,
                           const char* shape_name) {
  require_like(first, first_name, tensor, name);
  require_shape(tensor, name, shape, shape_name);
}

// For CUDA tensors, and for every tensor in the emulated module; the CPU kernels need none.
struct Workspace {
  void* data = nullptr;
  size_t bytes = 0;
};

inline Workspace open_workspace(const Tensor& first, const char* name,
                                const std::optional<Tensor>& workspace) {
  if (!workspace) return {};
  require_dtype(*workspace, "workspace", {DType::uint8});
  require_same_device(first, name, *workspace, "workspace");
  return {workspace->data<void>(), static_cast<size_t>(workspace->numel())};
}

#if defined(FASTSHAPE_HAS_CUDA) || defined(FASTSHAPE_EMULATION)
#define FASTSHAPE_WORKSPACE(op) &cuda::op##_workspace_bytes
#else
#define FASTSHAPE_WORKSPACE(op) +[](int64_t) { return size_t{0}; }
#endif

}  // namespace fastshape
