#include <pybind11/pybind11.h>

#include "bindings/run.h"
#include "bindings/tensor.h"
#include "sampling/farthest_point_sampling.h"

namespace py = pybind11;

namespace fastshape {
namespace {

constexpr int kCloudRows = 5;  // begin, length, num, start, out_begin: see FarthestPointSampling

// On the CPU the numbers can be read, so wrong ones are an error. On the GPU reading them would
// need a sync: there they are the caller's promise.
void check_clouds(const int64_t* clouds, int64_t batch, int64_t total, int64_t out_total) {
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t begin = clouds[b], length = clouds[batch + b], num = clouds[2 * batch + b];
    const int64_t out_begin = clouds[4 * batch + b];
    FASTSHAPE_CHECK_VALUE(
        begin >= 0 && length >= 0 && begin + length <= total, "cloud ", b, " of `points` has ",
        length, " points from row ", begin, " on, but there are ", total,
        " rows; check `lengths` (between 0 and N) or `cu_seqlens` (from 0, never falling)");
    FASTSHAPE_CHECK_VALUE(num >= 0 && out_begin >= 0 && out_begin + num <= out_total, "cloud ", b,
                          " writes ", num, " picks from ", out_begin,
                          " on, but `indices` has room for ", out_total);
  }
}

void farthest_point_sampling(const Tensor& points, const Tensor& clouds, int64_t max_num,
                             const std::optional<Tensor>& workspace, const Tensor& indices,
                             const std::optional<Tensor>& distances) {
  require_dtype(points, "points", {DType::float32});
  const bool packed = points.dim() == 2;
  FASTSHAPE_CHECK_VALUE((packed || points.dim() == 3) && points.size(points.dim() - 1) == 3,
                        "`points` must have shape (B, N, 3), or (total, 3) with `cu_seqlens`, got ",
                        points.shape_text());
  require(clouds, "clouds", {DType::int64}, {kCloudRows, -1}, "(5, B)");
  require_dtype(indices, "indices", {DType::int64});
  require_same_device(points, "points", clouds, "clouds");
  require_same_device(points, "points", indices, "indices");
  const int64_t max_length = points.size(points.dim() - 2);
  FASTSHAPE_CHECK_VALUE(max_length < int64_t{1} << 31, "`points` holds a cloud of up to ",
                        max_length, " points; at most 2^31 - 1 are supported");

  FarthestPointSampling task{};
  const int64_t batch = clouds.size(1);
  const int64_t* rows = clouds.data<int64_t>();
  task.points = points.data<float>();
  task.begin = rows;
  task.length = rows + batch;
  task.num = rows + 2 * batch;
  task.start = rows + 3 * batch;
  task.out_begin = rows + 4 * batch;
  task.batch = batch;
  task.total = points.numel() / 3;
  task.max_length = max_length;
  task.max_num = max_num;
  task.global_indices = packed;
  task.indices = indices.data<int64_t>();
  if (distances) {
    require_dtype(*distances, "distances", {DType::float32});
    require_same_device(points, "points", *distances, "distances");
    FASTSHAPE_CHECK_VALUE(distances->numel() == indices.numel(), "`distances` must have ",
                          indices.numel(), " elements, as `indices`, got ", distances->numel());
    task.distances = distances->data<float>();
  }
  if (workspace) {
    require_dtype(*workspace, "workspace", {DType::uint8});
    require_same_device(points, "points", *workspace, "workspace");
    task.workspace = workspace->data<void>();
    task.workspace_bytes = static_cast<size_t>(workspace->numel());
  }
  if (points.device() == Device::cpu)
    check_clouds(rows, batch, points.numel() / 3, indices.numel());
  run(points, FASTSHAPE_CPU(cpu::farthest_point_sampling(task)),
      FASTSHAPE_CUDA(cuda::farthest_point_sampling(task, stream)));
}

size_t workspace_bytes([[maybe_unused]] int64_t batch, [[maybe_unused]] int64_t total,
                       [[maybe_unused]] int64_t max_length, [[maybe_unused]] int64_t max_num) {
#if defined(FASTSHAPE_HAS_CUDA) || defined(FASTSHAPE_EMULATION)
  return cuda::farthest_point_sampling_workspace_bytes(batch, total, max_length, max_num);
#else
  return 0;
#endif
}

}  // namespace

void bind_sampling(py::module_& m) {
  m.def("farthest_point_sampling", &farthest_point_sampling, py::arg("points"), py::arg("clouds"),
        py::arg("max_num"), py::arg("workspace"), py::arg("indices"), py::arg("distances"));
  // For CUDA tensors, and for every tensor in the emulated module; the CPU kernel needs none.
  m.def("farthest_point_sampling_workspace_bytes", &workspace_bytes, py::arg("batch"),
        py::arg("total"), py::arg("max_length"), py::arg("max_num"));
}

}  // namespace fastshape
