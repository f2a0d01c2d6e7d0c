#include "attention/attention.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <limits>

#include "attention/voxel_order.h"
#include "attention/window_plan.h"
#include "bindings/arguments.h"
#include "bindings/run.h"
#include "bindings/tensor.h"
#include "bindings/workspaces.h"

namespace py = pybind11;

namespace fastshape {
namespace {

constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max() - 1024;  // and a chunk of them

void voxel_order(const Tensor& coords, const std::optional<Tensor>& workspace,
                 const Tensor& bad_row, const Tensor& order) {
  require(coords, "coords", {DType::int32, DType::int64}, {-1, 4}, "(N, 4)");
  const int64_t n = coords.size(0);
  FASTSHAPE_CHECK_VALUE(n <= kMostRows, "`coords` must have at most 2^31 - 1025 rows, got ", n);
  require(bad_row, "bad_row", {DType::int64}, {1}, "(1,)");
  require(order, "order", {DType::int64}, {n}, "(N,)");
  require_same_device(coords, "coords", bad_row, "bad_row");
  require_same_device(coords, "coords", order, "order");
  [[maybe_unused]] const Workspace space = open_workspace(coords, "coords", workspace);
  const auto with = [&](auto number) {
    using Integer = decltype(number);
    const VoxelOrder<Integer> task{coords.data<Integer>(), n, order.data<int64_t>(),
                                   bad_row.data<int64_t>()};
    run(coords, FASTSHAPE_CPU(cpu::voxel_order(task)),
        FASTSHAPE_CUDA(cuda::voxel_order(task, space.data, space.bytes, stream)));
  };
  if (coords.dtype() == DType::int32)
    with(int32_t());
  else
    with(int64_t());
}

constexpr int64_t kPlanCounts = sizeof(WindowPlanCounts) / sizeof(int64_t);

void window_plan(const Tensor& coords, int64_t window, int64_t shift,
                 const std::optional<Tensor>& workspace, const Tensor& offsets,
                 const Tensor& run_offsets, const Tensor& run_starts, const Tensor& run_positions,
                 const Tensor& counts) {
  require(coords, "coords", {DType::int32}, {-1, 4}, "(N, 4)");
  const int64_t n = coords.size(0);
  FASTSHAPE_CHECK_VALUE(n <= kMostRows, "`coords` must have at most 2^31 - 1025 rows, got ", n);
  FASTSHAPE_CHECK_VALUE(window >= 1 && shift >= 0,
                        "`window` must be at least 1 and `shift` at least 0, got ", window, " and ",
                        shift);
  struct Output {
    const Tensor& tensor;
    const char* name;
    int64_t size;
  };
  for (const Output& output :
       {Output{offsets, "offsets", n + 1}, Output{run_offsets, "run_offsets", n + 1},
        Output{run_starts, "run_starts", n}, Output{run_positions, "run_positions", n + 1}}) {
    require(output.tensor, output.name, {DType::int32}, {output.size}, "(N + 1,)");
    require_same_device(coords, "coords", output.tensor, output.name);
  }
  require(counts, "counts", {DType::int64}, {kPlanCounts}, "(6,)");
  require_same_device(coords, "coords", counts, "counts");
  [[maybe_unused]] const Workspace space = open_workspace(coords, "coords", workspace);
  const int64_t moved = shift % window;  // the same windows
  const WindowPlan plan{coords.data<int32_t>(),
                        n,
                        window,
                        moved,
                        cell_bits_of(window, moved),
                        offsets.data<int32_t>(),
                        run_offsets.data<int32_t>(),
                        run_starts.data<int32_t>(),
                        run_positions.data<int32_t>(),
                        reinterpret_cast<WindowPlanCounts*>(counts.data<int64_t>())};
  run(coords, FASTSHAPE_CPU(cpu::window_plan(plan)),
      FASTSHAPE_CUDA(cuda::window_plan(plan, space.data, space.bytes, stream)));
}

DType wide_dtype(const Tensor& tensor) {
  return tensor.dtype() == DType::float64 ? DType::float64 : DType::float32;
}

// (rows, heads, head_dim) with features side by side, in pieces of 16 bytes.
template <class T>
HeadRows<T> require_heads(const Tensor& tensor, const char* name, const Tensor& q, int64_t rows) {
  tensor.require_strided(name);
  FASTSHAPE_CHECK_TYPE(tensor.dtype() == q.dtype(), "`", name, "` must be ", dtype_name(q.dtype()),
                       " as `q`, got ", dtype_name(tensor.dtype()));
  require_same_device(q, "q", tensor, name);
  FASTSHAPE_CHECK_VALUE(tensor.dim() == 3 && tensor.size(1) == q.size(1) &&
                            tensor.size(2) == q.size(2) && (rows < 0 || tensor.size(0) == rows),
                        "`", name, "` must have shape (",
                        rows < 0 ? std::string("N") : std::to_string(rows), ", ", q.size(1), ", ",
                        q.size(2), "), got ", tensor.shape_text());
  T* const data = tensor.data<T>();
  if (tensor.numel() == 0) return {data, 0, 0};
  const auto piece = static_cast<int64_t>(16 / sizeof(T));
  const int64_t row = tensor.size(0) == 1 ? 0 : tensor.stride(0);
  const int64_t head = tensor.size(1) == 1 ? 0 : tensor.stride(1);
  FASTSHAPE_CHECK_VALUE(tensor.stride(2) == 1 && row % piece == 0 && head % piece == 0 &&
                            reinterpret_cast<uintptr_t>(data) % 16 == 0,
                        "`", name,
                        "` must have its features side by side and every row of them at a multiple "
                        "of 16 bytes; call .contiguous() first");
  return {data, row, head};
}

void require_int32(const Tensor& tensor, const char* name, const Tensor& q, int64_t size,
                   const char* shape_name) {
  require(tensor, name, {DType::int32}, {size}, shape_name);
  require_same_device(q, "q", tensor, name);
}

template <class W>
const W* require_gamma(const std::optional<Tensor>& gamma, const char* name, const Tensor& q) {
  if (!gamma) return nullptr;
  require(*gamma, name, {wide_dtype(q)}, {q.size(1), q.size(2)}, "(H, D)");
  require_same_device(q, "q", *gamma, name);
  return gamma->data<W>();
}

struct Arguments {
  const Tensor &q, &k, &v, &q_offsets, &k_offsets;
  const std::optional<Tensor>&run_offsets, &run_starts, &run_positions, &coords;
  double scale;
  const std::optional<Tensor>&q_gamma, &k_gamma, &rope;
};

void require_q(const Tensor& q) {
  q.require_strided("q");
  const DType t = q.dtype();
  FASTSHAPE_CHECK_TYPE(
      t == DType::float16 || t == DType::bfloat16 || t == DType::float32 || t == DType::float64,
      "`q` must be float16, bfloat16, float32 or float64, got ", dtype_name(t));
  FASTSHAPE_CHECK_VALUE(q.dim() == 3, "`q` must have shape (N, H, D), got ", q.shape_text());
  const int64_t n = q.size(2);
  FASTSHAPE_CHECK_VALUE(n >= 16 && n <= 128 && n % 8 == 0,
                        "the head dimension must be a multiple of 8 from 16 to 128, got ", n);
  FASTSHAPE_CHECK_VALUE(q.size(0) <= kMostRows, "`q` must have at most 2^31 - 1025 rows, got ",
                        q.size(0));
}

template <class T>
Attention<T> open(const Arguments& a) {
  Attention<T> task{};
  const Tensor& q = a.q;
  task.q = require_heads<const T>(q, "q", q, q.size(0));
  task.k = require_heads<const T>(a.k, "k", q, a.run_offsets ? q.size(0) : -1);
  task.v = require_heads<const T>(a.v, "v", q, a.k.size(0));
  FASTSHAPE_CHECK_VALUE(a.k.size(0) <= kMostRows, "`k` must have at most 2^31 - 1025 rows, got ",
                        a.k.size(0));
  const char* const q_name = a.run_offsets ? "cu_lengths" : "cu_seqlens_q";
  const char* const k_name = a.run_offsets ? "cu_lengths" : "cu_seqlens_k";
  require_int32(a.q_offsets, q_name, q, -1, "(S + 1,)");
  FASTSHAPE_CHECK_VALUE(a.q_offsets.size(0) >= 1, "`", q_name, "` must have shape (S + 1,), got ",
                        a.q_offsets.shape_text());
  const int64_t sequences = a.q_offsets.size(0) - 1;
  const std::string shape = concatenate("(", sequences + 1, ",)");
  require_int32(a.k_offsets, k_name, q, sequences + 1, shape.c_str());
  task.queries.offsets = a.q_offsets.data<int32_t>();
  task.keys.offsets = a.k_offsets.data<int32_t>();
  task.queries.total = q.size(0);
  task.keys.total = a.k.size(0);
  if (a.run_offsets) {
    FASTSHAPE_CHECK_VALUE(a.run_starts && a.run_positions, "runs are three tensors");
    require_int32(*a.run_offsets, "run_offsets", q, sequences + 1, "(S + 1,)");
    require_int32(*a.run_starts, "run_starts", q, -1, "(R,)");
    require_int32(*a.run_positions, "run_positions", q, a.run_starts->size(0) + 1, "(R + 1,)");
    for (Sequences* side : {&task.queries, &task.keys}) {
      side->run_offsets = a.run_offsets->data<int32_t>();
      side->run_starts = a.run_starts->data<int32_t>();
      side->run_positions = a.run_positions->data<int32_t>();
    }
  }
  task.num_sequences = sequences;
  task.num_heads = q.size(1);
  task.head_dim = static_cast<int>(q.size(2));
  task.scale = static_cast<wide<T>>(a.scale);
  task.q_gamma = require_gamma<wide<T>>(a.q_gamma, "q_gamma", q);
  task.k_gamma = require_gamma<wide<T>>(a.k_gamma, "k_gamma", q);
  if (a.rope) {
    FASTSHAPE_CHECK_VALUE(a.coords.has_value(), "`rope` needs `coords`");
    require(*a.coords, "coords", {DType::int32}, {q.size(0), 4}, "(N, 4)");
    require_same_device(q, "q", *a.coords, "coords");
    require(*a.rope, "rope", {DType::float32}, {-1, -1, 2}, "(P, F, 2)");
    require_same_device(q, "q", *a.rope, "rope");
    FASTSHAPE_CHECK_VALUE(
        a.rope->size(0) >= 1 && a.rope->size(0) <= kMostRows && 6 * a.rope->size(1) <= q.size(2),
        "`rope` must have shape (P, F, 2) with at least one position and 6 F at most the head "
        "dimension, ",
        q.size(2), ", got ", a.rope->shape_text());
    task.coords = a.coords->data<int32_t>();
    task.rope = a.rope->data<float>();
    task.rope_length = static_cast<int>(a.rope->size(0));
    task.rope_pairs = static_cast<int>(a.rope->size(1));
  }
  return task;
}

template <class T>
wide<T>* require_lse(const Tensor& lse, const Tensor& q) {
  require(lse, "lse", {wide_dtype(q)}, {q.size(1), q.size(0)}, "(H, N)");
  require_same_device(q, "q", lse, "lse");
  return lse.data<wide<T>>();
}

void attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_offsets,
               const Tensor& k_offsets, const std::optional<Tensor>& run_offsets,
               const std::optional<Tensor>& run_starts, const std::optional<Tensor>& run_positions,
               const std::optional<Tensor>& coords, double scale,
               const std::optional<Tensor>& q_gamma, const std::optional<Tensor>& k_gamma,
               const std::optional<Tensor>& rope, const Tensor& out, const Tensor& lse) {
  require_q(q);
  const Arguments arguments{
      q,      k,     v,       q_offsets, k_offsets, run_offsets, run_starts, run_positions,
      coords, scale, q_gamma, k_gamma,   rope};
  with_any_float(q, [&](auto number) {
    using T = decltype(number);
    const AttentionForward<T> task{open<T>(arguments), require_heads<T>(out, "out", q, q.size(0)),
                                   require_lse<T>(lse, q)};
    run(q, FASTSHAPE_CPU(cpu::attention(task)), FASTSHAPE_CUDA(cuda::attention(task, stream)));
  });
}

// How many parts the gammas' gradients come in: by the sizes alone, so that sums are the same
// wherever they are made.
constexpr int64_t kMostParts = 1024;
int64_t gamma_parts(int64_t num_rows, int64_t num_sequences) {
  const int64_t parts = num_sequences == 0 ? 0 : num_sequences + num_rows / 64;
  return parts < kMostParts ? parts : kMostParts;
}

template <class W>
W* require_parts(const std::optional<Tensor>& grad, const char* name, const Tensor& q,
                 int64_t parts) {
  if (!grad) return nullptr;
  require(*grad, name, {wide_dtype(q)}, {parts, q.size(1), q.size(2)}, "(parts, H, D)");
  require_same_device(q, "q", *grad, name);
  return grad->data<W>();
}

void attention_backward(
    const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& lse, const Tensor& q_offsets, const Tensor& k_offsets,
    const std::optional<Tensor>& run_offsets, const std::optional<Tensor>& run_starts,
    const std::optional<Tensor>& run_positions, const std::optional<Tensor>& coords, double scale,
    const std::optional<Tensor>& q_gamma, const std::optional<Tensor>& k_gamma,
    const std::optional<Tensor>& rope, [[maybe_unused]] const std::optional<Tensor>& workspace,
    const Tensor& grad_q, const Tensor& grad_k, const Tensor& grad_v,
    const std::optional<Tensor>& q_gamma_grad, const std::optional<Tensor>& k_gamma_grad) {
  require_q(q);
  const Arguments arguments{
      q,      k,     v,       q_offsets, k_offsets, run_offsets, run_starts, run_positions,
      coords, scale, q_gamma, k_gamma,   rope};
  with_any_float(q, [&](auto number) {
    using T = decltype(number);
    AttentionBackward<T> task{};
    task.in = open<T>(arguments);
    task.out = require_heads<const T>(out, "out", q, q.size(0));
    task.grad_out = require_heads<const T>(grad_out, "grad_out", q, q.size(0));
    task.lse = require_lse<T>(lse, q);
    task.grad_q = require_heads<T>(grad_q, "grad_q", q, q.size(0));
    task.grad_k = require_heads<T>(grad_k, "grad_k", q, k.size(0));
    task.grad_v = require_heads<T>(grad_v, "grad_v", q, k.size(0));
    task.gamma_parts = gamma_parts(std::max(q.size(0), k.size(0)), task.in.num_sequences);
    task.q_gamma_grad = require_parts<wide<T>>(q_gamma_grad, "q_gamma_grad", q, task.gamma_parts);
    task.k_gamma_grad = require_parts<wide<T>>(k_gamma_grad, "k_gamma_grad", q, task.gamma_parts);
    [[maybe_unused]] const Workspace space = open_workspace(q, "q", workspace);
    run(q, FASTSHAPE_CPU(cpu::attention_backward(task)),
        FASTSHAPE_CUDA(cuda::attention_backward(task, space.data, space.bytes, stream)));
  });
}

size_t attention_backward_workspace_bytes([[maybe_unused]] int64_t num_queries,
                                          [[maybe_unused]] int64_t num_sequences,
                                          [[maybe_unused]] int64_t num_heads,
                                          [[maybe_unused]] int64_t head_dim,
                                          [[maybe_unused]] bool is_wide, bool cuda) {
  return bytes_on(
      cuda, [] { return size_t{0}; },
      FASTSHAPE_CUDA_BYTES(attention_backward_workspace_bytes(num_queries, num_sequences, num_heads,
                                                              head_dim, is_wide)));
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def("voxel_order", &voxel_order, py::arg("coords"), py::arg("workspace"), py::arg("bad_row"),
        py::arg("order"));
  m.def("voxel_order_workspace_bytes", FASTSHAPE_WORKSPACE(voxel_order), py::arg("count"));
  m.def("window_plan", &window_plan, py::arg("coords"), py::arg("window"), py::arg("shift"),
        py::arg("workspace"), py::arg("offsets"), py::arg("run_offsets"), py::arg("run_starts"),
        py::arg("run_positions"), py::arg("counts"));
  m.def("window_plan_workspace_bytes", FASTSHAPE_WORKSPACE(window_plan), py::arg("count"));
  m.def("attention", &attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("q_offsets"),
        py::arg("k_offsets"), py::arg("run_offsets"), py::arg("run_starts"),
        py::arg("run_positions"), py::arg("coords"), py::arg("scale"), py::arg("q_gamma"),
        py::arg("k_gamma"), py::arg("rope"), py::arg("out"), py::arg("lse"));
  m.def("attention_gamma_parts", &gamma_parts, py::arg("num_rows"), py::arg("num_sequences"));
  m.def("attention_backward_workspace_bytes", &attention_backward_workspace_bytes,
        py::arg("num_queries"), py::arg("num_sequences"), py::arg("num_heads"), py::arg("head_dim"),
        py::arg("is_wide"), py::arg("cuda"));
  m.def("attention_backward", &attention_backward, py::arg("grad_out"), py::arg("q"), py::arg("k"),
        py::arg("v"), py::arg("out"), py::arg("lse"), py::arg("q_offsets"), py::arg("k_offsets"),
        py::arg("run_offsets"), py::arg("run_starts"), py::arg("run_positions"), py::arg("coords"),
        py::arg("scale"), py::arg("q_gamma"), py::arg("k_gamma"), py::arg("rope"),
        py::arg("workspace"), py::arg("grad_q"), py::arg("grad_k"), py::arg("grad_v"),
        py::arg("q_gamma_grad"), py::arg("k_gamma_grad"));
}

}  // namespace fastshape
