#include <pybind11/pybind11.h>

#include "bindings/arguments.h"
#include "bindings/run.h"
#include "bindings/tensor.h"
#include "bindings/workspaces.h"
#include "isosurface/corner_mean.h"
#include "isosurface/voxel_corners.h"

namespace py = pybind11;

namespace fastshape {
namespace {

size_t voxel_corners_workspace_bytes(int64_t num_voxels, bool cuda_device) {
  return bytes_on(cuda_device, FASTSHAPE_CPU_BYTES(voxel_corners_workspace_bytes(num_voxels)),
                  FASTSHAPE_CUDA_BYTES(voxel_corners_workspace_bytes(num_voxels)));
}

VoxelCorners require_voxels(const Tensor& coords, int64_t axis_bits) {
  require(coords, "coords", {DType::int32}, {-1, -1}, "(N, 3) or (N, 4)");
  const int64_t num = coords.size(0), width = coords.size(1);
  FASTSHAPE_CHECK_VALUE(width == 3 || width == 4, "`coords` must have shape (N, 3) or (N, 4), got ",
                        coords.shape_text());
  FASTSHAPE_CHECK_VALUE(num <= kMaxVoxels, "`coords` must have at most ", kMaxVoxels, " rows, got ",
                        num);
  FASTSHAPE_CHECK_VALUE(axis_bits >= 2 && axis_bits <= kMaxAxisBits, "`axis_bits` must lie in [2, ",
                        kMaxAxisBits, "], got ", axis_bits);
  return {coords.data<int32_t>(), num, static_cast<int>(width), static_cast<int>(axis_bits)};
}

void* open_corners(const Tensor& coords, const Tensor& workspace) {
  const Workspace space = open_workspace(coords, "coords", workspace);
  require_workspace(space,
                    voxel_corners_workspace_bytes(coords.size(0), coords.device() == Device::cuda));
  return space.data;
}

void voxel_corners_count(const Tensor& coords, int64_t axis_bits, const Tensor& workspace,
                         const Tensor& found) {
  const VoxelCorners task = require_voxels(coords, axis_bits);
  void* const space = open_corners(coords, workspace);
  require(found, "found", {DType::int64}, {2}, "(2,)");
  require_same_device(coords, "coords", found, "found");
  auto* const out = reinterpret_cast<VoxelCornersFound*>(found.data<int64_t>());
  run(coords, FASTSHAPE_CPU(cpu::voxel_corners_count(task, space, out)),
      FASTSHAPE_CUDA(cuda::voxel_corners_count(task, space, out, stream)));
}

void voxel_corners_fill(const Tensor& coords, int64_t axis_bits, const Tensor& workspace,
                        const Tensor& index, const Tensor& keys, const Tensor& corners) {
  const VoxelCorners task = require_voxels(coords, axis_bits);
  void* const space = open_corners(coords, workspace);
  require(index, "index", {DType::int64}, {task.num_voxels, 8}, "(N, 8)");
  require(keys, "keys", {DType::int64}, {-1}, "(P,)");
  require(corners, "corners", {DType::int32}, {keys.size(0), task.width}, "(P, 3) or (P, 4)");
  require_same_device(coords, "coords", index, "index");
  require_same_device(coords, "coords", keys, "keys");
  require_same_device(coords, "coords", corners, "corners");
  const VoxelCornersFound found{keys.size(0), task.num_voxels};
  const VoxelCornersOut out{index.data<int64_t>(), keys.data<int64_t>(), corners.data<int32_t>()};
  run(coords, FASTSHAPE_CPU(cpu::voxel_corners_fill(task, space, found, out)),
      FASTSHAPE_CUDA(cuda::voxel_corners_fill(task, space, found, out, stream)));
}

void corner_mean(const Tensor& values, const Tensor& index, const std::optional<Tensor>& workspace,
                 const Tensor& mean, const Tensor& counts) {
  require(values, "values", kFloats, {-1, 8, -1}, "(N, 8, C)");
  require(index, "index", {DType::int64}, {values.size(0), 8}, "(N, 8)");
  require_same_device(values, "values", index, "index");
  FASTSHAPE_CHECK_VALUE(values.size(0) <= kMaxVoxels, "`values` must have at most ", kMaxVoxels,
                        " rows, got ", values.size(0));
  require_output(values, "values", mean, "mean", {-1, values.size(2)}, "(P, C)");
  require(counts, "counts", {DType::int64}, {mean.size(0)}, "(P,)");
  require_same_device(values, "values", counts, "counts");
  [[maybe_unused]] const Workspace space = open_workspace(values, "values", workspace);
  with_dtype(values, [&](auto zero) {
    using T = decltype(zero);
    const CornerMean<T> task{values.data<T>(),      index.data<int64_t>(), values.size(0),
                             values.size(2),        mean.size(0),          mean.data<T>(),
                             counts.data<int64_t>()};
    run(values, FASTSHAPE_CPU(cpu::corner_mean(task)),
        FASTSHAPE_CUDA(cuda::corner_mean(task, space.data, space.bytes, stream)));
  });
}

}  // namespace

void bind_voxel_corners(py::module_& m) {
  m.def("voxel_corners_workspace_bytes", &voxel_corners_workspace_bytes, py::arg("num_voxels"),
        py::arg("cuda"));
  m.def("voxel_corners_count", &voxel_corners_count, py::arg("coords"), py::arg("axis_bits"),
        py::arg("workspace"), py::arg("found"));
  m.def("voxel_corners_fill", &voxel_corners_fill, py::arg("coords"), py::arg("axis_bits"),
        py::arg("workspace"), py::arg("index"), py::arg("keys"), py::arg("corners"));
  m.def("corner_mean", &corner_mean, py::arg("values"), py::arg("index"), py::arg("workspace"),
        py::arg("mean"), py::arg("counts"));
  m.def("corner_mean_workspace_bytes", FASTSHAPE_WORKSPACE(corner_mean), py::arg("num_voxels"));
}

}  // namespace fastshape
