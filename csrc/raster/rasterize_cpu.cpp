#include "raster/rasterize_cpu.h"

#include <algorithm>
#include <vector>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "raster/rasterize_loop.h"

namespace fastshape {
FASTSHAPE_DEFINE_BANDS(portable)
}  // namespace fastshape

namespace fastshape::cpu {
namespace {

constexpr int64_t kBandBytes = 1 << 18;

template <class T>
struct Loops {
  void (*snap_vertices)(const T*, const ImageScale&, int64_t, int64_t, SnappedVertex*);
  void (*draw_band)(const Rasterize<T>&, const ImageScale&, const ImageGeometry&, const Band&);
  void (*write_band)(const Rasterize<T>&, int64_t, const Band&);
  decltype(&face_rows_portable) face_rows;
};

template <class T>
Loops<T> loops() {
#if defined(FASTSHAPE_X86)
  switch (instruction_set()) {
    case InstructionSet::avx512:
      return {snap_vertices_avx512, draw_band_avx512, write_band_avx512, face_rows_avx512};
    case InstructionSet::avx2:
      return {snap_vertices_avx2, draw_band_avx2, write_band_avx2, face_rows_avx2};
    case InstructionSet::portable:
      break;
  }
#endif
  return {snap_vertices_portable, draw_band_portable, write_band_portable, face_rows_portable};
}

// Sets of vertices are rounded once, an image's faces are looked at once, and then each band of
// rows draws what touches it into a visibility buffer of its own, in the cache.
template <class T>
void rasterize_image(const Rasterize<T>& task, const Loops<T>& loop, const ImageScale& scale,
                     const SnappedVertex* snapped, int64_t image) {
  FaceRange faces = image_faces(task, image);
  faces.end = std::max(faces.begin, faces.end);
  std::vector<RowRange> rows(static_cast<size_t>(faces.end - faces.begin));
  parallel_for(faces.end - faces.begin, 8192, [&](int64_t begin, int64_t end) {
    loop.face_rows(snapped, task.faces + 3 * faces.begin, task.num_vertices, scale, begin, end,
                   rows.data());
  });
  const ImageGeometry geometry{image, faces, snapped, rows.data()};
  // A band's visibility stays in the cache. Several for a thread, as they are not equally full; not
  // too many, as each reads the rows of all faces.
  const int64_t bands = num_threads() == 1 ? 1 : 4 * num_threads();
  const int64_t most_rows = std::max<int64_t>(1, kBandBytes / (8 * task.width));
  const int64_t band_rows = std::min(most_rows, (task.height + bands - 1) / bands);
  parallel_for((task.height + band_rows - 1) / band_rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> keys(static_cast<size_t>(band_rows * task.width));
    for (int64_t piece = begin; piece < end; ++piece) {
      std::fill(keys.begin(), keys.end(), kNothing);
      const Band band{piece * band_rows, std::min(task.height, (piece + 1) * band_rows), task.width,
                      keys.data()};
      loop.draw_band(task, scale, geometry, band);
      loop.write_band(task, image, band);
    }
  });
}

}  // namespace

template <class T>
void rasterize(const Rasterize<T>& task) {
  const Loops<T> loop = loops<T>();
  const ImageScale scale = image_scale(task.height, task.width);
  std::vector<SnappedVertex> snapped(static_cast<size_t>(task.num_sets * task.num_vertices));
  parallel_for(task.num_sets * task.num_vertices, 8192, [&](int64_t begin, int64_t end) {
    loop.snap_vertices(task.vertices, scale, begin, end, snapped.data());
  });
  const auto draw = [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image)
      rasterize_image(task, loop, scale,
                      snapped.data() + (task.num_sets == 1 ? 0 : image * task.num_vertices), image);
  };
  if (task.num_images < 2 * num_threads())
    draw(0, task.num_images);  // the bands of one image at a time
  else
    parallel_for(task.num_images, 1, draw);
}

template void rasterize<float>(const Rasterize<float>&);
template void rasterize<double>(const Rasterize<double>&);

}  // namespace fastshape::cpu
