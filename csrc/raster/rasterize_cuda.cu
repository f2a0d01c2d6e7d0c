// Small triangles are drawn by the thread that finds them, straight into the visibility buffer,
// where a 64-bit minimum keeps the nearest: no bins and no order. Larger ones are left in a list
// that has a place for every triangle, and a second kernel, of as many blocks as the device has
// room for, gives a warp to each of middle size and shares the largest among all blocks. Then each
// pixel is resolved.
#include "core/block.cuh"
#include "core/cuda_utils.cuh"
#include "core/elementwise.cuh"
#include "core/workspace.h"
#include "raster/rasterize.h"

namespace fastshape::cuda {
namespace {

constexpr int64_t kSmallBox = 64;     // pixels of a box that one thread walks through
constexpr int64_t kMiddleBox = 8192;  // that a warp does
constexpr int64_t kTile = 32;         // rows and columns that a block takes of a larger one

using Key = unsigned long long;

struct Queue {
  int64_t* items;       // (image, face) as one number: middle ones from the front, large ones from
  int64_t capacity;     // the back
  Key *middle, *large;  // how many there are
};

struct RasterizeWorkspace {
  Key* keys;  // (num_images, height, width)
  SnappedVertex* snapped;
  Queue queue;
  size_t bytes;
};

// Pairs of an image and a face that it may show.
int64_t num_pairs(int64_t num_images, int64_t num_faces, bool ragged) {
  return ragged ? num_faces : num_images * num_faces;
}

RasterizeWorkspace rasterize_workspace(void* begin, int64_t num_sets, int64_t num_vertices,
                                       int64_t pixels, int64_t pairs) {
  WorkspaceCutter cutter(begin);
  RasterizeWorkspace w{};
  w.keys = cutter.take<Key>(pixels);
  w.snapped = cutter.take<SnappedVertex>(num_sets * num_vertices);
  w.queue.items = cutter.take<int64_t>(pairs);
  w.queue.capacity = pairs;
  w.queue.middle = cutter.take<Key>(2);
  w.queue.large = w.queue.middle == nullptr ? nullptr : w.queue.middle + 1;
  w.bytes = cutter.bytes();
  return w;
}

template <class T>
__global__ void snap_kernel(Rasterize<T> task, ImageScale scale, SnappedVertex* snapped) {
  const int64_t i = thread_index();
  if (i < task.num_sets * task.num_vertices) snapped[i] = snap_vertex(task.vertices + 4 * i, scale);
}

struct ImageFace {
  int64_t image, face;
};

// The image that shows the packed face: the last that begins at it or before it.
template <class T>
__device__ ImageFace image_face(const Rasterize<T>& task, int64_t pair) {
  if (task.face_offsets == nullptr) return {pair / task.num_faces, pair % task.num_faces};
  int64_t low = 0, high = task.num_images;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (task.face_offsets[middle] <= pair)
      low = middle;
    else
      high = middle;
  }
  const FaceRange faces = image_faces(task, low);
  return {pair >= faces.begin && pair < faces.end ? low : -1, pair};
}

template <class T>
__device__ bool set_up_pair(const Rasterize<T>& task, const ImageScale& scale,
                            const SnappedVertex* snapped, const ImageFace& at, Triangle* t) {
  if (at.image < 0) return false;
  const int64_t* corners = task.faces + 3 * at.face;
  if (!has_corners(corners, task.num_vertices)) return false;
  const int64_t set = task.num_sets == 1 ? 0 : at.image;
  return set_up_triangle(image_vertices(task, at.image), snapped + set * task.num_vertices, corners,
                         scale, t);
}

__device__ bool is_covered(const Triangle& t, int64_t row, int64_t column) {
  return (edge_at(t, 0, row, column) | edge_at(t, 1, row, column) | edge_at(t, 2, row, column)) >=
         0;
}

__device__ void draw_pixel(const Triangle& t, int64_t row, int64_t column, int64_t width,
                           uint32_t face, Key* keys) {
  double depth;
  if (!is_covered(t, row, column) ||
      !pixel_depth(t, row_depth(t, row), static_cast<double>(center(column)), &depth))
    return;
  const Key key = visibility_key(depth, face);
  Key* place = keys + row * width + column;
  if (key < load_relaxed(place)) atomicMin(place, key);
}

template <class T>
__global__ void draw_small_kernel(Rasterize<T> task, ImageScale scale, const SnappedVertex* snapped,
                                  Queue queue, Key* keys) {
  const int64_t pair = thread_index();
  if (pair >= queue.capacity) return;
  const ImageFace at = image_face(task, pair);
  Triangle t;
  if (!set_up_pair(task, scale, snapped, at, &t)) return;
  const int64_t box =
      static_cast<int64_t>(t.last_row - t.first_row + 1) * (t.last_column - t.first_column + 1);
  if (box > kMiddleBox) {
    queue.items[queue.capacity - 1 - static_cast<int64_t>(atomicAdd(queue.large, Key{1}))] = pair;
  } else if (box > kSmallBox) {
    queue.items[atomicAdd(queue.middle, Key{1})] = pair;
  } else {
    Key* image = keys + at.image * task.height * task.width;
    for (int32_t row = t.first_row; row <= t.last_row; ++row)
      for (int32_t column = t.first_column; column <= t.last_column; ++column)
        draw_pixel(t, row, column, task.width, static_cast<uint32_t>(at.face), image);
  }
}

// The box's pixels in patches of 4 rows and 8 columns, one a step of a warp.
__device__ void draw_patches(const Triangle& t, int64_t first_row, int64_t last_row,
                             int64_t first_column, int64_t last_column, unsigned worker,
                             unsigned workers, int64_t width, uint32_t face, Key* keys) {
  const int64_t lane = lane_id();
  const int64_t across = (last_column - first_column + 8) / 8,
                down = (last_row - first_row + 4) / 4;
  for (int64_t patch = worker; patch < across * down; patch += workers) {
    const int64_t row = first_row + 4 * (patch / across) + lane / 8;
    const int64_t column = first_column + 8 * (patch % across) + lane % 8;
    if (row <= last_row && column <= last_column) draw_pixel(t, row, column, width, face, keys);
  }
}

// No pixel of the tile is covered: all of it lies on the wrong side of one edge.
__device__ bool misses_tile(const Triangle& t, int64_t first_row, int64_t last_row,
                            int64_t first_column, int64_t last_column) {
  for (int k = 0; k < 3; ++k)
    if (edge_at(t, k, t.b[k] > 0 ? last_row : first_row, t.a[k] > 0 ? last_column : first_column) <
        0)
      return true;
  return false;
}

template <class T>
__global__ void draw_queued_kernel(Rasterize<T> task, ImageScale scale,
                                   const SnappedVertex* snapped, Queue queue, Key* keys) {
  const unsigned warps = blockDim.x / 32;
  Triangle t;
  const auto middle = static_cast<int64_t>(*queue.middle);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * warps + warp_id(); i < middle;
       i += static_cast<int64_t>(gridDim.x) * warps) {
    const ImageFace at = image_face(task, queue.items[i]);
    if (!set_up_pair(task, scale, snapped, at, &t)) continue;
    draw_patches(t, t.first_row, t.last_row, t.first_column, t.last_column, 0, 1, task.width,
                 static_cast<uint32_t>(at.face), keys + at.image * task.height * task.width);
  }
  const auto large = static_cast<int64_t>(*queue.large);
  for (int64_t i = 0; i < large; ++i) {
    const ImageFace at = image_face(task, queue.items[queue.capacity - 1 - i]);
    if (!set_up_pair(task, scale, snapped, at, &t)) continue;
    const int64_t across = (t.last_column - t.first_column + kTile) / kTile,
                  down = (t.last_row - t.first_row + kTile) / kTile;
    // Each triangle begins with another block, or the first ones would have all the work.
    for (int64_t tile = (blockIdx.x + i) % gridDim.x; tile < across * down; tile += gridDim.x) {
      const int64_t row = t.first_row + kTile * (tile / across),
                    column = t.first_column + kTile * (tile % across);
      const int64_t last_row = min(row + kTile - 1, static_cast<int64_t>(t.last_row)),
                    last_column = min(column + kTile - 1, static_cast<int64_t>(t.last_column));
      if (misses_tile(t, row, last_row, column, last_column)) continue;
      draw_patches(t, row, last_row, column, last_column, warp_id(), warps, task.width,
                   static_cast<uint32_t>(at.face), keys + at.image * task.height * task.width);
    }
  }
}

template <class T>
__global__ void resolve_kernel(Rasterize<T> task, const Key* keys) {
  const int64_t i = thread_index();
  const int64_t pixels = task.height * task.width;
  if (i >= task.num_images * pixels) return;
  const int64_t in_image = i % pixels;
  write_pixel(task, pixel_centers(task.height, task.width), i / pixels, in_image / task.width,
              in_image % task.width, keys[i]);
}

}  // namespace

size_t rasterize_workspace_bytes(int64_t num_sets, int64_t num_vertices, int64_t num_images,
                                 int64_t num_faces, int64_t height, int64_t width, bool ragged) {
  return rasterize_workspace(nullptr, num_sets, num_vertices, num_images * height * width,
                             num_pairs(num_images, num_faces, ragged))
      .bytes;
}

template <class T>
void rasterize(const Rasterize<T>& task, void* workspace, size_t workspace_bytes,
               cudaStream_t stream) {
  const char* op = "rasterize";
  const int64_t pixels = task.num_images * task.height * task.width;
  if (pixels == 0) return;
  const int64_t pairs = num_pairs(task.num_images, task.num_faces, task.face_offsets != nullptr);
  const int64_t vertices = task.num_sets * task.num_vertices;
  const RasterizeWorkspace w =
      rasterize_workspace(workspace, task.num_sets, task.num_vertices, pixels, pairs);
  FASTSHAPE_CHECK_VALUE(workspace_bytes >= w.bytes, op, ": the workspace has ", workspace_bytes,
                        " bytes, ", w.bytes, " are needed");
  const ImageScale scale = image_scale(task.height, task.width);
  fill_bytes(op, w.keys, 0xff, static_cast<size_t>(pixels) * sizeof(Key), stream);
  fill_bytes(op, w.queue.middle, 0, 2 * sizeof(Key), stream);
  if (vertices != 0)
    launch(op, snap_kernel<T>, blocks_for(vertices), dim3(kBlock), 0, stream, task, scale,
           w.snapped);
  if (pairs != 0) {
    launch(op, draw_small_kernel<T>, blocks_for(pairs), dim3(kBlock), 0, stream, task, scale,
           w.snapped, w.queue, w.keys);
    const auto blocks = static_cast<unsigned>(8 * device_properties().multiprocessors);
    launch(op, draw_queued_kernel<T>, dim3(blocks), dim3(kBlock), 0, stream, task, scale, w.snapped,
           w.queue, w.keys);
  }
  launch(op, resolve_kernel<T>, blocks_for(pixels), dim3(kBlock), 0, stream, task, w.keys);
}

template void rasterize<float>(const Rasterize<float>&, void*, size_t, cudaStream_t);
template void rasterize<double>(const Rasterize<double>&, void*, size_t, cudaStream_t);

}  // namespace fastshape::cuda
