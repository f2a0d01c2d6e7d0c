// The part of the DLPack 1.x C ABI that we read: a tensor's description, and the table of C
// functions that torch >= 2.10 hangs on its tensor types as `__dlpack_c_exchange_api__`. Declared
// here from the published layout (dmlc/dlpack, include/dlpack/dlpack.h, version 1.3), so that the
// build needs no header of torch's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastshape::dlpack {

constexpr uint32_t kMajor = 1;
constexpr uint32_t kMinor = 2;  // the first minor version with the exchange table

enum DeviceType : int32_t { kCpu = 1, kCuda = 2 };

enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6 };

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct DeviceId {
  int32_t type;
  int32_t index;
};

struct TensorDescription {  // DLTensor
  void* data;
  DeviceId device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Version {
  uint32_t major;
  uint32_t minor;
};

struct ExchangeHeader {
  Version version;
  ExchangeHeader* previous;  // an older table, if the framework offers one
};

struct ExchangeTable {  // DLPackExchangeAPI
  ExchangeHeader header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_object;
  void* managed_tensor_to_object;
  int (*describe)(void* object, TensorDescription* out);  // borrowed: valid while the object lives
  int (*current_stream)(int32_t device_type, int32_t device_index, void** out);
};

static_assert(sizeof(TensorDescription) == 48 && offsetof(TensorDescription, byte_offset) == 40);
static_assert(offsetof(ExchangeTable, current_stream) == 16 + 4 * sizeof(void*));

}  // namespace fastshape::dlpack
