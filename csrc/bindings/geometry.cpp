#include <pybind11/pybind11.h>

#include "bindings/run.h"
#include "bindings/tensor.h"
#include "geometry/build_bvh.h"
#include "geometry/closest_point.h"
#include "geometry/closest_point_backward.h"

namespace py = pybind11;

namespace fastshape {
namespace {

const std::initializer_list<DType> kFloats = {DType::float32, DType::float64};

void require_like(const Tensor& first, const char* first_name, const Tensor& tensor,
                  const char* name) {
  require_dtype(tensor, name, kFloats);
  FASTSHAPE_CHECK_TYPE(tensor.dtype() == first.dtype(), "`", name, "` must be ",
                       dtype_name(first.dtype()), " as `", first_name, "`, got ",
                       dtype_name(tensor.dtype()));
  require_same_device(first, first_name, tensor, name);
}

// Calls f(float()) or f(double()).
template <class F>
void with_dtype(const Tensor& tensor, F&& f) {
  if (tensor.dtype() == DType::float32)
    f(float());
  else
    f(double());
}

void require_mesh(const Tensor& vertices, const Tensor& faces) {
  require(vertices, "vertices", kFloats, {-1, 3}, "(V, 3)");
  require(faces, "faces", {DType::int64}, {-1, 3}, "(F, 3)");
  require_same_device(vertices, "vertices", faces, "faces");
}

void require_bvh(const Tensor& points, const char* name, const Tensor& boxes,
                 const Tensor& first_child, const Tensor& triangles, const Tensor& face_index) {
  require(points, name, kFloats, {-1, 3}, "(Q, 3)");
  require_like(points, name, boxes, "bvh.boxes");
  require_like(points, name, triangles, "bvh.triangles");
  const int64_t num_blocks = triangles.dim() > 0 ? triangles.size(0) : 0;
  const int64_t num_nodes = bvh_levels(num_blocks * kBvhWidth).num_nodes;
  require_shape(triangles, "bvh.triangles", {-1, 9, 8}, "(num_blocks, 9, 8)");
  FASTSHAPE_CHECK_VALUE(num_blocks > 0, "`bvh` must hold at least one face");
  require_shape(boxes, "bvh.boxes", {num_nodes, 6, 8}, "(num_nodes, 6, 8)");
  require(first_child, "bvh.first_child", {DType::int32}, {num_nodes}, "(num_nodes,)");
  require(face_index, "bvh.face_index", {DType::int32}, {num_blocks, 8}, "(num_blocks, 8)");
  require_same_device(points, name, first_child, "bvh.first_child");
  require_same_device(points, name, face_index, "bvh.face_index");
}

template <class T>
BvhView<T> view_bvh(const Tensor& boxes, const Tensor& first_child, const Tensor& triangles,
                    const Tensor& face_index) {
  return {boxes.data<T>(),     first_child.data<int32_t>(),
          triangles.data<T>(), face_index.data<int32_t>(),
          boxes.size(0),       triangles.size(0)};
}

void build_bvh(const Tensor& vertices, const Tensor& faces, bool morton_order, const Tensor& boxes,
               const Tensor& first_child, const Tensor& triangles, const Tensor& face_index) {
  require_mesh(vertices, faces);
  FASTSHAPE_CHECK_VALUE(faces.size(0) > 0, "`faces` must hold at least one face, got shape ",
                        faces.shape_text());
  FASTSHAPE_CHECK_VALUE(faces.size(0) < int64_t{1} << 31,
                        "`faces` must hold at most 2^31 - 1 faces, got ", faces.size(0));
  require_bvh(vertices, "vertices", boxes, first_child, triangles, face_index);
  FASTSHAPE_CHECK_VALUE(triangles.size(0) == bvh_levels(faces.size(0)).num_blocks,
                        "`bvh.triangles` has the wrong number of blocks");
  with_dtype(vertices, [&](auto zero) {
    using T = decltype(zero);
    const BuildBvh<T> task{vertices.data<T>(),
                           faces.data<int64_t>(),
                           vertices.size(0),
                           faces.size(0),
                           {boxes.data<T>(), first_child.data<int32_t>(), triangles.data<T>(),
                            face_index.data<int32_t>()},
                           morton_order};
    run(vertices, FASTSHAPE_CPU(cpu::build_bvh(task)),
        FASTSHAPE_CUDA(FASTSHAPE_FAIL_NOT_IMPLEMENTED("build_bvh: no CUDA kernel yet")));
  });
}

void closest_point(const Tensor& points, const Tensor& boxes, const Tensor& first_child,
                   const Tensor& triangles, const Tensor& face_index, const Tensor& distance,
                   const Tensor& face, const Tensor& barycentric, const Tensor& point) {
  require_bvh(points, "points", boxes, first_child, triangles, face_index);
  const int64_t n = points.size(0);
  require_like(points, "points", distance, "distance");
  require_shape(distance, "distance", {n}, "(Q,)");
  require(face, "face", {DType::int64}, {n}, "(Q,)");
  require_like(points, "points", barycentric, "barycentric");
  require_shape(barycentric, "barycentric", {n, 3}, "(Q, 3)");
  require_like(points, "points", point, "point");
  require_shape(point, "point", {n, 3}, "(Q, 3)");
  with_dtype(points, [&](auto zero) {
    using T = decltype(zero);
    const ClosestPoint<T> task{view_bvh<T>(boxes, first_child, triangles, face_index),
                               points.data<T>(),
                               n,
                               distance.data<T>(),
                               face.data<int64_t>(),
                               barycentric.data<T>(),
                               point.data<T>()};
    run(points, FASTSHAPE_CPU(cpu::closest_point(task)),
        FASTSHAPE_CUDA(FASTSHAPE_FAIL_NOT_IMPLEMENTED("closest_point: no CUDA kernel yet")));
  });
}

void closest_point_backward(const Tensor& grad_distance, const Tensor& points,
                            const Tensor& vertices, const Tensor& faces, const Tensor& face,
                            const Tensor& barycentric, const Tensor& grad_points,
                            const Tensor& grad_vertices) {
  require_mesh(vertices, faces);
  require(points, "points", kFloats, {-1, 3}, "(Q, 3)");
  require_like(vertices, "vertices", points, "points");
  const int64_t n = points.size(0);
  require_like(points, "points", grad_distance, "grad_distance");
  require_shape(grad_distance, "grad_distance", {n}, "(Q,)");
  require(face, "face", {DType::int64}, {n}, "(Q,)");
  require_same_device(points, "points", face, "face");
  require_like(points, "points", barycentric, "barycentric");
  require_shape(barycentric, "barycentric", {n, 3}, "(Q, 3)");
  require_like(points, "points", grad_points, "grad_points");
  require_shape(grad_points, "grad_points", {n, 3}, "(Q, 3)");
  require_like(points, "points", grad_vertices, "grad_vertices");
  require_shape(grad_vertices, "grad_vertices", {vertices.size(0), 3}, "(V, 3)");
  with_dtype(points, [&](auto zero) {
    using T = decltype(zero);
    const ClosestPointBackward<T> task{grad_distance.data<T>(),
                                       points.data<T>(),
                                       vertices.data<T>(),
                                       faces.data<int64_t>(),
                                       face.data<int64_t>(),
                                       barycentric.data<T>(),
                                       n,
                                       vertices.size(0),
                                       grad_points.data<T>(),
                                       grad_vertices.data<T>()};
    run(points, FASTSHAPE_CPU(cpu::closest_point_backward(task)),
        FASTSHAPE_CUDA(
            FASTSHAPE_FAIL_NOT_IMPLEMENTED("closest_point_backward: no CUDA kernel yet")));
  });
}

}  // namespace

void bind_geometry(py::module_& m) {
  m.def("build_bvh", &build_bvh, py::arg("vertices"), py::arg("faces"), py::arg("morton_order"),
        py::arg("boxes"), py::arg("first_child"), py::arg("triangles"), py::arg("face_index"));
  m.def(
      "bvh_sizes",
      [](int64_t num_faces) {
        const BvhLevels levels = bvh_levels(num_faces);
        return py::make_tuple(levels.num_nodes, levels.num_blocks);
      },
      py::arg("num_faces"));
  m.def("closest_point", &closest_point, py::arg("points"), py::arg("boxes"),
        py::arg("first_child"), py::arg("triangles"), py::arg("face_index"), py::arg("distance"),
        py::arg("face"), py::arg("barycentric"), py::arg("point"));
  m.def("closest_point_backward", &closest_point_backward, py::arg("grad_distance"),
        py::arg("points"), py::arg("vertices"), py::arg("faces"), py::arg("face"),
        py::arg("barycentric"), py::arg("grad_points"), py::arg("grad_vertices"));
}

}  // namespace fastshape
