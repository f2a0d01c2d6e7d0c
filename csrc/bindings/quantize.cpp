#include <pybind11/pybind11.h>

#include "bindings/arguments.h"
#include "bindings/run.h"
#include "bindings/tensor.h"
#include "bindings/workspaces.h"
#include "quantize/code_sums.h"
#include "quantize/nearest_code.h"
#include "quantize/residual_quantize.h"

namespace py = pybind11;

namespace fastshape {
namespace {

// ---- Arguments ---------------------------------------------------------------------------------

void require_codebook_sizes(const char* name, int64_t num_codes, int64_t dim) {
  FASTSHAPE_CHECK_VALUE(num_codes >= 1 && num_codes <= kMaxCodes, "`", name,
                        "` must have 1 to 65536 codes, got ", num_codes);
  FASTSHAPE_CHECK_VALUE(dim >= 1 && dim <= kMaxCodeDim, "`", name,
                        "` must have 1 to 256 components a code, got ", dim);
}

// `x`: (..., D), as many rows as there are.
int64_t require_rows(const Tensor& x, int64_t dim) {
  require_dtype(x, "x", kFloats);
  FASTSHAPE_CHECK_VALUE(x.dim() >= 1 && x.size(x.dim() - 1) == dim,
                        "`x` must have as many components as the codes, shape (..., ", dim,
                        "), got ", x.shape_text());
  return x.numel() / dim;
}

template <class T>
Codebook<T> codebook_of(const Tensor& codebook, bool cosine) {
  return {codebook.data<T>(), codebook.size(0), static_cast<int>(codebook.size(1)), cosine};
}

void require_codebook(const Tensor& codebook) {
  require(codebook, "codebook", kFloats, {-1, -1}, "(K, D)");
  require_codebook_sizes("codebook", codebook.size(0), codebook.size(1));
}

void require_indices(const Tensor& first, const Tensor& indices, const char* name, int64_t numel) {
  require_dtype(indices, name, {DType::int64});
  FASTSHAPE_CHECK_VALUE(indices.numel() == numel, "`", name, "` must have ", numel,
                        " elements, got shape ", indices.shape_text());
  require_same_device(first, "x", indices, name);
}

int64_t* require_counts(const Tensor& first, const std::optional<Tensor>& counts, int64_t numel) {
  if (!counts) return nullptr;
  require_indices(first, *counts, "counts", numel);
  return counts->data<int64_t>();
}

// Calls f(float()) or f(double()), by the size of an element.
template <class F>
size_t bytes_for(bool is_double, F&& f) {
  return is_double ? f(double()) : f(float());
}

// ---- nearest_code, topk_codes ------------------------------------------------------------------

size_t nearest_code_workspace_bytes(int64_t num_codes, int64_t dim, int64_t num_rows,
                                    bool is_double, bool cuda_device) {
  require_codebook_sizes("codebook", num_codes, dim);
  const int d = static_cast<int>(dim);
  static_cast<void>(num_rows);
  return bytes_for(is_double, [&](auto zero) {
    using T = decltype(zero);
    return bytes_on(cuda_device, FASTSHAPE_CPU_BYTES(nearest_code_workspace_bytes<T>(num_codes, d)),
                    FASTSHAPE_CUDA_BYTES(nearest_code_workspace_bytes<T>(num_codes, d, num_rows)));
  });
}

Workspace require_search(const Tensor& x, const Tensor& codebook, const Tensor& workspace) {
  require_codebook(codebook);
  const int64_t rows = require_rows(x, codebook.size(1));
  require_like(x, "x", codebook, "codebook");
  const Workspace space = open_workspace(x, "x", workspace);
  require_workspace(
      space, nearest_code_workspace_bytes(codebook.size(0), codebook.size(1), rows,
                                          x.dtype() == DType::float64, x.device() == Device::cuda));
  return space;
}

void nearest_code(const Tensor& x, const Tensor& codebook, bool cosine, const Tensor& workspace,
                  const Tensor& indices, const std::optional<Tensor>& counts) {
  const Workspace space = require_search(x, codebook, workspace);
  const int64_t rows = x.numel() / codebook.size(1);
  require_indices(x, indices, "indices", rows);
  int64_t* const count = require_counts(x, counts, codebook.size(0));
  with_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const auto book = codebook_of<T>(codebook, cosine);
    const NearestCode<T> task{x.data<T>(), rows, indices.data<int64_t>(), count};
    run(x, FASTSHAPE_CPU(cpu::nearest_code(book, task, space.data)),
        FASTSHAPE_CUDA(cuda::nearest_code(book, task, space.data, stream)));
  });
}

void topk_codes(const Tensor& x, const Tensor& codebook, int64_t top, bool cosine,
                const Tensor& workspace, const Tensor& indices, const Tensor& square_distance) {
  const Workspace space = require_search(x, codebook, workspace);
  const int64_t rows = x.numel() / codebook.size(1);
  FASTSHAPE_CHECK_VALUE(top >= 1 && top <= kMaxTop && top <= codebook.size(0),
                        "`k` must be in [1, ",
                        codebook.size(0) < kMaxTop ? codebook.size(0) : kMaxTop, "], got ", top);
  require_indices(x, indices, "indices", rows * top);
  require_like(x, "x", square_distance, "square_distance");
  FASTSHAPE_CHECK_VALUE(square_distance.numel() == rows * top, "`square_distance` must have ",
                        rows * top, " elements, got shape ", square_distance.shape_text());
  with_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const auto book = codebook_of<T>(codebook, cosine);
    const TopCodes<T> task{x.data<T>(), rows, static_cast<int>(top), indices.data<int64_t>(),
                           square_distance.data<T>()};
    run(x, FASTSHAPE_CPU(cpu::topk_codes(book, task, space.data)),
        FASTSHAPE_CUDA(cuda::topk_codes(book, task, space.data, stream)));
  });
}

// ---- code_sums ---------------------------------------------------------------------------------

size_t code_sums_workspace_bytes(int64_t num_rows, int64_t num_sums, bool cuda_device) {
  FASTSHAPE_CHECK_VALUE(num_rows < (int64_t{1} << 31) && num_sums < (int64_t{1} << 31),
                        "there must be fewer than 2^31 rows and sums, got ", num_rows, " and ",
                        num_sums);
  return bytes_on(cuda_device, FASTSHAPE_CPU_BYTES(code_sums_workspace_bytes(num_rows, num_sums)),
                  FASTSHAPE_CUDA_BYTES(code_sums_workspace_bytes(num_rows)));
}

void code_sums(const Tensor& values, const Tensor& codes, int64_t num_codes, int64_t levels,
               const Tensor& workspace, const Tensor& sums, const std::optional<Tensor>& counts) {
  require_dtype(values, "values", kFloats);
  require_dtype(codes, "codes", {DType::int64});
  require_same_device(values, "values", codes, "codes");
  FASTSHAPE_CHECK_VALUE(num_codes >= 1, "`num_codes` must be positive, got ", num_codes);
  FASTSHAPE_CHECK_VALUE(levels >= 1 && codes.numel() % levels == 0,
                        "`codes` must have `levels` columns, got shape ", codes.shape_text(),
                        " and ", levels, " levels");
  const int64_t rows = codes.numel();
  bool fits = values.dim() == codes.dim() + 1;
  for (int axis = 0; fits && axis < codes.dim(); ++axis)
    fits = values.size(axis) == codes.size(axis);
  FASTSHAPE_CHECK_VALUE(fits, "`values` must have a vector for each of `codes` of shape ",
                        codes.shape_text(), ", got ", values.shape_text());
  const int64_t dim = values.size(values.dim() - 1);
  require_codebook_sizes("values", 1, dim);
  require_output(values, "values", sums, "sums", {levels * num_codes, dim}, "(levels * K, D)");
  const Workspace space = open_workspace(values, "values", workspace);
  require_workspace(
      space, code_sums_workspace_bytes(rows, levels * num_codes, values.device() == Device::cuda));
  int64_t* const count = require_counts(values, counts, levels * num_codes);
  with_dtype(values, [&](auto zero) {
    using T = decltype(zero);
    const CodeSums<T> task{
        values.data<T>(), codes.data<int64_t>(),    rows,           static_cast<int>(dim),
        num_codes,        static_cast<int>(levels), sums.data<T>(), count};
    run(values, FASTSHAPE_CPU(cpu::code_sums(task, space.data)),
        FASTSHAPE_CUDA(cuda::code_sums(task, space.data, stream)));
  });
}

// ---- residual_quantize -------------------------------------------------------------------------

// `codebooks`: (K, D), shared by all levels, or (L, K, D).
void require_codebooks(const Tensor& codebooks, int64_t levels) {
  require_dtype(codebooks, "codebooks", kFloats);
  FASTSHAPE_CHECK_VALUE(
      codebooks.dim() == 2 || codebooks.dim() == 3,
      "`codebooks` must have shape (K, D), shared by all levels, or (L, K, D), got ",
      codebooks.shape_text());
  require_codebook_sizes("codebooks", codebooks.size(codebooks.dim() - 2),
                         codebooks.size(codebooks.dim() - 1));
  FASTSHAPE_CHECK_VALUE(levels >= 1 && levels <= 4096,
                        "the number of levels must be in [1, 4096], got ", levels);
  FASTSHAPE_CHECK_VALUE(codebooks.dim() == 2 || codebooks.size(0) == levels,
                        "`codebooks` must have one codebook for each of ", levels,
                        " levels, got shape ", codebooks.shape_text());
}

template <class T>
LevelCodebooks<T> level_codebooks(const Tensor& codebooks, int64_t levels, bool cosine) {
  const int last = codebooks.dim() - 1;
  return {
      codebooks.data<T>(),      codebooks.size(last - 1), static_cast<int>(codebooks.size(last)),
      static_cast<int>(levels), codebooks.dim() == 2,     cosine};
}

size_t residual_quantize_workspace_bytes(int64_t num_codes, int64_t dim, int64_t num_books,
                                         int64_t num_rows, bool is_double, bool cuda_device) {
  require_codebook_sizes("codebooks", num_codes, dim);
  static_cast<void>(num_rows);
  const int d = static_cast<int>(dim), books = static_cast<int>(num_books);
  return bytes_for(is_double, [&](auto zero) {
    using T = decltype(zero);
    return bytes_on(
        cuda_device, FASTSHAPE_CPU_BYTES(residual_quantize_workspace_bytes<T>(num_codes, d, books)),
        FASTSHAPE_CUDA_BYTES(residual_quantize_workspace_bytes<T>(num_codes, d, books, num_rows)));
  });
}

void residual_quantize(const Tensor& x, const Tensor& codebooks, bool cosine,
                       const Tensor& workspace, const Tensor& codes, const Tensor& quantized,
                       const Tensor& square_error, const std::optional<Tensor>& counts) {
  require_dtype(codes, "codes", {DType::int64});
  FASTSHAPE_CHECK_VALUE(codes.dim() >= 1, "`codes` must have shape (..., L), got ",
                        codes.shape_text());
  const int64_t levels = codes.size(codes.dim() - 1);
  require_codebooks(codebooks, levels);
  const int64_t num_codes = codebooks.size(codebooks.dim() - 2);
  const int64_t dim = codebooks.size(codebooks.dim() - 1);
  const int64_t rows = require_rows(x, dim);
  require_like(x, "x", codebooks, "codebooks");
  require_indices(x, codes, "codes", rows * levels);
  require_output(x, "x", square_error, "square_error", {levels, rows}, "(L, N)");
  require_like(x, "x", quantized, "quantized");
  FASTSHAPE_CHECK_VALUE(quantized.numel() == x.numel(), "`quantized` must have the shape of `x`, ",
                        x.shape_text(), ", got ", quantized.shape_text());
  int64_t* const count = require_counts(x, counts, levels * num_codes);
  const Workspace space = open_workspace(x, "x", workspace);
  require_workspace(space, residual_quantize_workspace_bytes(
                               num_codes, dim, codebooks.dim() == 2 ? 1 : levels, rows,
                               x.dtype() == DType::float64, x.device() == Device::cuda));
  with_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const auto books = level_codebooks<T>(codebooks, levels, cosine);
    const ResidualQuantize<T> task{
        x.data<T>(), rows, codes.data<int64_t>(), quantized.data<T>(), square_error.data<T>(),
        count};
    run(x, FASTSHAPE_CPU(cpu::residual_quantize(books, task, space.data)),
        FASTSHAPE_CUDA(cuda::residual_quantize(books, task, space.data, stream)));
  });
}

void residual_quantize_backward(const Tensor& x, const Tensor& codebooks, const Tensor& codes,
                                const Tensor& residual_weights, const Tensor& code_weights,
                                const Tensor& grad_x, const std::optional<Tensor>& grad_codes) {
  require_dtype(codes, "codes", {DType::int64});
  const int64_t levels = codes.dim() == 0 ? 0 : codes.size(codes.dim() - 1);
  require_codebooks(codebooks, levels);
  const int64_t rows = require_rows(x, codebooks.size(codebooks.dim() - 1));
  require_like(x, "x", codebooks, "codebooks");
  require_indices(x, codes, "codes", rows * levels);
  require_output(x, "x", residual_weights, "residual_weights", {levels}, "(L,)");
  require_output(x, "x", code_weights, "code_weights", {levels}, "(L,)");
  require_like(x, "x", grad_x, "grad_x");
  FASTSHAPE_CHECK_VALUE(grad_x.numel() == x.numel(), "`grad_x` must have the shape of `x`, ",
                        x.shape_text(), ", got ", grad_x.shape_text());
  if (grad_codes) {
    require_like(x, "x", *grad_codes, "grad_codes");
    FASTSHAPE_CHECK_VALUE(grad_codes->numel() == x.numel() * levels, "`grad_codes` must have ",
                          x.numel() * levels, " elements, got shape ", grad_codes->shape_text());
  }
  with_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const auto books = level_codebooks<T>(codebooks, levels, false);
    const ResidualQuantizeBackward<T> task{x.data<T>(),
                                           rows,
                                           codes.data<int64_t>(),
                                           residual_weights.data<T>(),
                                           code_weights.data<T>(),
                                           grad_x.data<T>(),
                                           grad_codes ? grad_codes->data<T>() : nullptr};
    run(x, FASTSHAPE_CPU(cpu::residual_quantize_backward(books, task)),
        FASTSHAPE_CUDA(cuda::residual_quantize_backward(books, task, stream)));
  });
}

void residual_decode(const Tensor& codes, const Tensor& codebooks, const Tensor& quantized) {
  require_dtype(codes, "codes", {DType::int64});
  FASTSHAPE_CHECK_VALUE(codes.dim() >= 1, "`codes` must have shape (..., L), got ",
                        codes.shape_text());
  const int64_t levels = codes.size(codes.dim() - 1);
  require_codebooks(codebooks, levels);
  require_same_device(codebooks, "codebooks", codes, "codes");
  require_like(codebooks, "codebooks", quantized, "quantized");
  const int64_t rows = codes.numel() / levels;
  FASTSHAPE_CHECK_VALUE(quantized.numel() == rows * codebooks.size(codebooks.dim() - 1),
                        "`quantized` must have a vector for each row of `codes`, got shape ",
                        quantized.shape_text());
  with_dtype(codebooks, [&](auto zero) {
    using T = decltype(zero);
    const auto books = level_codebooks<T>(codebooks, levels, false);
    const ResidualDecode<T> task{codes.data<int64_t>(), rows, quantized.data<T>()};
    run(codebooks, FASTSHAPE_CPU(cpu::residual_decode(books, task)),
        FASTSHAPE_CUDA(cuda::residual_decode(books, task, stream)));
  });
}

}  // namespace

void bind_quantize(py::module_& m) {
  m.def("nearest_code", &nearest_code, py::arg("x"), py::arg("codebook"), py::arg("cosine"),
        py::arg("workspace"), py::arg("indices"), py::arg("counts"));
  m.def("topk_codes", &topk_codes, py::arg("x"), py::arg("codebook"), py::arg("top"),
        py::arg("cosine"), py::arg("workspace"), py::arg("indices"), py::arg("square_distance"));
  m.def("nearest_code_workspace_bytes", &nearest_code_workspace_bytes, py::arg("num_codes"),
        py::arg("dim"), py::arg("num_rows"), py::arg("is_double"), py::arg("cuda"));
  m.def("code_sums", &code_sums, py::arg("values"), py::arg("codes"), py::arg("num_codes"),
        py::arg("levels"), py::arg("workspace"), py::arg("sums"), py::arg("counts"));
  m.def("code_sums_workspace_bytes", &code_sums_workspace_bytes, py::arg("num_rows"),
        py::arg("num_sums"), py::arg("cuda"));
  m.def("residual_quantize", &residual_quantize, py::arg("x"), py::arg("codebooks"),
        py::arg("cosine"), py::arg("workspace"), py::arg("codes"), py::arg("quantized"),
        py::arg("square_error"), py::arg("counts"));
  m.def("residual_quantize_workspace_bytes", &residual_quantize_workspace_bytes,
        py::arg("num_codes"), py::arg("dim"), py::arg("num_books"), py::arg("num_rows"),
        py::arg("is_double"), py::arg("cuda"));
  m.def("residual_quantize_backward", &residual_quantize_backward, py::arg("x"),
        py::arg("codebooks"), py::arg("codes"), py::arg("residual_weights"),
        py::arg("code_weights"), py::arg("grad_x"), py::arg("grad_codes"));
  m.def("residual_decode", &residual_decode, py::arg("codes"), py::arg("codebooks"),
        py::arg("quantized"));
}

}  // namespace fastshape
