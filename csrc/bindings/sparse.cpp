#include <pybind11/pybind11.h>

#include <algorithm>

#include "bindings/arguments.h"
#include "bindings/run.h"
#include "bindings/tensor.h"
#include "bindings/workspaces.h"
#include "sparse/neighbor_table.h"
#include "sparse/segments.h"
#include "sparse/sparse_conv3d.h"
#include "sparse/unique_voxels.h"
#include "sparse/voxel_hash.h"

namespace py = pybind11;

namespace fastshape {
namespace {

// ---- Voxels
// --------------------------------------------------------------------------------------

void require_rows(int64_t rows, const char* name) {
  FASTSHAPE_CHECK_VALUE(rows <= kMaxRows, "`", name, "` must have at most ", kMaxRows,
                        " rows, got ", rows);
}

void require_voxels(const Tensor& coords, const char* name, const char* shape_name) {
  require(coords, name, {DType::int32, DType::int64}, {-1, 4}, shape_name);
  require_rows(coords.size(0), name);
}

// Calls f(int32_t()) or f(int64_t()).
template <class F>
void with_index(const Tensor& coords, F&& f) {
  if (coords.dtype() == DType::int32)
    f(int32_t());
  else
    f(int64_t());
}

template <class Index>
VoxelHash<Index> hash_of(const Tensor& coords, const Tensor& slots) {
  return {coords.data<Index>(), coords.size(0), slots.data<int32_t>(), slots.size(0)};
}

void require_slots(const Tensor& coords, const Tensor& slots) {
  require_voxels(coords, "coords", "(N, 4)");
  require(slots, "slots", {DType::int32}, {voxel_hash_slots(coords.size(0))}, "(slots,)");
  require_same_device(coords, "coords", slots, "slots");
}

void voxel_hash(const Tensor& coords, const Tensor& slots, const Tensor& duplicate) {
  require_slots(coords, slots);
  require(duplicate, "duplicate", {DType::int64}, {1}, "(1,)");
  require_same_device(coords, "coords", duplicate, "duplicate");
  auto* const row = duplicate.data<int64_t>();
  with_index(coords, [&](auto zero) {
    const auto task = hash_of<decltype(zero)>(coords, slots);
    run(coords, FASTSHAPE_CPU(cpu::voxel_hash(task, row)),
        FASTSHAPE_CUDA(cuda::voxel_hash(task, row, stream)));
  });
}

void neighbor_table(const Tensor& coords, const Tensor& slots, const Tensor& queries,
                    int64_t kernel_size, int64_t stride, int64_t dilation, const Tensor& rows) {
  require_slots(coords, slots);
  require_voxels(queries, "queries", "(M, 4)");
  FASTSHAPE_CHECK_TYPE(queries.dtype() == coords.dtype(), "`queries` must be ",
                       dtype_name(coords.dtype()), " as `coords`, got ",
                       dtype_name(queries.dtype()));
  require_same_device(coords, "coords", queries, "queries");
  FASTSHAPE_CHECK_VALUE(kernel_size >= 1 && kernel_size <= kMaxKernelSize,
                        "`kernel_size` must be 1, 2 or 3, got ", kernel_size);
  FASTSHAPE_CHECK_VALUE(stride >= 1, "`stride` must be positive, got ", stride);
  FASTSHAPE_CHECK_VALUE(dilation >= 1, "`dilation` must be positive, got ", dilation);
  require(rows, "rows", {DType::int32}, {queries.size(0), kernel_size * kernel_size * kernel_size},
          "(M, kernel_size^3)");
  require_same_device(coords, "coords", rows, "rows");
  with_index(coords, [&](auto zero) {
    using Index = decltype(zero);
    const NeighborTable<Index> task{hash_of<Index>(coords, slots),
                                    queries.data<Index>(),
                                    queries.size(0),
                                    static_cast<int>(kernel_size),
                                    stride,
                                    dilation,
                                    rows.data<int32_t>()};
    run(coords, FASTSHAPE_CPU(cpu::neighbor_table(task)),
        FASTSHAPE_CUDA(cuda::neighbor_table(task, stream)));
  });
}

void invert_table(const Tensor& rows, const Tensor& inverse) {
  require(rows, "rows", {DType::int32}, {-1, -1}, "(M, K)");
  require(inverse, "inverse", {DType::int32}, {-1, rows.size(1)}, "(N, K)");
  require_same_device(rows, "rows", inverse, "inverse");
  require_rows(rows.size(0), "rows");
  const InvertTable task{rows.data<int32_t>(), rows.size(0), rows.size(1), inverse.data<int32_t>(),
                         inverse.size(0)};
  run(rows, FASTSHAPE_CPU(cpu::invert_table(task)),
      FASTSHAPE_CUDA(cuda::invert_table(task, stream)));
}

void order_rows(const Tensor& rows, const std::optional<Tensor>& workspace, const Tensor& order) {
  require(rows, "rows", {DType::int32}, {-1, -1}, "(M, K)");
  require_rows(rows.size(0), "rows");
  FASTSHAPE_CHECK_VALUE(rows.size(1) >= 1 && rows.size(1) <= 32,
                        "`rows` must have 1 to 32 columns, got ", rows.size(1));
  require(order, "order", {DType::int32}, {rows.size(0)}, "(M,)");
  require_same_device(rows, "rows", order, "order");
  [[maybe_unused]] const Workspace space = open_workspace(rows, "rows", workspace);
#if defined(FASTSHAPE_HAS_CUDA) || defined(FASTSHAPE_EMULATION)
  if (workspace) require_workspace(space, cuda::order_rows_workspace_bytes(rows.size(0)));
#endif
  const OrderRows task{rows.data<int32_t>(), rows.size(0), static_cast<int>(rows.size(1)),
                       order.data<int32_t>()};
  run(rows, FASTSHAPE_CPU(cpu::order_rows(task)),
      FASTSHAPE_CUDA(cuda::order_rows(task, space.data, stream)));
}

template <class Index>
UniqueVoxels<Index> unique_task(const Tensor& coords, int64_t factor, const int* bits,
                                const Tensor& index, const Tensor& order) {
  UniqueVoxels<Index> task{coords.data<Index>(),  coords.size(0),       factor, {},
                           index.data<int64_t>(), order.data<int32_t>()};
  std::copy(bits, bits + 4, task.bits);
  return task;
}

void require_unique(const Tensor& coords, int64_t factor, const Tensor& index,
                    const Tensor& order) {
  require_voxels(coords, "coords", "(N, 4)");
  FASTSHAPE_CHECK_VALUE(factor >= 1, "`factor` must be positive, got ", factor);
  require(index, "index", {DType::int64}, {coords.size(0)}, "(N,)");
  require(order, "order", {DType::int32}, {coords.size(0)}, "(N,)");
  require_same_device(coords, "coords", index, "index");
  require_same_device(coords, "coords", order, "order");
}

void unique_voxels_count(const Tensor& coords, int64_t factor, int batch_bits, int x_bits,
                         int y_bits, int z_bits, const std::optional<Tensor>& workspace,
                         const Tensor& index, const Tensor& order, const Tensor& num_unique) {
  require_unique(coords, factor, index, order);
  const int bits[4] = {batch_bits, x_bits, y_bits, z_bits};
  int sum = 0;
  for (int b : bits) {
    FASTSHAPE_CHECK_VALUE(b >= 0 && b <= 63, "the bits of an axis must lie in [0, 63], got ", b);
    sum += b;
  }
  FASTSHAPE_CHECK_VALUE(sum <= 64, "`coords` must have at most 64 bits together, got ", sum);
  require(num_unique, "num_unique", {DType::int64}, {1}, "(1,)");
  require_same_device(coords, "coords", num_unique, "num_unique");
  [[maybe_unused]] const Workspace space = open_workspace(coords, "coords", workspace);
#if defined(FASTSHAPE_HAS_CUDA) || defined(FASTSHAPE_EMULATION)
  if (workspace) require_workspace(space, cuda::unique_voxels_workspace_bytes(coords.size(0)));
#endif
  auto* const found = num_unique.data<int64_t>();
  with_index(coords, [&](auto zero) {
    const auto task = unique_task<decltype(zero)>(coords, factor, bits, index, order);
    run(coords, FASTSHAPE_CPU(cpu::unique_voxels_count(task, found)),
        FASTSHAPE_CUDA(cuda::unique_voxels_count(task, space.data, found, stream)));
  });
}

void unique_voxels_fill(const Tensor& coords, int64_t factor, const Tensor& index,
                        const Tensor& order, const Tensor& voxels, const Tensor& offsets) {
  require_unique(coords, factor, index, order);
  require(voxels, "voxels", {coords.dtype()}, {-1, 4}, "(S, 4)");
  require(offsets, "offsets", {DType::int64}, {voxels.size(0) + 1}, "(S + 1,)");
  require_same_device(coords, "coords", voxels, "voxels");
  require_same_device(coords, "coords", offsets, "offsets");
  const int bits[4] = {};
  with_index(coords, [&](auto zero) {
    using Index = decltype(zero);
    const auto task = unique_task<Index>(coords, factor, bits, index, order);
    const UniqueVoxelsOut<Index> out{voxels.data<Index>(), offsets.data<int64_t>(), voxels.size(0)};
    run(coords, FASTSHAPE_CPU(cpu::unique_voxels_fill(task, out)),
        FASTSHAPE_CUDA(cuda::unique_voxels_fill(task, out, stream)));
  });
}

// ---- Segments
// ------------------------------------------------------------------------------------

void make_segments(const Tensor& index, const std::optional<Tensor>& workspace, const Tensor& order,
                   const Tensor& offsets) {
  require(index, "index", {DType::int64}, {-1}, "(N,)");
  require_rows(index.size(0), "index");
  require(order, "order", {DType::int32}, {index.size(0)}, "(N,)");
  require(offsets, "offsets", {DType::int64}, {-1}, "(S + 1,)");
  FASTSHAPE_CHECK_VALUE(offsets.size(0) >= 1 && offsets.size(0) <= kMaxRows,
                        "`num_segments` must lie in [0, ", kMaxRows - 1, "], got ",
                        offsets.size(0) - 1);
  require_same_device(index, "index", order, "order");
  require_same_device(index, "index", offsets, "offsets");
  [[maybe_unused]] const Workspace space = open_workspace(index, "index", workspace);
#if defined(FASTSHAPE_HAS_CUDA) || defined(FASTSHAPE_EMULATION)
  if (workspace) require_workspace(space, cuda::make_segments_workspace_bytes(index.size(0)));
#endif
  const MakeSegments task{index.data<int64_t>(), index.size(0), offsets.size(0) - 1,
                          order.data<int32_t>(), offsets.data<int64_t>()};
  run(index, FASTSHAPE_CPU(cpu::make_segments(task)),
      FASTSHAPE_CUDA(cuda::make_segments(task, space.data, stream)));
}

// `tensor` is of the dtype and on the device of `values`.
void require_as_values(const Tensor& values, const Tensor& tensor, const char* name,
                       std::initializer_list<int64_t> shape, const char* shape_name) {
  require(tensor, name, {values.dtype()}, shape, shape_name);
  require_same_device(values, "values", tensor, name);
}

void segment_reduce(const Tensor& values, const Tensor& order, const Tensor& offsets, int reduction,
                    const Tensor& out, const std::optional<Tensor>& best) {
  require(values, "values", kAllFloats, {-1, -1}, "(N, C)");
  require_rows(values.size(0), "values");
  require(order, "order", {DType::int32}, {values.size(0)}, "(N,)");
  require(offsets, "offsets", {DType::int64}, {-1}, "(S + 1,)");
  FASTSHAPE_CHECK_VALUE(offsets.size(0) >= 1, "`offsets` must have a row");
  FASTSHAPE_CHECK_VALUE(reduction >= 0 && reduction <= 3, "`reduction` must lie in [0, 3], got ",
                        reduction);
  const int64_t segments = offsets.size(0) - 1, width = values.size(1);
  require_as_values(values, out, "out", {segments, width}, "(S, C)");
  require_same_device(values, "values", order, "order");
  require_same_device(values, "values", offsets, "offsets");
  const auto kind = static_cast<Reduction>(reduction);
  FASTSHAPE_CHECK_VALUE((kind == Reduction::max) == best.has_value(),
                        "`best` is for the largest value, and for nothing else");
  if (best) {
    require(*best, "best", {DType::int32}, {segments, width}, "(S, C)");
    require_same_device(values, "values", *best, "best");
  }
  with_any_float(values, [&](auto zero) {
    using T = decltype(zero);
    const SegmentReduce<T> task{values.data<T>(),
                                order.data<int32_t>(),
                                offsets.data<int64_t>(),
                                values.size(0),
                                segments,
                                width,
                                kind,
                                out.data<T>(),
                                best ? best->data<int32_t>() : nullptr};
    run(values, FASTSHAPE_CPU(cpu::segment_reduce(task)),
        FASTSHAPE_CUDA(cuda::segment_reduce(task, stream)));
  });
}

void gather_segments(const Tensor& values, const Tensor& index, const std::optional<Tensor>& best,
                     const Tensor& out) {
  require(values, "values", kAllFloats, {-1, -1}, "(S, C)");
  require_rows(values.size(0), "values");
  require(index, "index", {DType::int64}, {-1}, "(N,)");
  require_rows(index.size(0), "index");
  require_same_device(values, "values", index, "index");
  if (best) {
    require(*best, "best", {DType::int32}, {values.size(0), values.size(1)}, "(S, C)");
    require_same_device(values, "values", *best, "best");
  }
  require_as_values(values, out, "out", {index.size(0), values.size(1)}, "(N, C)");
  with_any_float(values, [&](auto zero) {
    using T = decltype(zero);
    const GatherSegments<T> task{
        values.data<T>(), index.data<int64_t>(), best ? best->data<int32_t>() : nullptr,
        index.size(0),    values.size(0),        values.size(1),
        out.data<T>()};
    run(values, FASTSHAPE_CPU(cpu::gather_segments(task)),
        FASTSHAPE_CUDA(cuda::gather_segments(task, stream)));
  });
}

// ---- Convolutions
// --------------------------------------------------------------------------------

void require_conv(const Tensor& feats, const Tensor& rows) {
  require(feats, "feats", kAllFloats, {-1, -1}, "(N, in_channels)");
  require_rows(feats.size(0), "feats");
  require(rows, "rows", {DType::int32}, {-1, -1}, "(M, K)");
  require_rows(rows.size(0), "rows");
  require_same_device(feats, "feats", rows, "rows");
  FASTSHAPE_CHECK_VALUE(rows.size(1) >= 1 && rows.size(1) <= kMaxOffsets, "`rows` must have 1 to ",
                        kMaxOffsets, " columns, got ", rows.size(1));
}

void require_as_feats(const Tensor& feats, const Tensor& tensor, const char* name,
                      std::initializer_list<int64_t> shape, const char* shape_name) {
  require_dtype(tensor, name, kAllFloats);
  FASTSHAPE_CHECK_TYPE(tensor.dtype() == feats.dtype(), "`", name, "` must be ",
                       dtype_name(feats.dtype()), " as `feats`, got ", dtype_name(tensor.dtype()));
  require_shape(tensor, name, shape, shape_name);
  require_same_device(feats, "feats", tensor, name);
}

void sparse_conv3d(const Tensor& feats, const Tensor& weight, const std::optional<Tensor>& bias,
                   const Tensor& rows, const std::optional<Tensor>& order, const Tensor& out) {
  require_conv(feats, rows);
  require_as_feats(feats, weight, "weight", {-1, rows.size(1), feats.size(1)},
                   "(out_channels, K, in_channels)");
  if (bias) require_as_feats(feats, *bias, "bias", {weight.size(0)}, "(out_channels,)");
  if (order) {
    require(*order, "order", {DType::int32}, {rows.size(0)}, "(M,)");
    require_same_device(feats, "feats", *order, "order");
  }
  require_as_feats(feats, out, "out", {rows.size(0), weight.size(0)}, "(M, out_channels)");
  with_any_float(feats, [&](auto zero) {
    using T = decltype(zero);
    const SparseConv3d<T> task{feats.data<T>(),
                               weight.data<T>(),
                               bias ? bias->data<T>() : nullptr,
                               rows.data<int32_t>(),
                               order ? order->data<int32_t>() : nullptr,
                               feats.size(0),
                               rows.size(0),
                               feats.size(1),
                               weight.size(0),
                               static_cast<int>(rows.size(1)),
                               out.data<T>()};
    run(feats, FASTSHAPE_CPU(cpu::sparse_conv3d(task)),
        FASTSHAPE_CUDA(cuda::sparse_conv3d(task, stream)));
  });
}

size_t sparse_conv3d_weight_grad_workspace_bytes([[maybe_unused]] int64_t num_rows,
                                                 [[maybe_unused]] int64_t in_channels,
                                                 [[maybe_unused]] int64_t out_channels,
                                                 [[maybe_unused]] int num_offsets) {
#if defined(FASTSHAPE_HAS_CUDA) || defined(FASTSHAPE_EMULATION)
  return cuda::sparse_conv3d_weight_grad_workspace_bytes(num_rows, in_channels, out_channels,
                                                         num_offsets);
#else
  return 0;
#endif
}

void sparse_conv3d_weight_grad(const Tensor& grad_out, const Tensor& feats, const Tensor& rows,
                               const std::optional<Tensor>& workspace, const Tensor& grad_weight) {
  require_conv(feats, rows);
  require_as_feats(feats, grad_out, "grad_out", {rows.size(0), -1}, "(M, out_channels)");
  require_as_feats(feats, grad_weight, "grad_weight",
                   {grad_out.size(1), rows.size(1), feats.size(1)},
                   "(out_channels, K, in_channels)");
  [[maybe_unused]] const Workspace space = open_workspace(feats, "feats", workspace);
  if (workspace)
    require_workspace(
        space, sparse_conv3d_weight_grad_workspace_bytes(
                   rows.size(0), feats.size(1), grad_out.size(1), static_cast<int>(rows.size(1))));
  with_any_float(feats, [&](auto zero) {
    using T = decltype(zero);
    const SparseConv3dWeightGrad<T> task{feats.data<T>(),      grad_out.data<T>(),
                                         rows.data<int32_t>(), feats.size(0),
                                         rows.size(0),         feats.size(1),
                                         grad_out.size(1),     static_cast<int>(rows.size(1)),
                                         grad_weight.data<T>()};
    run(feats, FASTSHAPE_CPU(cpu::sparse_conv3d_weight_grad(task)),
        FASTSHAPE_CUDA(cuda::sparse_conv3d_weight_grad(task, space.data, stream)));
  });
}

}  // namespace

void bind_sparse(py::module_& m) {
  m.def(
      "voxel_hash_slots", [](int64_t num_voxels) { return voxel_hash_slots(num_voxels); },
      py::arg("num_voxels"));
  m.def("voxel_hash", &voxel_hash, py::arg("coords"), py::arg("slots"), py::arg("duplicate"));
  m.def("neighbor_table", &neighbor_table, py::arg("coords"), py::arg("slots"), py::arg("queries"),
        py::arg("kernel_size"), py::arg("stride"), py::arg("dilation"), py::arg("rows"));
  m.def("invert_table", &invert_table, py::arg("rows"), py::arg("inverse"));
  m.def("order_rows_workspace_bytes", FASTSHAPE_WORKSPACE(order_rows), py::arg("num_rows"));
  m.def("order_rows", &order_rows, py::arg("rows"), py::arg("workspace"), py::arg("order"));
  m.def("unique_voxels_workspace_bytes", FASTSHAPE_WORKSPACE(unique_voxels), py::arg("num_voxels"));
  m.def("unique_voxels_count", &unique_voxels_count, py::arg("coords"), py::arg("factor"),
        py::arg("batch_bits"), py::arg("x_bits"), py::arg("y_bits"), py::arg("z_bits"),
        py::arg("workspace"), py::arg("index"), py::arg("order"), py::arg("num_unique"));
  m.def("unique_voxels_fill", &unique_voxels_fill, py::arg("coords"), py::arg("factor"),
        py::arg("index"), py::arg("order"), py::arg("voxels"), py::arg("offsets"));
  m.def("make_segments_workspace_bytes", FASTSHAPE_WORKSPACE(make_segments), py::arg("num_rows"));
  m.def("make_segments", &make_segments, py::arg("index"), py::arg("workspace"), py::arg("order"),
        py::arg("offsets"));
  m.def("segment_reduce", &segment_reduce, py::arg("values"), py::arg("order"), py::arg("offsets"),
        py::arg("reduction"), py::arg("out"), py::arg("best"));
  m.def("gather_segments", &gather_segments, py::arg("values"), py::arg("index"), py::arg("best"),
        py::arg("out"));
  m.def("sparse_conv3d", &sparse_conv3d, py::arg("feats"), py::arg("weight"), py::arg("bias"),
        py::arg("rows"), py::arg("order"), py::arg("out"));
  m.def("sparse_conv3d_weight_grad_workspace_bytes", &sparse_conv3d_weight_grad_workspace_bytes,
        py::arg("num_rows"), py::arg("in_channels"), py::arg("out_channels"),
        py::arg("num_offsets"));
  m.def("sparse_conv3d_weight_grad", &sparse_conv3d_weight_grad, py::arg("grad_out"),
        py::arg("feats"), py::arg("rows"), py::arg("workspace"), py::arg("grad_weight"));
}

}  // namespace fastshape
