// What the bindings know of a tensor: a typed pointer with a shape. Kernels get raw pointers and
// sizes from it.
#pragma once

#include <cstdint>

namespace fastshape {

enum class Device : int32_t { cpu = 1, cuda = 2 };  // DLPack's numbers

enum class DType : uint8_t {
  boolean,
  uint8,
  int8,
  int16,
  int32,
  int64,
  float16,
  bfloat16,
  float32,
  float64,
  other
};

const char* dtype_name(DType dtype);  // as torch spells it
const char* device_name(Device device);

struct TensorView {
  void* data = nullptr;
  int64_t numel = 0;
  const int64_t* shape = nullptr;
  const int64_t* strides = nullptr;  // in elements
  int32_t dim = 0;
  DType dtype = DType::other;
  Device device = Device::cpu;
  int32_t device_index = 0;
};

}  // namespace fastshape
