#include "core/tensor_view.h"

namespace fastshape {

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::boolean:
      return "bool";
    case DType::uint8:
      return "uint8";
    case DType::int8:
      return "int8";
    case DType::int16:
      return "int16";
    case DType::int32:
      return "int32";
    case DType::int64:
      return "int64";
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float32:
      return "float32";
    case DType::float64:
      return "float64";
    case DType::other:
      break;
  }
  return "an unsupported dtype";
}

const char* device_name(Device device) { return device == Device::cpu ? "cpu" : "cuda"; }

}  // namespace fastshape
