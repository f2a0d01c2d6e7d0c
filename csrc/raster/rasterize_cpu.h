// What the instruction sets' translation units give to rasterize_cpu.cpp.
#pragma once

#include "raster/rasterize.h"

namespace fastshape {

struct RowRange {
  int16_t first, last;  // first > last: none; a face's rows in the image
};

struct ImageGeometry {
  int64_t index;
  FaceRange faces;
  const SnappedVertex* snapped;  // (num_vertices,)
  const RowRange* rows;          // of the image's faces
};

// Rows [begin, end) of an image and their visibility.
struct Band {
  int64_t begin, end, width;
  uint64_t* keys;
};

namespace cpu {

#define FASTSHAPE_DECLARE_FOR(T, suffix)                                                 \
  void draw_band_##suffix(const Rasterize<T>& task, const ImageScale& scale,             \
                          const ImageGeometry& image, const Band& band);                 \
  void snap_vertices_##suffix(const T* vertices, const ImageScale& scale, int64_t begin, \
                              int64_t end, SnappedVertex* snapped);                      \
  void write_band_##suffix(const Rasterize<T>& task, int64_t image, const Band& band);
#define FASTSHAPE_DECLARE(suffix)                                                       \
  FASTSHAPE_DECLARE_FOR(float, suffix)                                                  \
  FASTSHAPE_DECLARE_FOR(double, suffix)                                                 \
  void face_rows_##suffix(const SnappedVertex* snapped, const int64_t* faces,           \
                          int64_t num_vertices, const ImageScale& scale, int64_t begin, \
                          int64_t end, RowRange* rows);
FASTSHAPE_DECLARE(portable)
FASTSHAPE_DECLARE(avx2)
FASTSHAPE_DECLARE(avx512)
#undef FASTSHAPE_DECLARE
#undef FASTSHAPE_DECLARE_FOR

}  // namespace cpu
}  // namespace fastshape
