#include <pybind11/pybind11.h>

#include "bindings/arguments.h"
#include "bindings/run.h"
#include "bindings/tensor.h"
#include "bindings/workspaces.h"
#include "isosurface/dual_surface.h"
#include "isosurface/flexicubes.h"
#include "isosurface/flexicubes_backward.h"
#include "isosurface/flexicubes_weights.h"
#include "isosurface/sharp_vertices.h"

namespace py = pybind11;

namespace fastshape {
namespace {

using OptionalTensor = std::optional<Tensor>;

template <class T>
T* data_or_null(const OptionalTensor& tensor) {
  return tensor ? tensor->data<T>() : nullptr;
}

// ---- The connectivity --------------------------------------------------------------------------

// Of one of several tensors that a call has beside `values`.
void require_beside(const Tensor& values, const Tensor& tensor, const char* name, DType dtype,
                    std::initializer_list<int64_t> shape, const char* shape_name) {
  require(tensor, name, {dtype}, shape, shape_name);
  require_same_device(values, "values", tensor, name);
}

void require_field(const Tensor& values, const OptionalTensor& cubes) {
  if (!cubes) {
    require(values, "values", kFloats, {-1, -1, -1}, "(X, Y, Z)");
    return;
  }
  require(values, "values", kFloats, {-1}, "(P,) beside `cubes`");
  require_beside(values, *cubes, "cubes", DType::int64, {-1, 8}, "(N, 8)");
  FASTSHAPE_CHECK_VALUE(cubes->size(0) < (int64_t{1} << 31),
                        "`cubes` must have fewer than 2^31 rows, got ", cubes->size(0));
}

template <class T>
DualSurface<T> surface_task(const Tensor& values, const OptionalTensor& cubes, double level) {
  DualSurface<T> task{};
  task.values = values.data<T>();
  task.num_points = values.numel();
  task.level = static_cast<T>(level);
  if (cubes) {
    task.cubes = cubes->data<int64_t>();
    task.num_cubes = cubes->size(0);
  } else {
    task.size_x = values.size(0);
    task.size_y = values.size(1);
    task.size_z = values.size(2);
  }
  return task;
}

// The bits in their workspace, on CUDA with what the scan needs behind them.
struct MarkWorkspace {
  DualLattice lattice;
  void* scan;
  size_t bytes;
};

template <class T>
MarkWorkspace mark_workspace(void* begin, const DualSurface<T>& task, bool cuda_device) {
  MarkWorkspace w{dual_lattice(begin, task), nullptr, 0};
  if (begin != nullptr) w.scan = static_cast<unsigned char*>(begin) + w.lattice.bytes;
  w.bytes =
      w.lattice.bytes + bytes_on(
                            cuda_device, [] { return size_t{0}; },
                            FASTSHAPE_CUDA_BYTES(dual_surface_scan_bytes(w.lattice.num_words)));
  return w;
}

size_t dual_surface_workspace_bytes(int64_t num_points, int64_t size_x, int64_t size_y,
                                    int64_t size_z, bool list, bool cuda_device) {
  DualSurface<float> task{};
  static constexpr int64_t kList = 0;  // a list's workspace does not depend on what it holds
  task.num_points = num_points;
  task.size_x = size_x;
  task.size_y = size_y;
  task.size_z = size_z;
  task.cubes = list ? &kList : nullptr;
  return mark_workspace(nullptr, task, cuda_device).bytes;
}

template <class T>
MarkWorkspace open_mark(const Tensor& values, const DualSurface<T>& task, const Tensor& workspace) {
  const Workspace space = open_workspace(values, "values", workspace);
  const MarkWorkspace mark = mark_workspace(space.data, task, values.device() == Device::cuda);
  require_workspace(space, mark.bytes);
  return mark;
}

void dual_surface_mark(const Tensor& values, const OptionalTensor& cubes, double level,
                       const Tensor& workspace, const Tensor& found) {
  require_field(values, cubes);
  require_beside(values, found, "found", DType::int64, {2}, "(2,)");
  with_dtype(values, [&](auto zero) {
    const auto task = surface_task<decltype(zero)>(values, cubes, level);
    const MarkWorkspace mark = open_mark(values, task, workspace);
    auto* const out = found.data<int64_t>();
    run(values, FASTSHAPE_CPU(cpu::dual_surface_mark(task, mark.lattice, out)),
        FASTSHAPE_CUDA(cuda::dual_surface_mark(task, mark.lattice, mark.scan, out, stream)));
  });
}

// The tensors that say which cubes are crossed, in the order of DualCubes.
DualCubes require_cubes(const Tensor& values, const Tensor& lowest, const OptionalTensor& rows,
                        const Tensor& cases, const Tensor& first_vertex,
                        const OptionalTensor& first_pair) {
  require_beside(values, lowest, "lowest", DType::int64, {-1}, "(S,)");
  const int64_t num = lowest.size(0);
  FASTSHAPE_CHECK_VALUE(num < (int64_t{1} << 29), "the surface crosses ", num,
                        " cubes, fewer than 2^29 are possible");
  if (rows) require_beside(values, *rows, "rows", DType::int64, {num}, "(S,)");
  require_beside(values, cases, "cases", DType::uint8, {num}, "(S,)");
  require_beside(values, first_vertex, "first_vertex", DType::int64, {num}, "(S,)");
  if (first_pair) require_beside(values, *first_pair, "first_pair", DType::int64, {num}, "(S,)");
  return {num,
          lowest.data<int64_t>(),
          data_or_null<int64_t>(rows),
          cases.data<uint8_t>(),
          first_vertex.data<int64_t>(),
          data_or_null<int64_t>(first_pair)};
}

size_t dual_surface_count_workspace_bytes(int64_t num_crossed, bool cuda_device) {
  return bytes_on(cuda_device, FASTSHAPE_CPU_BYTES(dual_surface_count_workspace_bytes(num_crossed)),
                  FASTSHAPE_CUDA_BYTES(dual_surface_count_workspace_bytes(num_crossed)));
}

Workspace open_count(const Tensor& values, const Tensor& workspace, int64_t num_crossed) {
  const Workspace space = open_workspace(values, "values", workspace);
  require_workspace(
      space, dual_surface_count_workspace_bytes(num_crossed, values.device() == Device::cuda));
  return space;
}

void dual_surface_count(const Tensor& values, const OptionalTensor& cubes, bool manifold,
                        const Tensor& workspace, const Tensor& count_workspace,
                        const Tensor& lowest, const OptionalTensor& rows, const Tensor& cases,
                        const Tensor& first_vertex, const OptionalTensor& first_pair,
                        const Tensor& totals) {
  require_field(values, cubes);
  require_beside(values, totals, "totals", DType::int64, {3}, "(3,)");
  const DualCubes crossed = require_cubes(values, lowest, rows, cases, first_vertex, first_pair);
  const Workspace space = open_count(values, count_workspace, crossed.num);
  auto* const found = reinterpret_cast<DualTotals*>(totals.data<int64_t>());
  with_dtype(values, [&](auto zero) {
    const auto task = surface_task<decltype(zero)>(values, cubes, 0);
    const DualLattice lattice = open_mark(values, task, workspace).lattice;
    run(values,
        FASTSHAPE_CPU(cpu::dual_surface_count(lattice, manifold, crossed, space.data, found)),
        FASTSHAPE_CUDA(
            cuda::dual_surface_count(lattice, manifold, crossed, space.data, found, stream)));
  });
}

size_t dual_surface_fill_workspace_bytes([[maybe_unused]] int64_t num_quads, bool cuda_device) {
  return bytes_on(
      cuda_device, [] { return size_t{0}; },
      FASTSHAPE_CUDA_BYTES(dual_surface_fill_workspace_bytes(num_quads)));
}

void dual_surface_fill(const Tensor& values, const OptionalTensor& cubes, int64_t face_order,
                       const Tensor& workspace, const Tensor& count_workspace,
                       const Tensor& fill_workspace, const Tensor& lowest, const Tensor& rows,
                       const Tensor& cases, const Tensor& first_vertex, const Tensor& first_pair,
                       const Tensor& vertex_cubes, const Tensor& pair_edges, const Tensor& quads,
                       const Tensor& quad_kinds) {
  require_field(values, cubes);
  FASTSHAPE_CHECK_VALUE(face_order >= 0 && face_order <= 2, "`face_order` must be 0, 1 or 2, got ",
                        face_order);
  const DualCubes crossed = require_cubes(values, lowest, rows, cases, first_vertex, first_pair);
  require_beside(values, vertex_cubes, "vertex_cubes", DType::int64, {-1}, "(V,)");
  require_beside(values, pair_edges, "pair_edges", DType::uint8, {-1}, "(E,)");
  require_beside(values, quads, "quads", DType::int64, {-1, 4}, "(Q, 4)");
  require_beside(values, quad_kinds, "quad_kinds", DType::uint8, {quads.size(0)}, "(Q,)");
  FASTSHAPE_CHECK_VALUE(quads.size(0) < (int64_t{1} << 32), "there are ", quads.size(0),
                        " quads, fewer than 2^32 are possible");
  [[maybe_unused]] const Workspace count_space = open_count(values, count_workspace, crossed.num);
  [[maybe_unused]] const Workspace space = open_workspace(values, "values", fill_workspace);
  require_workspace(
      space, dual_surface_fill_workspace_bytes(quads.size(0), values.device() == Device::cuda));
  const DualTotals totals{vertex_cubes.size(0), pair_edges.size(0), quads.size(0)};
  const DualMesh mesh{vertex_cubes.data<int64_t>(), pair_edges.data<uint8_t>(),
                      quads.data<int64_t>(), quad_kinds.data<uint8_t>(), nullptr};
  const auto order = static_cast<FaceOrder>(face_order);
  with_dtype(values, [&](auto zero) {
    const auto task = surface_task<decltype(zero)>(values, cubes, 0);
    const DualLattice lattice = open_mark(values, task, workspace).lattice;
    run(values, FASTSHAPE_CPU(cpu::dual_surface_fill(lattice, order, crossed, totals, mesh)),
        FASTSHAPE_CUDA(cuda::dual_surface_fill(lattice, order, crossed, count_space.data, totals,
                                               space.data, mesh, stream)));
  });
}

// Vertices and faces of dual marching cubes, without what only weights and gradients need: the rest
// of a surface whose cubes dual_surface_count has listed.
void dual_mesh_fill(const Tensor& values, const OptionalTensor& cubes,
                    const OptionalTensor& positions, double level, const Tensor& workspace,
                    const Tensor& count_workspace, const Tensor& fill_workspace,
                    const Tensor& lowest, const OptionalTensor& rows, const Tensor& cases,
                    const Tensor& first_vertex, const Tensor& vertices, const Tensor& faces) {
  require_field(values, cubes);
  FASTSHAPE_CHECK_VALUE(positions || !cubes, "`positions` must be given beside `cubes`");
  if (positions)
    require_output(values, "values", *positions, "positions", {values.numel(), 3}, "(P, 3)");
  const DualCubes crossed = require_cubes(values, lowest, rows, cases, first_vertex, {});
  FASTSHAPE_CHECK_VALUE(rows || !cubes, "`rows` must be given beside `cubes`");
  require_output(values, "values", vertices, "vertices", {-1, 3}, "(V, 3)");
  require_beside(values, faces, "faces", DType::int64, {-1, 3}, "(F, 3)");
  const int64_t num_quads = faces.size(0) / 2;
  [[maybe_unused]] const Workspace count_space = open_count(values, count_workspace, crossed.num);
  [[maybe_unused]] const Workspace space = open_workspace(values, "values", fill_workspace);
  require_workspace(space,
                    dual_surface_fill_workspace_bytes(num_quads, values.device() == Device::cuda));
  const DualTotals totals{vertices.size(0), 0, num_quads};
  const DualMesh mesh{nullptr, nullptr, nullptr, nullptr, faces.data<int64_t>()};
  constexpr auto kOrder = FaceOrder::cube;
  with_dtype(values, [&](auto zero) {
    using T = decltype(zero);
    const auto surface = surface_task<T>(values, cubes, level);
    const DualLattice lattice = open_mark(values, surface, workspace).lattice;
    FlexiCubes<T> task{};
    task.values = surface.values;
    task.positions = data_or_null<T>(positions);
    task.corners = lattice.corners;
    task.level = surface.level;
    task.cubes = crossed;
    const FlexiCubesMesh<T> places{vertices.data<T>(), nullptr, nullptr, nullptr};
    run(values,
        FASTSHAPE_CPU(cpu::dual_surface_fill(lattice, kOrder, crossed, totals, mesh);
                      cpu::flexicubes(task, places)),
        FASTSHAPE_CUDA(cuda::dual_surface_fill(lattice, kOrder, crossed, count_space.data, totals,
                                               space.data, mesh, stream);
                       cuda::flexicubes(task, places, stream)));
  });
}

// ---- FlexiCubes' weights -----------------------------------------------------------------------

void flexicubes_weights(const Tensor& raw, const Tensor& rows, bool sigmoid,
                        const Tensor& weights) {
  require(raw, "raw", kFloats, {-1, -1}, "(N, 1), (N, 8) or (N, 12)");
  const int64_t width = raw.size(1);
  FASTSHAPE_CHECK_VALUE(width == 1 || width == 8 || width == 12,
                        "`raw` must have shape (N, 1), (N, 8) or (N, 12), got ", raw.shape_text());
  require(rows, "rows", {DType::int64}, {-1}, "(S,)");
  require_same_device(raw, "raw", rows, "rows");
  require_output(raw, "raw", weights, "weights", {rows.size(0), width}, "(S, width)");
  with_dtype(raw, [&](auto zero) {
    using T = decltype(zero);
    const FlexiCubesWeights<T> task{raw.data<T>(), rows.data<int64_t>(), rows.size(0), width,
                                    sigmoid,       weights.data<T>()};
    run(raw, FASTSHAPE_CPU(cpu::flexicubes_weights(task)),
        FASTSHAPE_CUDA(cuda::flexicubes_weights(task, stream)));
  });
}

// ---- FlexiCubes --------------------------------------------------------------------------------

// What forward and backward are both given.
struct FlexiCubesArguments {
  Tensor values;
  OptionalTensor cubes, positions, features, alpha, beta, gamma;
  Tensor lowest, rows, cases, first_vertex, first_pair, vertex_cubes, pair_edges, quads, quad_kinds;
  double level;
  bool centers;

  int64_t num_crossed() const { return lowest.size(0); }
  int64_t num_features() const { return features ? features->size(1) : 0; }
  int64_t num_rows() const { return vertex_cubes.size(0) + (centers ? quads.size(0) : 0); }
  int64_t num_faces() const { return (centers ? 4 : 2) * quads.size(0); }

  void require_float(const OptionalTensor& tensor, const char* name,
                     std::initializer_list<int64_t> shape, const char* shape_name) const {
    if (tensor) require_output(values, "values", *tensor, name, shape, shape_name);
  }

  void require_all() const {
    require_field(values, cubes);
    require_float(positions, "positions", {values.numel(), 3}, "(P, 3)");
    FASTSHAPE_CHECK_VALUE(positions || !cubes, "`positions` must be given beside `cubes`");
    require_float(features, "features", {values.numel(), -1}, "(P, F)");
    require_cubes(values, lowest, rows, cases, first_vertex, first_pair);
    require_float(alpha, "alpha", {num_crossed(), 8}, "(S, 8)");
    require_float(beta, "beta", {num_crossed(), 12}, "(S, 12)");
    require_float(gamma, "gamma", {num_crossed(), 1}, "(S, 1)");
    require_beside(values, vertex_cubes, "vertex_cubes", DType::int64, {-1}, "(V,)");
    require_beside(values, pair_edges, "pair_edges", DType::uint8, {-1}, "(E,)");
    require_beside(values, quads, "quads", DType::int64, {-1, 4}, "(Q, 4)");
    require_beside(values, quad_kinds, "quad_kinds", DType::uint8, {quads.size(0)}, "(Q,)");
  }

  // Of what has a row for each vertex.
  void require_rows(const Tensor& tensor, const char* name, int64_t width) const {
    require_output(values, "values", tensor, name, {num_rows(), width}, "(V, 3) or (V, F)");
  }

  template <class T>
  FlexiCubes<T> task() const {
    FlexiCubes<T> t{};
    t.values = values.data<T>();
    t.positions = data_or_null<T>(positions);
    t.features = data_or_null<T>(features);
    t.num_features = num_features();
    t.corners = {data_or_null<int64_t>(cubes), cubes ? 0 : values.size(1),
                 cubes ? 0 : values.size(2)};
    t.level = static_cast<T>(level);
    t.alpha = data_or_null<T>(alpha);
    t.beta = data_or_null<T>(beta);
    t.gamma = data_or_null<T>(gamma);
    t.cubes = require_cubes(values, lowest, rows, cases, first_vertex, first_pair);
    t.vertex_cubes = vertex_cubes.data<int64_t>();
    t.quads = quads.data<int64_t>();
    t.quad_kinds = quad_kinds.data<uint8_t>();
    t.num_vertices = vertex_cubes.size(0);
    t.num_quads = quads.size(0);
    t.centers = centers;
    return t;
  }
};

#define FASTSHAPE_FLEXICUBES_PARAMETERS                                                           \
  const Tensor &values, const OptionalTensor &cubes, const OptionalTensor &positions,             \
      const OptionalTensor &features, const OptionalTensor &alpha, const OptionalTensor &beta,    \
      const OptionalTensor &gamma, const Tensor &lowest, const Tensor &rows, const Tensor &cases, \
      const Tensor &first_vertex, const Tensor &first_pair, const Tensor &vertex_cubes,           \
      const Tensor &pair_edges, const Tensor &quads, const Tensor &quad_kinds, double level,      \
      bool centers
#define FASTSHAPE_FLEXICUBES_ARGUMENTS                                                          \
  {values, cubes,        positions,  features,     alpha,      beta,  gamma,      lowest, rows, \
   cases,  first_vertex, first_pair, vertex_cubes, pair_edges, quads, quad_kinds, level,  centers}
#define FASTSHAPE_FLEXICUBES_NAMES                                                               \
  py::arg("values"), py::arg("cubes"), py::arg("positions"), py::arg("features"),                \
      py::arg("alpha"), py::arg("beta"), py::arg("gamma"), py::arg("lowest"), py::arg("rows"),   \
      py::arg("cases"), py::arg("first_vertex"), py::arg("first_pair"), py::arg("vertex_cubes"), \
      py::arg("pair_edges"), py::arg("quads"), py::arg("quad_kinds"), py::arg("level"),          \
      py::arg("centers")

void flexicubes(FASTSHAPE_FLEXICUBES_PARAMETERS, const Tensor& vertices,
                const OptionalTensor& out_features, const Tensor& deviation, const Tensor& faces) {
  const FlexiCubesArguments arguments FASTSHAPE_FLEXICUBES_ARGUMENTS;
  arguments.require_all();
  arguments.require_rows(vertices, "vertices", 3);
  if (out_features) arguments.require_rows(*out_features, "out_features", arguments.num_features());
  require_output(values, "values", deviation, "deviation", {pair_edges.size(0)}, "(E,)");
  require_beside(values, faces, "faces", DType::int64, {arguments.num_faces(), 3}, "(F, 3)");
  with_dtype(values, [&](auto zero) {
    using T = decltype(zero);
    const FlexiCubes<T> task = arguments.task<T>();
    const FlexiCubesMesh<T> mesh{vertices.data<T>(), data_or_null<T>(out_features),
                                 deviation.data<T>(), faces.data<int64_t>()};
    run(values, FASTSHAPE_CPU(cpu::flexicubes(task, mesh)),
        FASTSHAPE_CUDA(cuda::flexicubes(task, mesh, stream)));
  });
}

size_t flexicubes_backward_workspace_bytes(int64_t num_crossed, int64_t num_points,
                                           int64_t num_features, bool positions, bool centers,
                                           bool list, bool wide, bool cuda_device) {
  const auto bytes = [&](auto zero) {
    using T = decltype(zero);
    static T there;
    static constexpr int64_t kList = 0;
    FlexiCubesBackward<T> b{};
    b.task.corners.cubes = list ? &kList : nullptr;
    b.task.cubes.num = num_crossed;
    b.task.num_features = num_features;
    b.task.centers = centers;
    b.num_points = num_points;
    b.grad_positions = positions ? &there : nullptr;
    return bytes_on(cuda_device, FASTSHAPE_CPU_BYTES(flexicubes_backward_workspace_bytes(b)),
                    FASTSHAPE_CUDA_BYTES(flexicubes_backward_workspace_bytes(b)));
  };
  return wide ? bytes(double()) : bytes(float());
}

void flexicubes_backward(FASTSHAPE_FLEXICUBES_PARAMETERS, const Tensor& vertices,
                         const OptionalTensor& out_features, const Tensor& grad_vertices,
                         const OptionalTensor& grad_features, const Tensor& grad_deviation,
                         bool activated, const Tensor& workspace, const Tensor& grad_values,
                         const OptionalTensor& grad_positions,
                         const OptionalTensor& grad_corner_features,
                         const OptionalTensor& grad_alpha, const OptionalTensor& grad_beta,
                         const OptionalTensor& grad_gamma) {
  const FlexiCubesArguments arguments FASTSHAPE_FLEXICUBES_ARGUMENTS;
  arguments.require_all();
  const int64_t num = arguments.num_crossed(), width = arguments.num_features();
  const int64_t num_points = values.numel();
  int64_t num_cubes = -1;
  for (const OptionalTensor* grad : {&grad_alpha, &grad_beta, &grad_gamma})
    if (*grad && num_cubes < 0) num_cubes = (*grad)->size(0);
  arguments.require_rows(vertices, "vertices", 3);
  arguments.require_rows(grad_vertices, "grad_vertices", 3);
  if (features) {
    FASTSHAPE_CHECK_VALUE(out_features && grad_features && grad_corner_features,
                          "`features` need their outputs and gradients");
    arguments.require_rows(*out_features, "out_features", width);
    arguments.require_rows(*grad_features, "grad_features", width);
  }
  require_output(values, "values", grad_deviation, "grad_deviation", {pair_edges.size(0)}, "(E,)");
  require_like(values, "values", grad_values, "grad_values");
  FASTSHAPE_CHECK_VALUE(grad_values.numel() == num_points, "`grad_values` must be like `values`");
  arguments.require_float(grad_positions, "grad_positions", {num_points, 3}, "(P, 3)");
  arguments.require_float(grad_corner_features, "grad_corner_features", {num_points, width},
                          "(P, F)");
  arguments.require_float(grad_alpha, "grad_alpha", {num_cubes, 8}, "(N, 8)");
  arguments.require_float(grad_beta, "grad_beta", {num_cubes, 12}, "(N, 12)");
  arguments.require_float(grad_gamma, "grad_gamma", {num_cubes, 1}, "(N, 1)");
  FASTSHAPE_CHECK_VALUE(bool(grad_alpha) == bool(alpha) && bool(grad_beta) == bool(beta) &&
                            bool(grad_gamma) == bool(gamma),
                        "weights need their gradients");
  const Workspace space = open_workspace(values, "values", workspace);
  require_workspace(
      space, flexicubes_backward_workspace_bytes(
                 num, num_points, width, grad_positions.has_value(), centers, cubes.has_value(),
                 values.dtype() == DType::float64, values.device() == Device::cuda));
  with_dtype(values, [&](auto zero) {
    using T = decltype(zero);
    grad_values.require("grad_values");
    const FlexiCubesBackward<T> task{arguments.task<T>(),
                                     vertices.data<T>(),
                                     data_or_null<T>(out_features),
                                     grad_vertices.data<T>(),
                                     data_or_null<T>(grad_features),
                                     grad_deviation.data<T>(),
                                     num_points,
                                     grad_values.data<T>(),
                                     data_or_null<T>(grad_positions),
                                     data_or_null<T>(grad_corner_features),
                                     activated,
                                     data_or_null<T>(grad_alpha),
                                     data_or_null<T>(grad_beta),
                                     data_or_null<T>(grad_gamma)};
    run(values, FASTSHAPE_CPU(cpu::flexicubes_backward(task, space.data)),
        FASTSHAPE_CUDA(cuda::flexicubes_backward(task, space.data, stream)));
  });
}

// ---- Sharp vertices ----------------------------------------------------------------------------

void sharp_vertices(const Tensor& points, const Tensor& normals, const Tensor& crossing,
                    const Tensor& first, const Tensor& lower, const Tensor& upper,
                    double regularization, const Tensor& vertices) {
  require(points, "points", kFloats, {-1, 3}, "(M, 3)");
  require_output(points, "points", normals, "normals", {points.size(0), 3}, "(M, 3)");
  require(crossing, "crossing", {DType::int64}, {-1}, "(E,)");
  require_same_device(points, "points", crossing, "crossing");
  require_output(points, "points", vertices, "vertices", {-1, 3}, "(V, 3)");
  const int64_t num = vertices.size(0);
  require(first, "first", {DType::int64}, {num + 1}, "(V + 1,)");
  require_same_device(points, "points", first, "first");
  require_output(points, "points", lower, "lower", {num, 3}, "(V, 3)");
  require_output(points, "points", upper, "upper", {num, 3}, "(V, 3)");
  FASTSHAPE_CHECK_VALUE(regularization > 0, "`regularization` must be positive, got ",
                        regularization);
  with_dtype(points, [&](auto zero) {
    using T = decltype(zero);
    const SharpVertices<T> task{points.data<T>(),
                                normals.data<T>(),
                                crossing.data<int64_t>(),
                                first.data<int64_t>(),
                                lower.data<T>(),
                                upper.data<T>(),
                                num,
                                static_cast<T>(regularization),
                                vertices.data<T>()};
    run(points, FASTSHAPE_CPU(cpu::sharp_vertices(task)),
        FASTSHAPE_CUDA(cuda::sharp_vertices(task, stream)));
  });
}

}  // namespace

void bind_dual_surface(py::module_& m) {
  m.def("dual_surface_workspace_bytes", &dual_surface_workspace_bytes, py::arg("num_points"),
        py::arg("size_x"), py::arg("size_y"), py::arg("size_z"), py::arg("list"), py::arg("cuda"));
  m.def("dual_surface_mark", &dual_surface_mark, py::arg("values"), py::arg("cubes"),
        py::arg("level"), py::arg("workspace"), py::arg("found"));
  m.def("dual_surface_count_workspace_bytes", &dual_surface_count_workspace_bytes,
        py::arg("num_crossed"), py::arg("cuda"));
  m.def("dual_surface_count", &dual_surface_count, py::arg("values"), py::arg("cubes"),
        py::arg("manifold"), py::arg("workspace"), py::arg("count_workspace"), py::arg("lowest"),
        py::arg("rows"), py::arg("cases"), py::arg("first_vertex"), py::arg("first_pair"),
        py::arg("totals"));
  m.def("dual_surface_fill_workspace_bytes", &dual_surface_fill_workspace_bytes,
        py::arg("num_quads"), py::arg("cuda"));
  m.def("dual_surface_fill", &dual_surface_fill, py::arg("values"), py::arg("cubes"),
        py::arg("face_order"), py::arg("workspace"), py::arg("count_workspace"),
        py::arg("fill_workspace"), py::arg("lowest"), py::arg("rows"), py::arg("cases"),
        py::arg("first_vertex"), py::arg("first_pair"), py::arg("vertex_cubes"),
        py::arg("pair_edges"), py::arg("quads"), py::arg("quad_kinds"));
  m.def("dual_mesh_fill", &dual_mesh_fill, py::arg("values"), py::arg("cubes"),
        py::arg("positions"), py::arg("level"), py::arg("workspace"), py::arg("count_workspace"),
        py::arg("fill_workspace"), py::arg("lowest"), py::arg("rows"), py::arg("cases"),
        py::arg("first_vertex"), py::arg("vertices"), py::arg("faces"));
  m.def("sharp_vertices", &sharp_vertices, py::arg("points"), py::arg("normals"),
        py::arg("crossing"), py::arg("first"), py::arg("lower"), py::arg("upper"),
        py::arg("regularization"), py::arg("vertices"));
  m.def("flexicubes_weights", &flexicubes_weights, py::arg("raw"), py::arg("rows"),
        py::arg("sigmoid"), py::arg("weights"));
  m.def("flexicubes", &flexicubes, FASTSHAPE_FLEXICUBES_NAMES, py::arg("vertices"),
        py::arg("out_features"), py::arg("deviation"), py::arg("faces"));
  m.def("flexicubes_backward_workspace_bytes", &flexicubes_backward_workspace_bytes,
        py::arg("num_crossed"), py::arg("num_points"), py::arg("num_features"),
        py::arg("positions"), py::arg("centers"), py::arg("list"), py::arg("wide"),
        py::arg("cuda"));
  m.def("flexicubes_backward", &flexicubes_backward, FASTSHAPE_FLEXICUBES_NAMES,
        py::arg("vertices"), py::arg("out_features"), py::arg("grad_vertices"),
        py::arg("grad_features"), py::arg("grad_deviation"), py::arg("activated"),
        py::arg("workspace"), py::arg("grad_values"), py::arg("grad_positions"),
        py::arg("grad_corner_features"), py::arg("grad_alpha"), py::arg("grad_beta"),
        py::arg("grad_gamma"));
}

}  // namespace fastshape
