#include <pybind11/pybind11.h>

#include <limits>

#include "bindings/run.h"
#include "bindings/tensor.h"
#include "isosurface/flood_fill.h"

namespace py = pybind11;

namespace fastshape {
namespace {

// Nodes and workspace are counted from these, so they are checked before either.
void require_lattice(int64_t num_solid, int64_t size_x, int64_t size_y, int64_t size_z) {
  FASTSHAPE_CHECK_VALUE(size_x > 0 && size_y > 0 && size_z > 0,
                        "`shape` must be three positive numbers, got (", size_x, ", ", size_y, ", ",
                        size_z, ")");
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  FASTSHAPE_CHECK_VALUE(size_x < kMost / size_y && num_solid < kMost - size_x * size_y &&
                            size_z < std::numeric_limits<int64_t>::max() / (size_x * size_y),
                        "rows (x, y) and `solid` must together be fewer than 2^31, got (", size_x,
                        ", ", size_y, ", ", size_z, ") and ", num_solid);
}

void flood_fill(const Tensor& points, const Tensor& solid, int64_t size_x, int64_t size_y,
                int64_t size_z, const std::optional<Tensor>& workspace, const Tensor& reached) {
  require(points, "points", {DType::int64}, {-1}, "(N,)");
  require(solid, "solid", {DType::int64}, {-1}, "(M,)");
  require_same_device(points, "points", solid, "solid");
  require_lattice(solid.numel(), size_x, size_y, size_z);
  require(reached, "reached", {DType::boolean}, {points.size(0)}, "(N,)");
  require_same_device(points, "points", reached, "reached");
  [[maybe_unused]] void* space = nullptr;
  [[maybe_unused]] size_t space_bytes = 0;
  if (workspace) {
    require_dtype(*workspace, "workspace", {DType::uint8});
    require_same_device(points, "points", *workspace, "workspace");
    space = workspace->data<void>();
    space_bytes = static_cast<size_t>(workspace->numel());
  }
  const FloodFill task{points.data<int64_t>(),
                       points.numel(),
                       solid.data<int64_t>(),
                       solid.numel(),
                       size_x,
                       size_y,
                       size_z,
                       reached.data<bool>()};
  run(points, FASTSHAPE_CPU(cpu::flood_fill(task)),
      FASTSHAPE_CUDA(cuda::flood_fill(task, space, space_bytes, stream)));
}

}  // namespace

void bind_isosurface(py::module_& m) {
  m.def("flood_fill", &flood_fill, py::arg("points"), py::arg("solid"), py::arg("size_x"),
        py::arg("size_y"), py::arg("size_z"), py::arg("workspace"), py::arg("reached"));
  m.def(
      "flood_fill_workspace_bytes",
      [](int64_t num_solid, int64_t size_x, int64_t size_y, int64_t size_z) -> size_t {
        require_lattice(num_solid, size_x, size_y, size_z);
#if defined(FASTSHAPE_HAS_CUDA) || defined(FASTSHAPE_EMULATION)
        return cuda::flood_fill_workspace_bytes(num_solid, size_x * size_y);
#else
        return 0;
#endif
      },
      py::arg("num_solid"), py::arg("size_x"), py::arg("size_y"), py::arg("size_z"));
}

}  // namespace fastshape
