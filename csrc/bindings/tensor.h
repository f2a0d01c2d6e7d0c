// A torch tensor as an argument of a binding, read through the DLPack exchange table in 0.1 us and
// without torch.
//
// The table accepts too much: it hands out a NULL pointer for a tensor without storage (a
// FakeTensor: touching it ends the process) and says nothing of lazy negation. So an argument is
// checked when its binding names it:
//
//   void op(const Tensor& points) {
//     require(points, "points", {DType::float32}, {-1, -1, 3}, "(B, N, 3)");
//
// and reading the data of a tensor that nobody required throws.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <optional>
#include <utility>

#include "bindings/dlpack.h"
#include "core/check.h"
#include "core/tensor_view.h"

namespace fastshape {

class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(pybind11::handle object);

  // Raises TypeError or ValueError naming `name`: not a tensor, no storage, another device,
  // complex, not contiguous.
  void require(const char* name) const;
  // The same for kernels that take strides: any that are not negative.
  void require_strided(const char* name) const;

  int dim() const { return view_.dim; }
  int64_t size(int axis) const { return view_.shape[axis]; }
  int64_t stride(int axis) const { return view_.strides[axis]; }  // in elements
  int64_t numel() const { return view_.numel; }
  DType dtype() const { return view_.dtype; }
  Device device() const { return view_.device; }
  int device_index() const { return view_.device_index; }
  const dlpack::ExchangeTable* exchange() const { return exchange_; }
  std::string shape_text() const;   // "(4, 2)"
  std::string device_text() const;  // "cuda:0"

  template <class T>
  T* data() const {
    if (!required_) throw RuntimeError("a binding read a tensor before it required it");
    return static_cast<T*>(view_.data);
  }

 private:
  enum class Problem : uint8_t {
    none,
    not_a_tensor,
    not_described,
    no_storage,
    device,
    lazy,
    not_contiguous
  };

  TensorView view_;
  dlpack::TensorDescription description_{};
  const dlpack::ExchangeTable* exchange_ = nullptr;
  pybind11::handle object_;
  Problem problem_ = Problem::not_a_tensor;
  mutable bool required_ = false;
};

// -1 in `shape` stands for any size; `shape_name` is how the message writes it.
void require(const Tensor& tensor, const char* name, std::initializer_list<DType> dtypes,
             std::initializer_list<int64_t> shape, const char* shape_name);
void require_dtype(const Tensor& tensor, const char* name, std::initializer_list<DType> dtypes);
void require_shape(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape,
                   const char* shape_name);
void require_same_device(const Tensor& first, const char* first_name, const Tensor& second,
                         const char* second_name);

// torch's current stream on the tensor's device; nullptr on the CPU.
void* current_stream(const Tensor& tensor);

}  // namespace fastshape

namespace pybind11::detail {

template <>
struct type_caster<fastshape::Tensor> {
  PYBIND11_TYPE_CASTER(fastshape::Tensor, const_name("torch.Tensor"));

  bool load(handle source, bool) {
    value = fastshape::Tensor(source);
    return true;  // what is wrong with it is said by require(), which knows the argument's name
  }
};

// std::optional<Tensor>, without pulling in the containers of pybind11/stl.h.
template <>
struct type_caster<std::optional<fastshape::Tensor>> {
  PYBIND11_TYPE_CASTER(std::optional<fastshape::Tensor>, const_name("torch.Tensor | None"));

  bool load(handle source, bool) {
    if (source.is_none())
      value.reset();
    else
      value.emplace(source);
    return true;
  }
};

}  // namespace pybind11::detail
