#include <pybind11/pybind11.h>

#include <limits>

#include "bindings/arguments.h"
#include "bindings/run.h"
#include "bindings/tensor.h"
#include "carving/bit_grid.h"
#include "carving/depth_carve.h"

namespace py = pybind11;

namespace fastshape {
namespace {

constexpr int64_t kMostCoords = std::numeric_limits<int32_t>::max();

// ---- Grids of bits -----------------------------------------------------------------------------

// `bits`: (B, X, Y, W), W words of 64 bits for size_z bits.
BitGrid require_bits(const Tensor& bits, const char* name, int64_t size_z) {
  require(bits, name, {DType::int64}, {-1, -1, -1, -1}, "(B, X, Y, W)");
  FASTSHAPE_CHECK_VALUE(size_z >= 0 && bits.size(3) == (size_z + 63) / 64, "`", name,
                        "` must have a word for every 64 of ", size_z,
                        " voxels along z, got shape ", bits.shape_text());
  for (const int64_t size : {bits.size(0), bits.size(1), bits.size(2), size_z})
    FASTSHAPE_CHECK_VALUE(size <= kMostCoords,
                          "a grid must have fewer than 2^31 voxels along an axis, got ", size);
  return bit_grid(bits.data<int64_t>(), bits.size(0), bits.size(1), bits.size(2), size_z);
}

VoxelList require_coords(const Tensor& coords) {
  require_dtype(coords, "coords", {DType::int32});
  FASTSHAPE_CHECK_VALUE(coords.dim() == 2 && (coords.size(1) == 3 || coords.size(1) == 4),
                        "`coords` must have shape (N, 3), or (N, 4) with the number in the batch "
                        "first, got ",
                        coords.shape_text());
  return {coords.data<int32_t>(), coords.size(0), static_cast<int>(coords.size(1))};
}

int64_t* require_bad_row(const Tensor& coords, const Tensor& bad_row) {
  require(bad_row, "bad_row", {DType::int64}, {1}, "(1,)");
  require_same_device(coords, "coords", bad_row, "bad_row");
  return bad_row.data<int64_t>();
}

void pack_bits(const Tensor& grid, const Tensor& bits) {
  require(grid, "grid", {DType::boolean}, {-1, -1, -1, -1}, "(B, X, Y, Z)");
  const BitGrid g = require_bits(bits, "bits", grid.size(3));
  require_shape(bits, "bits", {grid.size(0), grid.size(1), grid.size(2), g.row_words},
                "(B, X, Y, W)");
  require_same_device(grid, "grid", bits, "bits");
  const auto* values = grid.data<uint8_t>();
  run(grid, FASTSHAPE_CPU(cpu::pack_bits(values, g)),
      FASTSHAPE_CUDA(cuda::pack_bits(values, g, stream)));
}

void unpack_bits(const Tensor& bits, const Tensor& grid) {
  require(grid, "grid", {DType::boolean}, {-1, -1, -1, -1}, "(B, X, Y, Z)");
  const BitGrid g = require_bits(bits, "bits", grid.size(3));
  require_shape(grid, "grid", {g.batch, g.size_x, g.size_y, g.size_z}, "(B, X, Y, Z)");
  require_same_device(bits, "bits", grid, "grid");
  auto* values = grid.data<uint8_t>();
  run(bits, FASTSHAPE_CPU(cpu::unpack_bits(g, values)),
      FASTSHAPE_CUDA(cuda::unpack_bits(g, values, stream)));
}

void dilate_bits(const Tensor& bits, int64_t size_z, const Tensor& dilated) {
  const BitGrid g = require_bits(bits, "bits", size_z);
  require_bits(dilated, "dilated", size_z);
  require_shape(dilated, "dilated", {g.batch, g.size_x, g.size_y, g.row_words}, "(B, X, Y, W)");
  require_same_device(bits, "bits", dilated, "dilated");
  auto* out = reinterpret_cast<uint64_t*>(dilated.data<int64_t>());
  FASTSHAPE_CHECK_VALUE(out != g.words || bits.numel() == 0,
                        "`dilated` must not be the memory of `bits`");
  run(bits, FASTSHAPE_CPU(cpu::dilate_bits(g, out)),
      FASTSHAPE_CUDA(cuda::dilate_bits(g, out, stream)));
}

void dilate_values(const Tensor& grid, const Tensor& dilated) {
  require(grid, "grid", {DType::boolean}, {-1, -1, -1, -1}, "(B, X, Y, Z)");
  require(dilated, "dilated", {DType::boolean},
          {grid.size(0), grid.size(1), grid.size(2), grid.size(3)}, "(B, X, Y, Z)");
  require_same_device(grid, "grid", dilated, "dilated");
  for (int axis = 0; axis < 4; ++axis)
    FASTSHAPE_CHECK_VALUE(grid.size(axis) <= kMostCoords,
                          "a grid must have fewer than 2^31 voxels along an axis, got ",
                          grid.size(axis));
  const BitGrid g = bit_grid(nullptr, grid.size(0), grid.size(1), grid.size(2), grid.size(3));
  const auto* values = grid.data<uint8_t>();
  auto* out = dilated.data<uint8_t>();
  FASTSHAPE_CHECK_VALUE(out != values || grid.numel() == 0,
                        "`dilated` must not be the memory of `grid`");
  run(grid, FASTSHAPE_CPU(cpu::dilate_values(values, g, out)),
      FASTSHAPE_CUDA(cuda::dilate_values(values, g, out, stream)));
}

void set_bits(const Tensor& coords, const std::optional<Tensor>& mask, const Tensor& bits,
              int64_t size_z, const Tensor& bad_row) {
  const VoxelList list = require_coords(coords);
  const BitGrid g = require_bits(bits, "bits", size_z);
  require_same_device(coords, "coords", bits, "bits");
  int64_t* const bad = require_bad_row(coords, bad_row);
  const bool* chosen = nullptr;
  if (mask) {
    require(*mask, "mask", {DType::boolean}, {list.num_voxels}, "(N,)");
    require_same_device(coords, "coords", *mask, "mask");
    chosen = mask->data<bool>();
  }
  run(coords, FASTSHAPE_CPU(cpu::set_bits(list, chosen, g, bad)),
      FASTSHAPE_CUDA(cuda::set_bits(list, chosen, g, bad, stream)));
}

void get_bits(const Tensor& coords, const Tensor& bits, int64_t size_z, const Tensor& found) {
  const VoxelList list = require_coords(coords);
  const BitGrid g = require_bits(bits, "bits", size_z);
  require_same_device(coords, "coords", bits, "bits");
  require(found, "found", {DType::boolean}, {list.num_voxels}, "(N,)");
  require_same_device(coords, "coords", found, "found");
  auto* out = found.data<bool>();
  run(coords, FASTSHAPE_CPU(cpu::get_bits(list, g, out)),
      FASTSHAPE_CUDA(cuda::get_bits(list, g, out, stream)));
}

int64_t* require_first(const BitGrid& g, const Tensor& bits, const Tensor& first) {
  require(first, "first", {DType::int64}, {num_pieces(g) + 1}, "(P + 1,)");
  require_same_device(bits, "bits", first, "first");
  return first.data<int64_t>();
}

void count_set_bits(const Tensor& bits, int64_t size_z, const std::optional<Tensor>& workspace,
                    const Tensor& first) {
  const BitGrid g = require_bits(bits, "bits", size_z);
  int64_t* const sums = require_first(g, bits, first);
  [[maybe_unused]] const Workspace space = open_workspace(bits, "bits", workspace);
  run(bits, FASTSHAPE_CPU(cpu::count_set_bits(g, sums)),
      FASTSHAPE_CUDA(cuda::count_set_bits(g, space.data, space.bytes, sums, stream)));
}

void bit_coords(const Tensor& bits, int64_t size_z, const Tensor& first, const Tensor& coords) {
  const BitGrid g = require_bits(bits, "bits", size_z);
  const int64_t* const sums = require_first(g, bits, first);
  const VoxelList list = require_coords(coords);
  require_same_device(bits, "bits", coords, "coords");
  auto* out = coords.data<int32_t>();
  run(bits, FASTSHAPE_CPU(cpu::bit_coords(g, sums, out, list.columns)),
      FASTSHAPE_CUDA(cuda::bit_coords(g, sums, out, list.columns, stream)));
}

// ---- Depth carving -----------------------------------------------------------------------------

void depth_carve(const Tensor& coords, const Tensor& depth, const Tensor& matrices,
                 const std::optional<Tensor>& depth_rows, int64_t resolution, double low,
                 double voxel_size, double threshold, double near, double far, bool any_view,
                 bool keep_outside, bool keep_background, bool keep_invalid, bool bottom_up,
                 const Tensor& mask, const Tensor& bad_row) {
  const VoxelList list = require_coords(coords);
  require(depth, "depth", kFloats, {-1, -1, -1, -1}, "(B, V, H, W)");
  const int64_t batch = depth.size(0), views = depth.size(1);
  require_same_device(coords, "coords", depth, "depth");
  require_output(depth, "depth", matrices, "matrices", {batch, views, 4, 4}, "(B, V, 4, 4)");
  if (depth_rows)
    require_output(depth, "depth", *depth_rows, "depth_rows", {batch, views, 4}, "(B, V, 4)");
  FASTSHAPE_CHECK_VALUE(views > 0, "`depth` must have at least one view, got shape ",
                        depth.shape_text());
  const int64_t height = depth.size(2), width = depth.size(3);
  FASTSHAPE_CHECK_VALUE(
      height > 0 && width > 0 && height < (int64_t{1} << 31) / width,
      "a view of `depth` must have at least one pixel and fewer than 2^31, got shape ",
      depth.shape_text());
  FASTSHAPE_CHECK_VALUE(resolution > 0 && resolution <= kMostCoords,
                        "`resolution` must be positive and below 2^31, got ", resolution);
  require(mask, "mask", {DType::boolean}, {list.num_voxels}, "(N,)");
  require_same_device(coords, "coords", mask, "mask");
  int64_t* const bad = require_bad_row(coords, bad_row);
  with_dtype(depth, [&](auto zero) {
    using T = decltype(zero);
    const DepthCarve<T> task{list,
                             depth.data<T>(),
                             matrices.data<T>(),
                             depth_rows ? depth_rows->data<T>() : nullptr,
                             batch,
                             views,
                             height,
                             width,
                             resolution,
                             static_cast<T>(low),
                             static_cast<T>(voxel_size),
                             static_cast<T>(threshold),
                             static_cast<T>(near),
                             static_cast<T>(far),
                             any_view,
                             keep_outside,
                             keep_background,
                             keep_invalid,
                             bottom_up,
                             mask.data<bool>()};
    run(coords, FASTSHAPE_CPU(cpu::depth_carve(task, bad)),
        FASTSHAPE_CUDA(cuda::depth_carve(task, bad, stream)));
  });
}

}  // namespace

void bind_carving(py::module_& m) {
  m.def("pack_bits", &pack_bits, py::arg("grid"), py::arg("bits"));
  m.def("unpack_bits", &unpack_bits, py::arg("bits"), py::arg("grid"));
  m.def("dilate_bits", &dilate_bits, py::arg("bits"), py::arg("size_z"), py::arg("dilated"));
  m.def("dilate_values", &dilate_values, py::arg("grid"), py::arg("dilated"));
  m.def("set_bits", &set_bits, py::arg("coords"), py::arg("mask"), py::arg("bits"),
        py::arg("size_z"), py::arg("bad_row"));
  m.def("get_bits", &get_bits, py::arg("coords"), py::arg("bits"), py::arg("size_z"),
        py::arg("found"));
  // For CUDA tensors, and for every tensor in the emulated module; the CPU kernel needs none.
  m.def("count_set_bits_workspace_bytes", FASTSHAPE_WORKSPACE(count_set_bits),
        py::arg("num_words"));
  m.def("count_set_bits", &count_set_bits, py::arg("bits"), py::arg("size_z"), py::arg("workspace"),
        py::arg("first"));
  m.def("bit_coords", &bit_coords, py::arg("bits"), py::arg("size_z"), py::arg("first"),
        py::arg("coords"));
  m.def("depth_carve", &depth_carve, py::arg("coords"), py::arg("depth"), py::arg("matrices"),
        py::arg("depth_rows"), py::arg("resolution"), py::arg("low"), py::arg("voxel_size"),
        py::arg("threshold"), py::arg("near"), py::arg("far"), py::arg("any_view"),
        py::arg("keep_outside"), py::arg("keep_background"), py::arg("keep_invalid"),
        py::arg("bottom_up"), py::arg("mask"), py::arg("bad_row"));
}

}  // namespace fastshape
