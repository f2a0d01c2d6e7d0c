#include <pybind11/pybind11.h>

#include "bindings/arguments.h"
#include "bindings/run.h"
#include "bindings/tensor.h"
#include "core/equal_rows.h"
#include "geometry/build_bvh.h"
#include "geometry/bvh_moments.h"
#include "geometry/cast_rays.h"
#include "geometry/closest_point.h"
#include "geometry/closest_point_backward.h"
#include "geometry/ray_parity.h"
#include "geometry/voxelize_mesh.h"
#include "geometry/winding_number.h"

namespace py = pybind11;

namespace fastshape {
namespace {

void require_mesh(const Tensor& vertices, const Tensor& faces) {
  require(vertices, "vertices", kFloats, {-1, 3}, "(V, 3)");
  require(faces, "faces", {DType::int64}, {-1, 3}, "(F, 3)");
  require_same_device(vertices, "vertices", faces, "faces");
}

void require_hierarchy(const Tensor& first, const char* name, const Tensor& boxes,
                       const Tensor& first_child, const Tensor& triangles,
                       const Tensor& face_index) {
  require_dtype(first, name, kFloats);
  require_like(first, name, boxes, "bvh.boxes");
  require_output(first, name, triangles, "bvh.triangles", {-1, 9, 8}, "(num_blocks, 9, 8)");
  const int64_t num_blocks = triangles.size(0);
  FASTSHAPE_CHECK_VALUE(num_blocks > 0, "`bvh` must hold at least one face");
  const int64_t num_nodes = bvh_levels(num_blocks * kBvhWidth).num_nodes;
  require_shape(boxes, "bvh.boxes", {num_nodes, 6, 8}, "(num_nodes, 6, 8)");
  require(first_child, "bvh.first_child", {DType::int32}, {num_nodes}, "(num_nodes,)");
  require(face_index, "bvh.face_index", {DType::int32}, {num_blocks, 8}, "(num_blocks, 8)");
  require_same_device(first, name, first_child, "bvh.first_child");
  require_same_device(first, name, face_index, "bvh.face_index");
}

void require_bvh(const Tensor& points, const char* name, const Tensor& boxes,
                 const Tensor& first_child, const Tensor& triangles, const Tensor& face_index) {
  require(points, name, kFloats, {-1, 3}, "(Q, 3)");
  FASTSHAPE_CHECK_VALUE(points.size(0) < int64_t{1} << 32, "`", name,
                        "` must have fewer than 2^32 rows, got ", points.size(0));
  require_hierarchy(points, name, boxes, first_child, triangles, face_index);
}

template <class T>
BvhView<T> view_bvh(const Tensor& boxes, const Tensor& first_child, const Tensor& triangles,
                    const Tensor& face_index) {
  return {boxes.data<T>(),     first_child.data<int32_t>(),
          triangles.data<T>(), face_index.data<int32_t>(),
          boxes.size(0),       triangles.size(0)};
}

// Host code that reading files needs; it runs in the emulated build as it does here.
void require_host(const Tensor& tensor, const char* name) {
  FASTSHAPE_CHECK_VALUE(tensor.device() == Device::cpu, "`", name, "` must be on the CPU, got ",
                        tensor.device_text());
}

void first_equal_rows(const Tensor& rows, const Tensor& first) {
  require(rows, "rows", {DType::int32}, {-1, -1}, "(N, C)");
  require(first, "first", {DType::int64}, {rows.size(0)}, "(N,)");
  require_host(rows, "rows");
  require_host(first, "first");
  FASTSHAPE_CHECK_VALUE(rows.size(0) < (int64_t{1} << 32) - 1,
                        "`rows` must have fewer than 2^32 - 1 rows, got ", rows.size(0));
  FASTSHAPE_CHECK_VALUE(rows.size(1) >= 1 && rows.size(1) <= 64,
                        "`rows` must have 1 to 64 columns, got ", rows.size(1));
  GilRelease release;
  cpu::first_equal_rows(rows.data<uint32_t>(), rows.size(0), static_cast<int>(rows.size(1)),
                        first.data<int64_t>());
}

py::tuple count_edges(const Tensor& faces, int64_t num_vertices) {
  require(faces, "faces", {DType::int32}, {-1, 3}, "(F, 3)");
  require_host(faces, "faces");
  FASTSHAPE_CHECK_VALUE(num_vertices >= 0 && num_vertices <= int64_t{1} << 31,
                        "`num_vertices` must lie in 0 to 2^31, got ", num_vertices);
  cpu::EdgeCounts counts;
  {
    GilRelease release;
    const int32_t* corner = faces.data<int32_t>();
    for (int64_t i = 0; i < faces.numel(); ++i)
      FASTSHAPE_CHECK_VALUE(corner[i] >= 0 && corner[i] < num_vertices, "`faces` has the vertex ",
                            corner[i], ", expected 0 to ", num_vertices - 1);
    counts = cpu::count_edges(corner, faces.size(0), num_vertices);
  }
  return py::make_tuple(counts.open, counts.crowded, counts.contrary);
}

void build_bvh(const Tensor& vertices, const Tensor& faces, bool hilbert_order,
               const std::optional<Tensor>& workspace, const Tensor& boxes,
               const Tensor& first_child, const Tensor& triangles, const Tensor& face_index) {
  require_mesh(vertices, faces);
  FASTSHAPE_CHECK_VALUE(faces.size(0) > 0, "`faces` must hold at least one face, got shape ",
                        faces.shape_text());
  FASTSHAPE_CHECK_VALUE(faces.size(0) < int64_t{1} << 31,
                        "`faces` must hold at most 2^31 - 1 faces, got ", faces.size(0));
  require_bvh(vertices, "vertices", boxes, first_child, triangles, face_index);
  FASTSHAPE_CHECK_VALUE(triangles.size(0) == bvh_levels(faces.size(0)).num_blocks,
                        "`bvh.triangles` has the wrong number of blocks");
  [[maybe_unused]] const Workspace space = open_workspace(vertices, "vertices", workspace);
  with_dtype(vertices, [&](auto zero) {
    using T = decltype(zero);
    const BuildBvh<T> task{vertices.data<T>(),
                           faces.data<int64_t>(),
                           vertices.size(0),
                           faces.size(0),
                           {boxes.data<T>(), first_child.data<int32_t>(), triangles.data<T>(),
                            face_index.data<int32_t>()},
                           hilbert_order};
    run(vertices, FASTSHAPE_CPU(cpu::build_bvh(task)),
        FASTSHAPE_CUDA(cuda::build_bvh(task, space.data, space.bytes, stream)));
  });
}

void closest_point(const Tensor& points, const Tensor& boxes, const Tensor& first_child,
                   const Tensor& triangles, const Tensor& face_index,
                   const std::optional<Tensor>& workspace, const Tensor& distance,
                   const Tensor& face, const Tensor& barycentric, const Tensor& point) {
  require_bvh(points, "points", boxes, first_child, triangles, face_index);
  const int64_t n = points.size(0);
  require_output(points, "points", distance, "distance", {n}, "(Q,)");
  require(face, "face", {DType::int64}, {n}, "(Q,)");
  require_output(points, "points", barycentric, "barycentric", {n, 3}, "(Q, 3)");
  require_output(points, "points", point, "point", {n, 3}, "(Q, 3)");
  [[maybe_unused]] const Workspace space = open_workspace(points, "points", workspace);
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
        FASTSHAPE_CUDA(cuda::closest_point(task, space.data, space.bytes, stream)));
  });
}

void closest_point_backward(const Tensor& grad_distance, const Tensor& points,
                            const Tensor& vertices, const Tensor& faces, const Tensor& face,
                            const Tensor& barycentric, const std::optional<Tensor>& workspace,
                            const Tensor& grad_points, const Tensor& grad_vertices) {
  require_mesh(vertices, faces);
  require(points, "points", kFloats, {-1, 3}, "(Q, 3)");
  require_like(vertices, "vertices", points, "points");
  const int64_t n = points.size(0);
  FASTSHAPE_CHECK_VALUE(n < (int64_t{1} << 32) / 3,
                        "`points` must have fewer than 2^32 / 3 rows, got ", n);
  require_output(points, "points", grad_distance, "grad_distance", {n}, "(Q,)");
  require(face, "face", {DType::int64}, {n}, "(Q,)");
  require_same_device(points, "points", face, "face");
  require_output(points, "points", barycentric, "barycentric", {n, 3}, "(Q, 3)");
  require_output(points, "points", grad_points, "grad_points", {n, 3}, "(Q, 3)");
  require_output(points, "points", grad_vertices, "grad_vertices", {vertices.size(0), 3}, "(V, 3)");
  [[maybe_unused]] const Workspace space = open_workspace(points, "points", workspace);
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
        FASTSHAPE_CUDA(cuda::closest_point_backward(task, space.data, space.bytes, stream)));
  });
}

void bvh_moments(const Tensor& boxes, const Tensor& first_child, const Tensor& triangles,
                 const Tensor& face_index, const Tensor& moments) {
  require_hierarchy(boxes, "bvh.boxes", boxes, first_child, triangles, face_index);
  require_output(boxes, "bvh.boxes", moments, "moments", {boxes.size(0), kMomentRows, 8},
                 "(num_nodes, 20, 8)");
  with_dtype(boxes, [&](auto zero) {
    using T = decltype(zero);
    const BvhMoments<T> task{view_bvh<T>(boxes, first_child, triangles, face_index),
                             moments.data<T>()};
    run(boxes, FASTSHAPE_CPU(cpu::bvh_moments(task)),
        FASTSHAPE_CUDA(cuda::bvh_moments(task, stream)));
  });
}

void winding_number(const Tensor& points, const Tensor& boxes, const Tensor& first_child,
                    const Tensor& triangles, const Tensor& face_index, const Tensor& moments,
                    double beta, const std::optional<Tensor>& workspace, const Tensor& winding) {
  require_bvh(points, "points", boxes, first_child, triangles, face_index);
  const int64_t n = points.size(0);
  require_output(points, "points", moments, "moments", {boxes.size(0), kMomentRows, 8},
                 "(num_nodes, 20, 8)");
  FASTSHAPE_CHECK_VALUE(beta >= 1.0, "`beta` must be at least 1, got ", beta);
  require_output(points, "points", winding, "winding", {n}, "(Q,)");
  [[maybe_unused]] const Workspace space = open_workspace(points, "points", workspace);
  with_dtype(points, [&](auto zero) {
    using T = decltype(zero);
    const WindingNumber<T> task{view_bvh<T>(boxes, first_child, triangles, face_index),
                                moments.data<T>(),
                                points.data<T>(),
                                n,
                                static_cast<T>(beta * beta),
                                winding.data<T>()};
    run(points, FASTSHAPE_CPU(cpu::winding_number(task)),
        FASTSHAPE_CUDA(cuda::winding_number(task, space.data, space.bytes, stream)));
  });
}

void cast_rays(const Tensor& origins, const Tensor& directions, const Tensor& boxes,
               const Tensor& first_child, const Tensor& triangles, const Tensor& face_index,
               const std::optional<Tensor>& workspace, const Tensor& t, const Tensor& face,
               const Tensor& barycentric) {
  require_bvh(origins, "origins", boxes, first_child, triangles, face_index);
  const int64_t n = origins.size(0);
  require_output(origins, "origins", directions, "directions", {n, 3}, "(Q, 3)");
  require_output(origins, "origins", t, "t", {n}, "(Q,)");
  require(face, "face", {DType::int64}, {n}, "(Q,)");
  require_output(origins, "origins", barycentric, "barycentric", {n, 3}, "(Q, 3)");
  [[maybe_unused]] const Workspace space = open_workspace(origins, "origins", workspace);
  with_dtype(origins, [&](auto zero) {
    using T = decltype(zero);
    const CastRays<T> task{view_bvh<T>(boxes, first_child, triangles, face_index),
                           origins.data<T>(),
                           directions.data<T>(),
                           n,
                           t.data<T>(),
                           face.data<int64_t>(),
                           barycentric.data<T>()};
    run(origins, FASTSHAPE_CPU(cpu::cast_rays(task)),
        FASTSHAPE_CUDA(cuda::cast_rays(task, space.data, space.bytes, stream)));
  });
}

void ray_parity(const Tensor& points, const Tensor& directions, const Tensor& boxes,
                const Tensor& first_child, const Tensor& triangles, const Tensor& face_index,
                const std::optional<Tensor>& workspace, const Tensor& votes, bool crossings) {
  require_bvh(points, "points", boxes, first_child, triangles, face_index);
  require_output(points, "points", directions, "directions", {-1, 3}, "(R, 3)");
  FASTSHAPE_CHECK_VALUE(!crossings || directions.size(0) > 0, "`directions` must not be empty");
  require(votes, "votes", {DType::int32}, {points.size(0)}, "(Q,)");
  [[maybe_unused]] const Workspace space = open_workspace(points, "points", workspace);
  with_dtype(points, [&](auto zero) {
    using T = decltype(zero);
    const RayParity<T> task{view_bvh<T>(boxes, first_child, triangles, face_index),
                            points.data<T>(),
                            directions.data<T>(),
                            points.size(0),
                            directions.size(0),
                            votes.data<int32_t>(),
                            crossings};
    run(points, FASTSHAPE_CPU(cpu::ray_parity(task)),
        FASTSHAPE_CUDA(cuda::ray_parity(task, space.data, space.bytes, stream)));
  });
}

template <class T>
VoxelizeMesh<T> voxelize_task(const Tensor& vertices, const Tensor& faces, int64_t resolution,
                              double low, double high) {
  return {vertices.data<T>(),
          faces.data<int64_t>(),
          vertices.size(0),
          faces.size(0),
          resolution,
          low,
          static_cast<double>(resolution) / (high - low)};
}

void require_voxelize(const Tensor& vertices, const Tensor& faces, int64_t resolution, double low,
                      double high) {
  require_mesh(vertices, faces);
  FASTSHAPE_CHECK_VALUE(faces.size(0) < int64_t{1} << 31,
                        "`faces` must hold at most 2^31 - 1 faces, got ", faces.size(0));
  FASTSHAPE_CHECK_VALUE(resolution >= 1 && resolution <= kMaxVoxelResolution,
                        "`resolution` must lie in [1, ", kMaxVoxelResolution, "], got ",
                        resolution);
  FASTSHAPE_CHECK_VALUE(is_finite(low) && is_finite(high) && low < high,
                        "`box` must be two finite numbers, the smaller first, got (", low, ", ",
                        high, ")");
}

void voxelize_mesh_count(const Tensor& vertices, const Tensor& faces, int64_t resolution,
                         double low, double high, const Tensor& counts) {
  require_voxelize(vertices, faces, resolution, low, high);
  require(counts, "counts", {DType::int64}, {faces.size(0)}, "(F,)");
  require_same_device(vertices, "vertices", counts, "counts");
  with_dtype(vertices, [&](auto zero) {
    using T = decltype(zero);
    const VoxelizeMesh<T> task = voxelize_task<T>(vertices, faces, resolution, low, high);
    int64_t* const out = counts.data<int64_t>();
    run(vertices, FASTSHAPE_CPU(cpu::voxelize_mesh_count(task, out)),
        FASTSHAPE_CUDA(cuda::voxelize_mesh_count(task, out, stream)));
  });
}

void voxelize_mesh_fill(const Tensor& vertices, const Tensor& faces, int64_t resolution, double low,
                        double high, const Tensor& offsets, const Tensor& keys) {
  require_voxelize(vertices, faces, resolution, low, high);
  require(offsets, "offsets", {DType::int64}, {faces.size(0)}, "(F,)");
  require(keys, "keys", {DType::int64}, {-1}, "(K,)");
  require_same_device(vertices, "vertices", offsets, "offsets");
  require_same_device(vertices, "vertices", keys, "keys");
  with_dtype(vertices, [&](auto zero) {
    using T = decltype(zero);
    const VoxelizeMesh<T> task = voxelize_task<T>(vertices, faces, resolution, low, high);
    const int64_t* const first = offsets.data<int64_t>();
    int64_t* const out = keys.data<int64_t>();
    const int64_t count = keys.size(0);
    run(vertices, FASTSHAPE_CPU(cpu::voxelize_mesh_fill(task, first, count, out)),
        FASTSHAPE_CUDA(cuda::voxelize_mesh_fill(task, first, count, out, stream)));
  });
}

}  // namespace

void bind_geometry(py::module_& m) {
  m.def("first_equal_rows", &first_equal_rows, py::arg("rows"), py::arg("first"));
  m.def("count_edges", &count_edges, py::arg("faces"), py::arg("num_vertices"));
  m.def("build_bvh", &build_bvh, py::arg("vertices"), py::arg("faces"), py::arg("hilbert_order"),
        py::arg("workspace"), py::arg("boxes"), py::arg("first_child"), py::arg("triangles"),
        py::arg("face_index"));
  m.def("closest_point", &closest_point, py::arg("points"), py::arg("boxes"),
        py::arg("first_child"), py::arg("triangles"), py::arg("face_index"), py::arg("workspace"),
        py::arg("distance"), py::arg("face"), py::arg("barycentric"), py::arg("point"));
  m.def("closest_point_backward", &closest_point_backward, py::arg("grad_distance"),
        py::arg("points"), py::arg("vertices"), py::arg("faces"), py::arg("face"),
        py::arg("barycentric"), py::arg("workspace"), py::arg("grad_points"),
        py::arg("grad_vertices"));
  m.def("bvh_moments", &bvh_moments, py::arg("boxes"), py::arg("first_child"), py::arg("triangles"),
        py::arg("face_index"), py::arg("moments"));
  m.def("winding_number", &winding_number, py::arg("points"), py::arg("boxes"),
        py::arg("first_child"), py::arg("triangles"), py::arg("face_index"), py::arg("moments"),
        py::arg("beta"), py::arg("workspace"), py::arg("winding"));
  m.def("cast_rays", &cast_rays, py::arg("origins"), py::arg("directions"), py::arg("boxes"),
        py::arg("first_child"), py::arg("triangles"), py::arg("face_index"), py::arg("workspace"),
        py::arg("t"), py::arg("face"), py::arg("barycentric"));
  m.def("ray_parity", &ray_parity, py::arg("points"), py::arg("directions"), py::arg("boxes"),
        py::arg("first_child"), py::arg("triangles"), py::arg("face_index"), py::arg("workspace"),
        py::arg("votes"), py::arg("crossings"));
  m.def("build_bvh_workspace_bytes", FASTSHAPE_WORKSPACE(build_bvh), py::arg("num_faces"));
  m.def("closest_point_workspace_bytes", FASTSHAPE_WORKSPACE(closest_point), py::arg("num_points"));
  m.def("closest_point_backward_workspace_bytes", FASTSHAPE_WORKSPACE(closest_point_backward),
        py::arg("num_points"));
  m.def("winding_number_workspace_bytes", FASTSHAPE_WORKSPACE(winding_number),
        py::arg("num_points"));
  m.def("cast_rays_workspace_bytes", FASTSHAPE_WORKSPACE(cast_rays), py::arg("num_rays"));
  m.def("ray_parity_workspace_bytes", FASTSHAPE_WORKSPACE(ray_parity), py::arg("num_points"));
  m.def("voxelize_mesh_count", &voxelize_mesh_count, py::arg("vertices"), py::arg("faces"),
        py::arg("resolution"), py::arg("low"), py::arg("high"), py::arg("counts"));
  m.def("voxelize_mesh_fill", &voxelize_mesh_fill, py::arg("vertices"), py::arg("faces"),
        py::arg("resolution"), py::arg("low"), py::arg("high"), py::arg("offsets"),
        py::arg("keys"));
}

}  // namespace fastshape
