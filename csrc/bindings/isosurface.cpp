#include <pybind11/pybind11.h>

#include <limits>

#include "bindings/arguments.h"
#include "bindings/run.h"
#include "bindings/tensor.h"
#include "bindings/workspaces.h"
#include "isosurface/flood_fill.h"
#include "isosurface/marching_cubes.h"
#include "isosurface/marching_cubes_backward.h"
#include "isosurface/marching_cubes_sparse.h"
#include "isosurface/marching_cubes_sparse_backward.h"

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
  [[maybe_unused]] const Workspace space = open_workspace(points, "points", workspace);
  const FloodFill task{points.data<int64_t>(),
                       points.numel(),
                       solid.data<int64_t>(),
                       solid.numel(),
                       size_x,
                       size_y,
                       size_z,
                       reached.data<bool>()};
  run(points, FASTSHAPE_CPU(cpu::flood_fill(task)),
      FASTSHAPE_CUDA(cuda::flood_fill(task, space.data, space.bytes, stream)));
}

constexpr int64_t kNumCounts = sizeof(MarchingCubesCounts) / sizeof(int64_t);

size_t marching_cubes_sparse_workspace_bytes(int64_t num_cells, bool cuda_device) {
  return bytes_on(cuda_device,
                  FASTSHAPE_CPU_BYTES(marching_cubes_sparse_workspace_bytes(num_cells)),
                  FASTSHAPE_CUDA_BYTES(marching_cubes_sparse_workspace_bytes(num_cells)));
}

size_t marching_cubes_sparse_fill_workspace_bytes([[maybe_unused]] int64_t num_vertices,
                                                  bool cuda_device) {
  return bytes_on(
      cuda_device, [] { return size_t{0}; },
      FASTSHAPE_CUDA_BYTES(marching_cubes_sparse_fill_workspace_bytes(num_vertices)));
}

Workspace require_cells(const Tensor& values, const Tensor& coords, const Tensor& workspace) {
  require(values, "values", kFloats, {-1, 8}, "(N, 8)");
  require(coords, "coords", {DType::int32}, {values.size(0), 3}, "(N, 3)");
  require_same_device(values, "values", coords, "coords");
  FASTSHAPE_CHECK_VALUE(values.size(0) <= kMaxSparseCells, "`values` must have at most ",
                        kMaxSparseCells, " rows, got ", values.size(0));
  const Workspace space = open_workspace(values, "values", workspace);
  require_workspace(space, marching_cubes_sparse_workspace_bytes(values.size(0),
                                                                 values.device() == Device::cuda));
  return space;
}

template <class T>
MarchingCubesSparse<T> sparse_task(const Tensor& values, const Tensor& coords, double level) {
  return {values.data<T>(), coords.data<int32_t>(), values.size(0), static_cast<T>(level)};
}

void marching_cubes_sparse_count(const Tensor& values, const Tensor& coords, double level,
                                 const Tensor& workspace, const Tensor& counts) {
  [[maybe_unused]] const Workspace space = require_cells(values, coords, workspace);
  require(counts, "counts", {DType::int64}, {kNumCounts}, "(4,)");
  require_same_device(values, "values", counts, "counts");
  auto* const found = reinterpret_cast<MarchingCubesCounts*>(counts.data<int64_t>());
  with_dtype(values, [&](auto zero) {
    const auto task = sparse_task<decltype(zero)>(values, coords, level);
    run(values, FASTSHAPE_CPU(cpu::marching_cubes_sparse_count(task, space.data, found)),
        FASTSHAPE_CUDA(cuda::marching_cubes_sparse_count(task, space.data, found, stream)));
  });
}

void marching_cubes_sparse_fill(const Tensor& values, const Tensor& coords, double level,
                                const Tensor& workspace,
                                const std::optional<Tensor>& fill_workspace, int64_t num_crossed,
                                const Tensor& vertices, const Tensor& faces, const Tensor& source) {
  [[maybe_unused]] const Workspace space = require_cells(values, coords, workspace);
  require_output(values, "values", vertices, "vertices", {-1, 3}, "(V, 3)");
  require(faces, "faces", {DType::int64}, {-1, 3}, "(F, 3)");
  require_same_device(values, "values", faces, "faces");
  require(source, "source", {DType::int64}, {vertices.size(0)}, "(V,)");
  require_same_device(values, "values", source, "source");
  const MarchingCubesCounts counts{vertices.size(0), faces.size(0), num_crossed, values.size(0)};
  [[maybe_unused]] const Workspace fill_space = open_workspace(values, "values", fill_workspace);
  require_workspace(fill_space, marching_cubes_sparse_fill_workspace_bytes(
                                    counts.num_vertices, values.device() == Device::cuda));
  with_dtype(values, [&](auto zero) {
    using T = decltype(zero);
    const auto task = sparse_task<T>(values, coords, level);
    const MarchingCubesMesh<T> mesh{vertices.data<T>(), faces.data<int64_t>(),
                                    source.data<int64_t>()};
    run(values, FASTSHAPE_CPU(cpu::marching_cubes_sparse_fill(task, space.data, counts, mesh)),
        FASTSHAPE_CUDA(cuda::marching_cubes_sparse_fill(task, space.data, fill_space.data, counts,
                                                        mesh, stream)));
  });
}

// The lattice in its workspace, on CUDA with what the scans need behind it.
struct DenseWorkspace {
  SignLattice lattice;
  void* scan;
  size_t bytes;
};

DenseWorkspace dense_workspace(void* begin, int64_t size_x, int64_t size_y, int64_t size_z,
                               bool cuda_device) {
  DenseWorkspace w{sign_lattice(begin, size_x, size_y, size_z), nullptr, 0};
  if (begin != nullptr) w.scan = static_cast<unsigned char*>(begin) + w.lattice.bytes;
  w.bytes = w.lattice.bytes + bytes_on(
                                  cuda_device, [] { return size_t{0}; },
                                  FASTSHAPE_CUDA_BYTES(marching_cubes_scan_bytes(w.lattice)));
  return w;
}

size_t marching_cubes_workspace_bytes(int64_t size_x, int64_t size_y, int64_t size_z, bool cuda) {
  return dense_workspace(nullptr, size_x, size_y, size_z, cuda).bytes;
}

DenseWorkspace require_field(const Tensor& values, const Tensor& workspace) {
  require(values, "values", kFloats, {-1, -1, -1}, "(X, Y, Z)");
  const Workspace space = open_workspace(values, "values", workspace);
  const DenseWorkspace dense = dense_workspace(space.data, values.size(0), values.size(1),
                                               values.size(2), values.device() == Device::cuda);
  require_workspace(space, dense.bytes);
  return dense;
}

template <class T>
MarchingCubes<T> dense_task(const Tensor& values, double level) {
  return {values.data<T>(), values.size(0), values.size(1), values.size(2), static_cast<T>(level)};
}

void marching_cubes_count(const Tensor& values, double level, const Tensor& workspace,
                          const Tensor& totals) {
  const DenseWorkspace dense = require_field(values, workspace);
  require(totals, "totals", {DType::int64}, {2}, "(2,)");
  require_same_device(values, "values", totals, "totals");
  auto* const found = reinterpret_cast<MarchingCubesTotals*>(totals.data<int64_t>());
  with_dtype(values, [&](auto zero) {
    const auto task = dense_task<decltype(zero)>(values, level);
    run(values, FASTSHAPE_CPU(cpu::marching_cubes_count(task, dense.lattice, found)),
        FASTSHAPE_CUDA(cuda::marching_cubes_count(task, dense.lattice, dense.scan, found, stream)));
  });
}

void marching_cubes_fill(const Tensor& values, double level, const Tensor& workspace,
                         const Tensor& vertices, const Tensor& faces, const Tensor& source) {
  const DenseWorkspace dense = require_field(values, workspace);
  require_output(values, "values", vertices, "vertices", {-1, 3}, "(V, 3)");
  require(faces, "faces", {DType::int64}, {-1, 3}, "(F, 3)");
  require_same_device(values, "values", faces, "faces");
  require(source, "source", {DType::int64}, {vertices.size(0)}, "(V,)");
  require_same_device(values, "values", source, "source");
  with_dtype(values, [&](auto zero) {
    using T = decltype(zero);
    const auto task = dense_task<T>(values, level);
    const DenseMesh<T> mesh{vertices.data<T>(), faces.data<int64_t>(), source.data<int64_t>()};
    run(values, FASTSHAPE_CPU(cpu::marching_cubes_fill(task, dense.lattice, mesh)),
        FASTSHAPE_CUDA(cuda::marching_cubes_fill(task, dense.lattice, mesh, stream)));
  });
}

void require_backward(const Tensor& grad_vertices, const Tensor& values, const Tensor& source) {
  require_output(values, "values", grad_vertices, "grad_vertices", {-1, 3}, "(V, 3)");
  require(source, "source", {DType::int64}, {grad_vertices.size(0)}, "(V,)");
  require_same_device(values, "values", source, "source");
}

void marching_cubes_backward(const Tensor& grad_vertices, const Tensor& values,
                             const Tensor& source, double level, const Tensor& grad_values) {
  require(values, "values", kFloats, {-1, -1, -1}, "(X, Y, Z)");
  require_backward(grad_vertices, values, source);
  require_output(values, "values", grad_values, "grad_values",
                 {values.size(0), values.size(1), values.size(2)}, "(X, Y, Z)");
  with_dtype(values, [&](auto zero) {
    using T = decltype(zero);
    const MarchingCubesBackward<T> task{
        grad_vertices.data<T>(), source.data<int64_t>(), source.numel(),
        values.data<T>(),        values.size(0),         values.size(1),
        values.size(2),          static_cast<T>(level),  grad_values.data<T>()};
    run(values, FASTSHAPE_CPU(cpu::marching_cubes_backward(task)),
        FASTSHAPE_CUDA(cuda::marching_cubes_backward(task, stream)));
  });
}

void marching_cubes_sparse_backward(const Tensor& grad_vertices, const Tensor& values,
                                    const Tensor& source, double level,
                                    const std::optional<Tensor>& workspace,
                                    const Tensor& grad_values) {
  require(values, "values", kFloats, {-1, 8}, "(N, 8)");
  require_backward(grad_vertices, values, source);
  require_output(values, "values", grad_values, "grad_values", {values.size(0), 8}, "(N, 8)");
  [[maybe_unused]] const Workspace space = open_workspace(values, "values", workspace);
  with_dtype(values, [&](auto zero) {
    using T = decltype(zero);
    const MarchingCubesSparseBackward<T> task{
        grad_vertices.data<T>(), source.data<int64_t>(), source.numel(),       values.data<T>(),
        values.size(0),          static_cast<T>(level),  grad_values.data<T>()};
    run(values, FASTSHAPE_CPU(cpu::marching_cubes_sparse_backward(task)),
        FASTSHAPE_CUDA(
            cuda::marching_cubes_sparse_backward(task, space.data, space.bytes, stream)));
  });
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
  m.def("marching_cubes_sparse_workspace_bytes", &marching_cubes_sparse_workspace_bytes,
        py::arg("num_cells"), py::arg("cuda"));
  m.def("marching_cubes_sparse_fill_workspace_bytes", &marching_cubes_sparse_fill_workspace_bytes,
        py::arg("num_vertices"), py::arg("cuda"));
  m.def("marching_cubes_sparse_count", &marching_cubes_sparse_count, py::arg("values"),
        py::arg("coords"), py::arg("level"), py::arg("workspace"), py::arg("counts"));
  m.def("marching_cubes_sparse_fill", &marching_cubes_sparse_fill, py::arg("values"),
        py::arg("coords"), py::arg("level"), py::arg("workspace"), py::arg("fill_workspace"),
        py::arg("num_crossed"), py::arg("vertices"), py::arg("faces"), py::arg("source"));
  m.def("marching_cubes_workspace_bytes", &marching_cubes_workspace_bytes, py::arg("size_x"),
        py::arg("size_y"), py::arg("size_z"), py::arg("cuda"));
  m.def("marching_cubes_count", &marching_cubes_count, py::arg("values"), py::arg("level"),
        py::arg("workspace"), py::arg("totals"));
  m.def("marching_cubes_fill", &marching_cubes_fill, py::arg("values"), py::arg("level"),
        py::arg("workspace"), py::arg("vertices"), py::arg("faces"), py::arg("source"));
  m.def("marching_cubes_backward", &marching_cubes_backward, py::arg("grad_vertices"),
        py::arg("values"), py::arg("source"), py::arg("level"), py::arg("grad_values"));
  m.def("marching_cubes_sparse_backward", &marching_cubes_sparse_backward, py::arg("grad_vertices"),
        py::arg("values"), py::arg("source"), py::arg("level"), py::arg("workspace"),
        py::arg("grad_values"));
  m.def("marching_cubes_sparse_backward_workspace_bytes",
        FASTSHAPE_WORKSPACE(marching_cubes_sparse_backward), py::arg("num_cells"));
}

}  // namespace fastshape
