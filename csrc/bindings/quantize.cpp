#include <pybind11/pybind11.h>

#include "bindings/arguments.h"
#include "bindings/run.h"
#include "bindings/tensor.h"
#include "bindings/workspaces.h"
#include "quantize/code_sums.h"
#include "quantize/multiscale.h"
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

// ---- multiscale_quantize -----------------------------------------------------------------------

// Height, width and phi of every scale, one after the other.
struct ScaleSizes {
  int64_t num_scales, num_tokens, max_tokens, factors, bands;
};

ScaleSizes require_sizes(const py::sequence& sizes, int64_t height, int64_t width) {
  ScaleSizes total{static_cast<int64_t>(py::len(sizes)) / 3, 0, 0, 0, 0};
  FASTSHAPE_CHECK_VALUE(
      total.num_scales >= 1 && total.num_scales <= kMaxScales && py::len(sizes) % 3 == 0,
      "there must be 1 to 32 scales, got ", total.num_scales);
  FASTSHAPE_CHECK_VALUE(height >= 1 && width >= 1 && height * width <= (int64_t{1} << 24),
                        "the grid must have 1 to 2^24 cells, got ", height, " x ", width);
  for (int64_t s = 0; s < total.num_scales; ++s) {
    const auto h = py::cast<int64_t>(sizes[3 * s]), w = py::cast<int64_t>(sizes[3 * s + 1]);
    FASTSHAPE_CHECK_VALUE(h >= 1 && w >= 1 && h * w <= (int64_t{1} << 24), "scale ", s,
                          " must have 1 to 2^24 tokens, got ", h, " x ", w);
    total.num_tokens += h * w;
    total.max_tokens = h * w > total.max_tokens ? h * w : total.max_tokens;
    total.factors += 2 * (h * height + w * width);
    total.bands += 2 * (2 * h + 2 * w + height + width);
  }
  return total;
}

template <class T>
Multiscale<T> multiscale_task(const Tensor& codebook, const Tensor& factors, const Tensor& bands,
                              const py::sequence& sizes, int64_t height, int64_t width,
                              const std::optional<Tensor>& phi_weight,
                              const std::optional<Tensor>& phi_bias, double ratio, bool cosine,
                              int64_t batch) {
  Multiscale<T> task{};
  task.batch = batch;
  task.height = static_cast<int>(height);
  task.width = static_cast<int>(width);
  task.cells = height * width;
  task.dim = static_cast<int>(codebook.size(1));
  task.num_scales = static_cast<int>(py::len(sizes) / 3);
  const T* factor = factors.data<T>();
  const int32_t* band = bands.data<int32_t>();
  const auto take = [](auto*& from, int64_t count) {
    auto* const here = from;
    from += count;
    return here;
  };
  for (int s = 0; s < task.num_scales; ++s) {
    Scale<T>& scale = task.scales[s];
    const auto h = py::cast<int64_t>(sizes[3 * s]), w = py::cast<int64_t>(sizes[3 * s + 1]);
    scale.height = static_cast<int>(h);
    scale.width = static_cast<int>(w);
    scale.phi = py::cast<int>(sizes[3 * s + 2]);
    scale.first_token = task.num_tokens;
    task.num_tokens += h * w;
    scale.down_y = take(factor, h * height);
    scale.down_x = take(factor, w * width);
    scale.up_y = take(factor, height * h);
    scale.up_x = take(factor, width * w);
    scale.down_y_band = take(band, 2 * h);
    scale.down_x_band = take(band, 2 * w);
    scale.up_y_band = take(band, 2 * height);
    scale.up_x_band = take(band, 2 * width);
    scale.up_y_columns = take(band, 2 * h);
    scale.up_x_columns = take(band, 2 * w);
  }
  task.codebook = codebook.data<T>();
  task.num_codes = codebook.size(0);
  task.cosine = cosine;
  if (phi_weight) {
    task.phi_weight = phi_weight->data<T>();
    task.phi_bias = phi_bias->data<T>();
    task.num_phis = static_cast<int>(phi_weight->size(0));
  }
  task.ratio = static_cast<T>(ratio);
  return task;
}

// What forward and backward have in common.
ScaleSizes require_multiscale(const Tensor& codebook, const Tensor& factors, const Tensor& bands,
                              const py::sequence& sizes, int64_t height, int64_t width,
                              const std::optional<Tensor>& phi_weight,
                              const std::optional<Tensor>& phi_bias) {
  require_codebook(codebook);
  const int64_t dim = codebook.size(1);
  const ScaleSizes total = require_sizes(sizes, height, width);
  require_output(codebook, "codebook", factors, "factors", {total.factors}, "(factors,)");
  require(bands, "bands", {DType::int32}, {total.bands}, "(bands,)");
  require_same_device(codebook, "codebook", bands, "bands");
  FASTSHAPE_CHECK_VALUE(phi_weight.has_value() == phi_bias.has_value(),
                        "`phi_weight` and `phi_bias` come together");
  if (phi_weight) {
    require_output(codebook, "codebook", *phi_weight, "phi_weight", {-1, 3, 3, dim, dim},
                   "(P, 3, 3, D, D)");
    require_output(codebook, "codebook", *phi_bias, "phi_bias", {phi_weight->size(0), dim},
                   "(P, D)");
    for (int64_t s = 0; s < total.num_scales; ++s) {
      const auto phi = py::cast<int64_t>(sizes[3 * s + 2]);
      FASTSHAPE_CHECK_VALUE(phi >= 0 && phi < phi_weight->size(0), "`phi_index` must be in [0, ",
                            phi_weight->size(0), "), got ", phi, " for scale ", s);
    }
  }
  return total;
}

template <class T>
T* optional_data(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->data<T>() : nullptr;
}

size_t multiscale_workspace_bytes(int64_t num_codes, int64_t dim, int64_t max_rows,
                                  int64_t all_rows, int64_t grid_rows, bool is_double,
                                  bool cuda_device) {
  require_codebook_sizes("codebook", num_codes, dim);
  static_cast<void>(max_rows), static_cast<void>(all_rows), static_cast<void>(grid_rows);
  const int d = static_cast<int>(dim);
  return bytes_for(is_double, [&](auto zero) {
    using T = decltype(zero);
    return bytes_on(cuda_device, FASTSHAPE_CPU_BYTES(multiscale_workspace_bytes<T>(num_codes, d)),
                    FASTSHAPE_CUDA_BYTES(multiscale_workspace_bytes<T>(num_codes, d, max_rows,
                                                                       all_rows, grid_rows)));
  });
}

void multiscale_quantize(const std::optional<Tensor>& z, const Tensor& codebook,
                         const Tensor& factors, const Tensor& bands, const py::sequence& sizes,
                         int64_t height, int64_t width, const std::optional<Tensor>& phi_weight,
                         const std::optional<Tensor>& phi_bias, double ratio, bool cosine,
                         const Tensor& workspace, const Tensor& codes, const Tensor& quantized,
                         const std::optional<Tensor>& square_error,
                         const std::optional<Tensor>& residuals,
                         const std::optional<Tensor>& inputs, const std::optional<Tensor>& counts) {
  const ScaleSizes total =
      require_multiscale(codebook, factors, bands, sizes, height, width, phi_weight, phi_bias);
  const int64_t dim = codebook.size(1), cells = height * width;
  require(codes, "codes", {DType::int64}, {-1, total.num_tokens}, "(B, T)");
  require_same_device(codebook, "codebook", codes, "codes");
  const int64_t batch = codes.size(0);
  if (z) {
    require(*z, "z", kFloats, {batch, cells, dim}, "(B, M, D)");
    require_like(codebook, "codebook", *z, "z");
  }
  require_output(codebook, "codebook", quantized, "quantized", {batch, cells, dim}, "(B, M, D)");
  if (square_error)
    require_output(codebook, "codebook", *square_error, "square_error",
                   {total.num_scales, batch, cells}, "(S, B, M)");
  FASTSHAPE_CHECK_VALUE(z.has_value() == square_error.has_value(),
                        "`z` and `square_error` come together");
  if (residuals)
    require_output(codebook, "codebook", *residuals, "residuals",
                   {total.num_scales, batch, cells, dim}, "(S, B, M, D)");
  const int64_t first =
      py::cast<int64_t>(sizes[0]) * py::cast<int64_t>(sizes[1]);  // tokens of scale 0
  if (inputs)
    require_output(codebook, "codebook", *inputs, "inputs", {batch, total.num_tokens - first, dim},
                   "(B, T - tokens of scale 0, D)");
  int64_t* const count = require_counts(codebook, counts, total.num_scales * codebook.size(0));
  const Workspace space = open_workspace(codebook, "codebook", workspace);
  require_workspace(space,
                    multiscale_workspace_bytes(codebook.size(0), dim, batch * total.max_tokens,
                                               batch * total.num_tokens, batch * cells,
                                               codebook.dtype() == DType::float64,
                                               codebook.device() == Device::cuda));
  with_dtype(codebook, [&](auto zero) {
    using T = decltype(zero);
    const auto task = multiscale_task<T>(codebook, factors, bands, sizes, height, width, phi_weight,
                                         phi_bias, ratio, cosine, batch);
    const MultiscaleForward<T> out{optional_data<T>(z),
                                   codes.data<int64_t>(),
                                   quantized.data<T>(),
                                   optional_data<T>(square_error),
                                   optional_data<T>(residuals),
                                   optional_data<T>(inputs),
                                   count};
    run(codebook, FASTSHAPE_CPU(cpu::multiscale_quantize(task, out, space.data)),
        FASTSHAPE_CUDA(cuda::multiscale_quantize(task, out, space.data, stream)));
  });
}

size_t multiscale_backward_workspace_bytes(int64_t dim, int64_t all_rows, int64_t grid_rows,
                                           int64_t num_scales, bool is_double, bool cuda_device) {
  require_codebook_sizes("codebook", 1, dim);
  static_cast<void>(all_rows), static_cast<void>(grid_rows), static_cast<void>(num_scales);
  [[maybe_unused]] const int d = static_cast<int>(dim), scales = static_cast<int>(num_scales);
  return bytes_for(is_double, [&](auto zero) {
    using T [[maybe_unused]] = decltype(zero);
    return bytes_on(
        cuda_device, [] { return size_t{0}; },
        FASTSHAPE_CUDA_BYTES(
            multiscale_backward_workspace_bytes<T>(d, all_rows, grid_rows, scales)));
  });
}

void multiscale_backward(const Tensor& codes, const Tensor& residuals, const Tensor& codebook,
                         const Tensor& factors, const Tensor& bands, const py::sequence& sizes,
                         int64_t height, int64_t width, const std::optional<Tensor>& phi_weight,
                         const std::optional<Tensor>& phi_bias, double ratio,
                         const Tensor& residual_weights, const Tensor& code_weights,
                         const Tensor& workspace, const Tensor& grad_z, const Tensor& grad_codes,
                         const std::optional<Tensor>& grad_phi_weight,
                         const std::optional<Tensor>& grad_phi_bias) {
  const ScaleSizes total =
      require_multiscale(codebook, factors, bands, sizes, height, width, phi_weight, phi_bias);
  const int64_t dim = codebook.size(1), cells = height * width;
  require(codes, "codes", {DType::int64}, {-1, total.num_tokens}, "(B, T)");
  require_same_device(codebook, "codebook", codes, "codes");
  const int64_t batch = codes.size(0);
  require_output(codebook, "codebook", residuals, "residuals",
                 {total.num_scales, batch, cells, dim}, "(S, B, M, D)");
  require_output(codebook, "codebook", residual_weights, "residual_weights", {total.num_scales},
                 "(S,)");
  require_output(codebook, "codebook", code_weights, "code_weights", {total.num_scales}, "(S,)");
  require_output(codebook, "codebook", grad_z, "grad_z", {batch, cells, dim}, "(B, M, D)");
  require_output(codebook, "codebook", grad_codes, "grad_codes", {batch, total.num_tokens, dim},
                 "(B, T, D)");
  FASTSHAPE_CHECK_VALUE(phi_weight.has_value() == grad_phi_weight.has_value() &&
                            phi_weight.has_value() == grad_phi_bias.has_value(),
                        "gradients of phi are given where phi is");
  if (phi_weight) {
    require_output(codebook, "codebook", *grad_phi_weight, "grad_phi_weight",
                   {phi_weight->size(0), 3, 3, dim, dim}, "(P, 3, 3, D, D)");
    require_output(codebook, "codebook", *grad_phi_bias, "grad_phi_bias",
                   {phi_weight->size(0), dim}, "(P, D)");
  }
  const Workspace space = open_workspace(codebook, "codebook", workspace);
  require_workspace(space, multiscale_backward_workspace_bytes(dim, batch * total.num_tokens,
                                                               batch * cells, total.num_scales,
                                                               codebook.dtype() == DType::float64,
                                                               codebook.device() == Device::cuda));
  with_dtype(codebook, [&](auto zero) {
    using T = decltype(zero);
    const auto task = multiscale_task<T>(codebook, factors, bands, sizes, height, width, phi_weight,
                                         phi_bias, ratio, false, batch);
    const MultiscaleBackward<T> out{codes.data<int64_t>(),
                                    residuals.data<T>(),
                                    residual_weights.data<T>(),
                                    code_weights.data<T>(),
                                    grad_z.data<T>(),
                                    grad_codes.data<T>(),
                                    optional_data<T>(grad_phi_weight),
                                    optional_data<T>(grad_phi_bias)};
    run(codebook, FASTSHAPE_CPU(cpu::multiscale_backward(task, out)),
        FASTSHAPE_CUDA(cuda::multiscale_backward(task, out, space.data, stream)));
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
  m.def("multiscale_quantize", &multiscale_quantize, py::arg("z"), py::arg("codebook"),
        py::arg("factors"), py::arg("bands"), py::arg("sizes"), py::arg("height"), py::arg("width"),
        py::arg("phi_weight"), py::arg("phi_bias"), py::arg("ratio"), py::arg("cosine"),
        py::arg("workspace"), py::arg("codes"), py::arg("quantized"), py::arg("square_error"),
        py::arg("residuals"), py::arg("inputs"), py::arg("counts"));
  m.def("multiscale_workspace_bytes", &multiscale_workspace_bytes, py::arg("num_codes"),
        py::arg("dim"), py::arg("max_rows"), py::arg("all_rows"), py::arg("grid_rows"),
        py::arg("is_double"), py::arg("cuda"));
  m.def("multiscale_backward", &multiscale_backward, py::arg("codes"), py::arg("residuals"),
        py::arg("codebook"), py::arg("factors"), py::arg("bands"), py::arg("sizes"),
        py::arg("height"), py::arg("width"), py::arg("phi_weight"), py::arg("phi_bias"),
        py::arg("ratio"), py::arg("residual_weights"), py::arg("code_weights"),
        py::arg("workspace"), py::arg("grad_z"), py::arg("grad_codes"), py::arg("grad_phi_weight"),
        py::arg("grad_phi_bias"));
  m.def("multiscale_backward_workspace_bytes", &multiscale_backward_workspace_bytes, py::arg("dim"),
        py::arg("all_rows"), py::arg("grid_rows"), py::arg("num_scales"), py::arg("is_double"),
        py::arg("cuda"));
}

}  // namespace fastshape
