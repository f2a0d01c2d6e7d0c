#include "bindings/tensor.h"

namespace py = pybind11;

namespace fastshape {
namespace {

// The exchange table of a tensor type. Looking it up costs an attribute access, so the last few
// types are remembered; they are kept alive, so that no other type can come to stand at the same
// address.
const dlpack::ExchangeTable* exchange_table(PyTypeObject* type) {
  struct Entry {
    PyTypeObject* type;
    const dlpack::ExchangeTable* table;
  };
  static Entry cache[8] = {};
  static int next = 0;
  for (const Entry& entry : cache)
    if (entry.type == type) return entry.table;

  PyObject* capsule =
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
  if (capsule == nullptr) {
    PyErr_Clear();
    return nullptr;  // not a tensor of a framework with the table
  }
  const py::object owner = py::reinterpret_steal<py::object>(capsule);
  const char* const capsule_name =
      PyCapsule_IsValid(capsule, "dlpack_exchange_api") ? "dlpack_exchange_api" : nullptr;
  FASTSHAPE_CHECK_TYPE(
      capsule_name != nullptr, "type ", type->tp_name,
      " has a __dlpack_c_exchange_api__ that is not a 'dlpack_exchange_api' capsule");
  const auto* header =
      static_cast<const dlpack::ExchangeHeader*>(PyCapsule_GetPointer(capsule, capsule_name));
  const dlpack::Version offered = header->version;
  while (header != nullptr && header->version.major != dlpack::kMajor) header = header->previous;
  if (header == nullptr || header->version.minor < dlpack::kMinor)
    FASTSHAPE_FAIL_RUNTIME("fastshape reads tensors through DLPack ", dlpack::kMajor, ".",
                           dlpack::kMinor, " or a later ", dlpack::kMajor, ".x, but ",
                           type->tp_name, " offers DLPack ", offered.major, ".", offered.minor,
                           "; install a fastshape that matches this torch");
  Py_INCREF(type);
  Entry& entry = cache[next];
  next = (next + 1) % 8;
  Py_XDECREF(entry.type);
  entry = {type, reinterpret_cast<const dlpack::ExchangeTable*>(header)};
  return entry.table;
}

DType dtype_of(dlpack::DataType type) {
  if (type.lanes != 1) return DType::other;
  switch (type.code) {
    case dlpack::kBool:
      return type.bits == 8 ? DType::boolean : DType::other;
    case dlpack::kUInt:
      return type.bits == 8 ? DType::uint8 : DType::other;
    case dlpack::kBfloat:
      return type.bits == 16 ? DType::bfloat16 : DType::other;
    case dlpack::kInt:
      switch (type.bits) {
        case 8:
          return DType::int8;
        case 16:
          return DType::int16;
        case 32:
          return DType::int32;
        case 64:
          return DType::int64;
      }
      return DType::other;
    case dlpack::kFloat:
      switch (type.bits) {
        case 16:
          return DType::float16;
        case 32:
          return DType::float32;
        case 64:
          return DType::float64;
      }
      return DType::other;
  }
  return DType::other;
}

bool is_contiguous(const dlpack::TensorDescription& t, int64_t numel) {
  if (numel <= 1 || t.strides == nullptr) return true;
  int64_t expected = 1;
  for (int axis = t.ndim - 1; axis >= 0; --axis) {
    if (t.shape[axis] == 1) continue;
    if (t.strides[axis] != expected) return false;
    expected *= t.shape[axis];
  }
  return true;
}

bool is_floating_point(DType dtype) {
  return dtype == DType::float16 || dtype == DType::bfloat16 || dtype == DType::float32 ||
         dtype == DType::float64;
}

// torch's lazy negation (the imaginary part of a conjugate) is a bit that DLPack does not carry.
// Only floating-point views have it; asking costs 0.07 us.
bool is_lazily_negated(PyObject* object) {
  static PyObject* const method = PyUnicode_InternFromString("is_neg");
  PyObject* const answer = PyObject_CallMethodNoArgs(object, method);
  if (answer == nullptr) {
    PyErr_Clear();
    return false;
  }
  const bool negated = answer == Py_True;
  Py_DECREF(answer);
  return negated;
}

std::string type_text(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

}  // namespace

Tensor::Tensor(py::handle object) : object_(object) {
  const dlpack::ExchangeTable* table = exchange_table(Py_TYPE(object.ptr()));
  if (table == nullptr) return;
  exchange_ = table;
  if (table->describe(object.ptr(), &description_) != 0) {
    PyErr_Clear();
    problem_ = Problem::not_described;
    return;
  }
  view_.shape = description_.shape;
  view_.strides = description_.strides;
  view_.dim = description_.ndim;
  view_.dtype = dtype_of(description_.dtype);
  view_.device = static_cast<Device>(description_.device.type);
  view_.device_index = description_.device.index;
  view_.numel = 1;
  for (int axis = 0; axis < view_.dim; ++axis) view_.numel *= view_.shape[axis];
  view_.data = static_cast<char*>(description_.data) + description_.byte_offset;

  if (description_.data == nullptr && view_.numel > 0)
    problem_ = Problem::no_storage;
  else if (view_.device != Device::cpu && view_.device != Device::cuda)
    problem_ = Problem::device;
  else if (!is_contiguous(description_, view_.numel))
    problem_ = Problem::not_contiguous;
  else if (is_floating_point(view_.dtype) && is_lazily_negated(object.ptr()))
    problem_ = Problem::lazy;
  else
    problem_ = Problem::none;
}

void Tensor::require(const char* name) const {
  switch (problem_) {
    case Problem::none:
      required_ = true;
      return;
    case Problem::not_a_tensor:
      FASTSHAPE_CHECK_TYPE(false, "`", name, "` must be a torch.Tensor (torch >= 2.10), got ",
                           type_text(object_));
      return;
    case Problem::not_described:
      FASTSHAPE_CHECK_TYPE(
          false, "`", name, "` must be a dense tensor that DLPack can describe, got a ",
          type_text(object_), " that it cannot (sparse, quantized or without strides)");
      return;
    case Problem::no_storage:
      FASTSHAPE_CHECK_TYPE(false, "`", name, "` must hold data, got a ", type_text(object_),
                           " without storage (a fake or meta tensor)");
      return;
    case Problem::device:
      FASTSHAPE_CHECK_VALUE(false, "`", name, "` must be on cpu or cuda, got ", device_text());
      return;
    case Problem::lazy:
      FASTSHAPE_CHECK_VALUE(false, "`", name,
                            "` is a lazily negated view; call .resolve_neg() first");
      return;
    case Problem::not_contiguous:
      FASTSHAPE_CHECK_VALUE(false, "`", name,
                            "` must be contiguous; call .contiguous() first (shape ", shape_text(),
                            ")");
      return;
  }
}

void Tensor::require_strided(const char* name) const {
  if (problem_ != Problem::not_contiguous) return require(name);
  FASTSHAPE_CHECK_VALUE(!is_floating_point(view_.dtype) || !is_lazily_negated(object_.ptr()), "`",
                        name, "` is a lazily negated view; call .resolve_neg() first");
  required_ = true;
}

std::string Tensor::shape_text() const {
  std::string text = "(";
  for (int axis = 0; axis < view_.dim; ++axis) {
    if (axis > 0) text += ", ";
    text += std::to_string(view_.shape[axis]);
  }
  return text + (view_.dim == 1 ? ",)" : ")");
}

std::string Tensor::device_text() const {
  if (view_.device == Device::cpu) return "cpu";
  if (view_.device == Device::cuda) return concatenate("cuda:", view_.device_index);
  return py::str(object_.attr("device"));
}

void require_dtype(const Tensor& tensor, const char* name, std::initializer_list<DType> dtypes) {
  tensor.require(name);
  for (const DType dtype : dtypes)
    if (tensor.dtype() == dtype) return;
  std::string expected;
  for (const DType dtype : dtypes)
    expected += (expected.empty() ? "" : " or ") + std::string(dtype_name(dtype));
  FASTSHAPE_CHECK_TYPE(false, "`", name, "` must be ", expected, ", got ",
                       dtype_name(tensor.dtype()));
}

void require_shape(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape,
                   const char* shape_name) {
  tensor.require(name);
  bool matches = tensor.dim() == static_cast<int>(shape.size());
  int axis = 0;
  for (const int64_t size : shape) {
    if (!matches) break;
    matches = size < 0 || tensor.size(axis) == size;
    ++axis;
  }
  FASTSHAPE_CHECK_VALUE(matches, "`", name, "` must have shape ", shape_name, ", got ",
                        tensor.shape_text());
}

void require(const Tensor& tensor, const char* name, std::initializer_list<DType> dtypes,
             std::initializer_list<int64_t> shape, const char* shape_name) {
  require_dtype(tensor, name, dtypes);
  require_shape(tensor, name, shape, shape_name);
}

void require_same_device(const Tensor& first, const char* first_name, const Tensor& second,
                         const char* second_name) {
  FASTSHAPE_CHECK_VALUE(
      first.device() == second.device() && first.device_index() == second.device_index(), "`",
      second_name, "` must be on the device of `", first_name, "` (", first.device_text(),
      "), got ", second.device_text());
}

void* current_stream(const Tensor& tensor) {
  if (tensor.device() == Device::cpu) return nullptr;
  void* stream = nullptr;
  if (tensor.exchange()->current_stream(static_cast<int32_t>(tensor.device()),
                                        tensor.device_index(), &stream) != 0)
    throw py::error_already_set();
  return stream;
}

}  // namespace fastshape
