#include <pybind11/pybind11.h>

#include <limits>

#include "bindings/arguments.h"
#include "bindings/run.h"
#include "bindings/tensor.h"
#include "raster/antialias.h"
#include "raster/interpolate.h"
#include "raster/rasterize.h"
#include "raster/rasterize_backward.h"
#include "raster/vertex_sums.h"

namespace py = pybind11;

namespace fastshape {
namespace {

constexpr int64_t kMost32 = std::numeric_limits<uint32_t>::max();

void require_index(const Tensor& first, const char* first_name, const Tensor& tensor,
                   const char* name, std::initializer_list<int64_t> shape, const char* shape_name) {
  require(tensor, name, {DType::int64}, shape, shape_name);
  require_same_device(first, first_name, tensor, name);
}

void require_faces(const Tensor& first, const char* first_name, const Tensor& faces) {
  require_index(first, first_name, faces, "faces", {-1, 3}, "(F, 3)");
  FASTSHAPE_CHECK_VALUE(faces.size(0) < kMost32,
                        "`faces` must hold fewer than 2^32 - 1 faces, got ", faces.size(0));
}

// What the images show: one set of vertices for each, or one for all.
void require_sets(const char* name, int64_t sets, int64_t images) {
  FASTSHAPE_CHECK_VALUE(sets == 1 || sets == images, "`", name, "` must be of one set or of ",
                        images, ", one for each image, got ", sets);
}

void require_image(const Tensor& triangle_id) {
  for (int axis = 1; axis < 3; ++axis)
    FASTSHAPE_CHECK_VALUE(triangle_id.size(axis) > 0 && triangle_id.size(axis) <= kMaxImageSide,
                          "`size` must be two numbers between 1 and ", kMaxImageSide, ", got (",
                          triangle_id.size(1), ", ", triangle_id.size(2), ")");
}

struct ImageSize {
  int64_t images, height, width;
};

// Of (B, H, W) or (B, H, W, C).
ImageSize size_of(const Tensor& image) { return {image.size(0), image.size(1), image.size(2)}; }

// What a rasterization is of and the ids it found.
ImageSize require_scene(const Tensor& vertices, const Tensor& faces, const Tensor& triangle_id) {
  require(vertices, "vertices_clip", kFloats, {-1, -1, 4}, "(V, 4) or (B, V, 4)");
  require_faces(vertices, "vertices_clip", faces);
  require_index(vertices, "vertices_clip", triangle_id, "triangle_id", {-1, -1, -1}, "(B, H, W)");
  require_image(triangle_id);
  require_sets("vertices_clip", vertices.size(0), triangle_id.size(0));
  return size_of(triangle_id);
}

// One number, or so many, for each pixel.
void require_map(const Tensor& first, const char* first_name, const Tensor& map, const char* name,
                 const ImageSize& size) {
  require_output(first, first_name, map, name, {size.images, size.height, size.width}, "(B, H, W)");
}
void require_map(const Tensor& first, const char* first_name, const Tensor& map, const char* name,
                 const ImageSize& size, int64_t channels, const char* shape_name) {
  require_output(first, first_name, map, name, {size.images, size.height, size.width, channels},
                 shape_name);
}

void rasterize(const Tensor& vertices, const Tensor& faces,
               const std::optional<Tensor>& face_offsets, const std::optional<Tensor>& workspace,
               const Tensor& triangle_id, const Tensor& barycentrics, const Tensor& depth,
               const Tensor& w) {
  const ImageSize size = require_scene(vertices, faces, triangle_id);
  if (face_offsets)
    require_index(vertices, "vertices_clip", *face_offsets, "face_offsets", {size.images + 1},
                  "(B + 1,)");
  require_map(vertices, "vertices_clip", barycentrics, "barycentrics", size, 3, "(B, H, W, 3)");
  require_map(vertices, "vertices_clip", depth, "depth", size);
  require_map(vertices, "vertices_clip", w, "w", size);
  [[maybe_unused]] const Workspace space = open_workspace(vertices, "vertices_clip", workspace);
  with_dtype(vertices, [&](auto zero) {
    using T = decltype(zero);
    const Rasterize<T> task{vertices.data<T>(),
                            vertices.size(0),
                            vertices.size(1),
                            faces.data<int64_t>(),
                            faces.size(0),
                            face_offsets ? face_offsets->data<int64_t>() : nullptr,
                            size.images,
                            size.height,
                            size.width,
                            triangle_id.data<int64_t>(),
                            barycentrics.data<T>(),
                            depth.data<T>(),
                            w.data<T>()};
    run(vertices, FASTSHAPE_CPU(cpu::rasterize(task)),
        FASTSHAPE_CUDA(cuda::rasterize(task, space.data, space.bytes, stream)));
  });
}

size_t rasterize_workspace_bytes([[maybe_unused]] int64_t num_sets,
                                 [[maybe_unused]] int64_t num_vertices,
                                 [[maybe_unused]] int64_t num_images,
                                 [[maybe_unused]] int64_t num_faces,
                                 [[maybe_unused]] int64_t height, [[maybe_unused]] int64_t width,
                                 [[maybe_unused]] bool ragged) {
#if defined(FASTSHAPE_HAS_CUDA) || defined(FASTSHAPE_EMULATION)
  return cuda::rasterize_workspace_bytes(num_sets, num_vertices, num_images, num_faces, height,
                                         width, ragged);
#else
  return 0;
#endif
}

template <class T>
const T* optional_data(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->data<T>() : nullptr;
}

void rasterize_backward(const Tensor& vertices, const Tensor& faces, const Tensor& triangle_id,
                        const std::optional<Tensor>& grad_barycentrics,
                        const std::optional<Tensor>& grad_depth,
                        const std::optional<Tensor>& grad_w, const Tensor& gradients) {
  const ImageSize size = require_scene(vertices, faces, triangle_id);
  if (grad_barycentrics)
    require_map(vertices, "vertices_clip", *grad_barycentrics, "grad_barycentrics", size, 3,
                "(B, H, W, 3)");
  if (grad_depth) require_map(vertices, "vertices_clip", *grad_depth, "grad_depth", size);
  if (grad_w) require_map(vertices, "vertices_clip", *grad_w, "grad_w", size);
  require_map(vertices, "vertices_clip", gradients, "gradients", size, 4, "(B, H, W, 4)");
  with_dtype(vertices, [&](auto zero) {
    using T = decltype(zero);
    const RasterizeBackward<T> task{vertices.data<T>(),
                                    vertices.size(0),
                                    vertices.size(1),
                                    faces.data<int64_t>(),
                                    faces.size(0),
                                    size.images,
                                    size.height,
                                    size.width,
                                    triangle_id.data<int64_t>(),
                                    optional_data<T>(grad_barycentrics),
                                    optional_data<T>(grad_depth),
                                    optional_data<T>(grad_w),
                                    gradients.data<T>()};
    run(vertices, FASTSHAPE_CPU(cpu::rasterize_backward(task)),
        FASTSHAPE_CUDA(cuda::rasterize_backward(task, stream)));
  });
}

void require_pixels(const Tensor& first, const char* first_name, const Tensor& faces,
                    const Tensor& triangle_id) {
  require_faces(first, first_name, faces);
  require_index(first, first_name, triangle_id, "triangle_id", {-1, -1, -1}, "(B, H, W)");
}

int checked_channels(const char* name, int64_t channels) {
  FASTSHAPE_CHECK_VALUE(channels <= std::numeric_limits<int32_t>::max(), "`", name,
                        "` must have fewer than 2^31 channels, got ", channels);
  return static_cast<int>(channels);
}

// What is interpolated, and where.
ImageSize require_attributes(const Tensor& attributes, const Tensor& faces,
                             const Tensor& triangle_id) {
  require(attributes, "attributes", kFloats, {-1, -1, -1}, "(V, C) or (B, V, C)");
  require_pixels(attributes, "attributes", faces, triangle_id);
  require_sets("attributes", attributes.size(0), triangle_id.size(0));
  return size_of(triangle_id);
}

void interpolate(const Tensor& attributes, const Tensor& faces, const Tensor& triangle_id,
                 const Tensor& barycentrics, const Tensor& values) {
  const ImageSize size = require_attributes(attributes, faces, triangle_id);
  require_map(attributes, "attributes", barycentrics, "barycentrics", size, 3, "(B, H, W, 3)");
  require_map(attributes, "attributes", values, "values", size, attributes.size(2), "(B, H, W, C)");
  const int channels = checked_channels("attributes", attributes.size(2));
  with_dtype(attributes, [&](auto zero) {
    using T = decltype(zero);
    const Interpolate<T> task{attributes.data<T>(),
                              attributes.size(0),
                              attributes.size(1),
                              faces.data<int64_t>(),
                              faces.size(0),
                              size.images,
                              size.height * size.width,
                              triangle_id.data<int64_t>(),
                              barycentrics.data<T>(),
                              channels,
                              values.data<T>()};
    run(attributes, FASTSHAPE_CPU(cpu::interpolate(task)),
        FASTSHAPE_CUDA(cuda::interpolate(task, stream)));
  });
}

void interpolate_backward(const Tensor& grad_values, const Tensor& attributes, const Tensor& faces,
                          const Tensor& triangle_id, const Tensor& grad_barycentrics) {
  const ImageSize size = require_attributes(attributes, faces, triangle_id);
  require_map(attributes, "attributes", grad_values, "grad_values", size, attributes.size(2),
              "(B, H, W, C)");
  require_map(attributes, "attributes", grad_barycentrics, "grad_barycentrics", size, 3,
              "(B, H, W, 3)");
  const int channels = checked_channels("attributes", attributes.size(2));
  with_dtype(attributes, [&](auto zero) {
    using T = decltype(zero);
    const InterpolateBackward<T> task{attributes.data<T>(),
                                      attributes.size(0),
                                      attributes.size(1),
                                      faces.data<int64_t>(),
                                      faces.size(0),
                                      size.images,
                                      size.height * size.width,
                                      triangle_id.data<int64_t>(),
                                      grad_values.data<T>(),
                                      channels,
                                      grad_barycentrics.data<T>()};
    run(attributes, FASTSHAPE_CPU(cpu::interpolate_backward(task)),
        FASTSHAPE_CUDA(cuda::interpolate_backward(task, stream)));
  });
}

void vertex_sums(const Tensor& values, const Tensor& weights, const Tensor& faces,
                 const Tensor& triangle_id, const std::optional<Tensor>& workspace,
                 const Tensor& sums) {
  require(values, "values", kFloats, {-1, -1, -1, -1}, "(B, H, W, C)");
  require_pixels(values, "values", faces, triangle_id);
  const ImageSize size = size_of(values);
  require_shape(triangle_id, "triangle_id", {size.images, size.height, size.width}, "(B, H, W)");
  require_map(values, "values", weights, "weights", size, 3, "(B, H, W, 3)");
  require_output(values, "values", sums, "sums", {-1, -1, values.size(3)}, "(B, V, C)");
  require_sets("sums", sums.size(0), size.images);
  FASTSHAPE_CHECK_VALUE(3 * triangle_id.numel() < kMost32 && sums.size(0) * sums.size(1) < kMost32,
                        "the gradient of vertices takes fewer than 2^32 / 3 pixels and 2^32 - 1 "
                        "vertices at a time, got ",
                        triangle_id.numel(), " and ", sums.size(0) * sums.size(1));
  [[maybe_unused]] const Workspace space = open_workspace(values, "values", workspace);
  const int channels = checked_channels("values", values.size(3));
  with_dtype(values, [&](auto zero) {
    using T = decltype(zero);
    const VertexSums<T> task{values.data<T>(),
                             weights.data<T>(),
                             triangle_id.data<int64_t>(),
                             faces.data<int64_t>(),
                             faces.size(0),
                             size.images,
                             size.height * size.width,
                             sums.size(0),
                             sums.size(1),
                             channels,
                             sums.data<T>()};
    run(values, FASTSHAPE_CPU(cpu::vertex_sums(task)),
        FASTSHAPE_CUDA(cuda::vertex_sums(task, space.data, space.bytes, stream)));
  });
}

template <class T>
AntialiasScene<T> scene_of(const Tensor& image, const Tensor& triangle_id, const Tensor& depth,
                           const Tensor& vertices, const Tensor& faces, const Tensor& twins) {
  return {triangle_id.data<int64_t>(),
          depth.data<T>(),
          vertices.data<T>(),
          vertices.size(0),
          vertices.size(1),
          faces.data<int64_t>(),
          twins.data<int64_t>(),
          faces.size(0),
          image.size(0),
          image.size(1),
          image.size(2)};
}

void require_antialias(const Tensor& image, const Tensor& triangle_id, const Tensor& depth,
                       const Tensor& vertices, const Tensor& faces, const Tensor& twins) {
  require(image, "image", kFloats, {-1, -1, -1, -1}, "(H, W, C) or (B, H, W, C)");
  const ImageSize size = size_of(image);
  require_index(image, "image", triangle_id, "triangle_id", {size.images, size.height, size.width},
                "(B, H, W)");
  require_map(image, "image", depth, "depth", size);
  require_output(image, "image", vertices, "vertices_clip", {-1, -1, 4}, "(V, 4) or (B, V, 4)");
  require_sets("vertices_clip", vertices.size(0), size.images);
  require_faces(image, "image", faces);
  require_index(image, "image", twins, "twins", {faces.size(0), 3}, "(F, 3)");
}

void antialias(const Tensor& image, const Tensor& triangle_id, const Tensor& depth,
               const Tensor& vertices, const Tensor& faces, const Tensor& twins,
               const Tensor& result) {
  require_antialias(image, triangle_id, depth, vertices, faces, twins);
  require_map(image, "image", result, "result", size_of(image), image.size(3), "(B, H, W, C)");
  const int channels = checked_channels("image", image.size(3));
  with_dtype(image, [&](auto zero) {
    using T = decltype(zero);
    const Antialias<T> task{scene_of<T>(image, triangle_id, depth, vertices, faces, twins),
                            image.data<T>(), channels, result.data<T>()};
    run(image, FASTSHAPE_CPU(cpu::antialias(task)), FASTSHAPE_CUDA(cuda::antialias(task, stream)));
  });
}

void antialias_backward(const Tensor& grad_result, const Tensor& image, const Tensor& triangle_id,
                        const Tensor& depth, const Tensor& vertices, const Tensor& faces,
                        const Tensor& twins, const std::optional<Tensor>& workspace,
                        const Tensor& grad_image, const Tensor& grad_vertices) {
  require_antialias(image, triangle_id, depth, vertices, faces, twins);
  const ImageSize size = size_of(image);
  require_map(image, "image", grad_result, "grad_result", size, image.size(3), "(B, H, W, C)");
  require_map(image, "image", grad_image, "grad_image", size, image.size(3), "(B, H, W, C)");
  require_output(image, "image", grad_vertices, "grad_vertices",
                 {vertices.size(0), vertices.size(1), 4}, "(B, V, 4)");
  FASTSHAPE_CHECK_VALUE(
      4 * triangle_id.numel() < kMost32 && vertices.size(0) * vertices.size(1) < kMost32,
      "the gradient of vertices takes fewer than 2^32 / 4 pixels and 2^32 - 1 vertices at a time, "
      "got ",
      triangle_id.numel(), " and ", vertices.size(0) * vertices.size(1));
  [[maybe_unused]] const Workspace space = open_workspace(image, "image", workspace);
  const int channels = checked_channels("image", image.size(3));
  with_dtype(image, [&](auto zero) {
    using T = decltype(zero);
    const AntialiasBackward<T> task{scene_of<T>(image, triangle_id, depth, vertices, faces, twins),
                                    grad_result.data<T>(),
                                    image.data<T>(),
                                    channels,
                                    grad_image.data<T>(),
                                    grad_vertices.data<T>()};
    run(image, FASTSHAPE_CPU(cpu::antialias_backward(task)),
        FASTSHAPE_CUDA(cuda::antialias_backward(task, space.data, space.bytes, stream)));
  });
}

}  // namespace

void bind_raster(py::module_& m) {
  m.def("rasterize", &rasterize, py::arg("vertices_clip"), py::arg("faces"),
        py::arg("face_offsets"), py::arg("workspace"), py::arg("triangle_id"),
        py::arg("barycentrics"), py::arg("depth"), py::arg("w"));
  m.def("rasterize_workspace_bytes", &rasterize_workspace_bytes, py::arg("num_sets"),
        py::arg("num_vertices"), py::arg("num_images"), py::arg("num_faces"), py::arg("height"),
        py::arg("width"), py::arg("ragged"));
  m.def("rasterize_backward", &rasterize_backward, py::arg("vertices_clip"), py::arg("faces"),
        py::arg("triangle_id"), py::arg("grad_barycentrics"), py::arg("grad_depth"),
        py::arg("grad_w"), py::arg("gradients"));
  m.def("interpolate", &interpolate, py::arg("attributes"), py::arg("faces"),
        py::arg("triangle_id"), py::arg("barycentrics"), py::arg("values"));
  m.def("interpolate_backward", &interpolate_backward, py::arg("grad_values"),
        py::arg("attributes"), py::arg("faces"), py::arg("triangle_id"),
        py::arg("grad_barycentrics"));
  m.def("vertex_sums", &vertex_sums, py::arg("values"), py::arg("weights"), py::arg("faces"),
        py::arg("triangle_id"), py::arg("workspace"), py::arg("sums"));
  m.def("antialias", &antialias, py::arg("image"), py::arg("triangle_id"), py::arg("depth"),
        py::arg("vertices_clip"), py::arg("faces"), py::arg("twins"), py::arg("result"));
  m.def("antialias_backward", &antialias_backward, py::arg("grad_result"), py::arg("image"),
        py::arg("triangle_id"), py::arg("depth"), py::arg("vertices_clip"), py::arg("faces"),
        py::arg("twins"), py::arg("workspace"), py::arg("grad_image"), py::arg("grad_vertices"));
  m.def("antialias_backward_workspace_bytes", FASTSHAPE_WORKSPACE(antialias_backward),
        py::arg("num_pixels"));
  m.def("vertex_sums_workspace_bytes", FASTSHAPE_WORKSPACE(vertex_sums), py::arg("num_pixels"));
}

}  // namespace fastshape
