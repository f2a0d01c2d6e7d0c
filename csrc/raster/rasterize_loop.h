// A band of rows of one image, written once and compiled for each instruction set.
#pragma once

#include <algorithm>
#include <cstdint>

#include "raster/rasterize_cpu.h"

namespace fastshape {
namespace {

constexpr int32_t kNarrow = 8;  // columns: up to here a row's end costs more than its pixels

// In a row the covered columns are found by division, and nothing but the depth is left to compare.
inline void draw_span(const Triangle& t, double in_row, int64_t first, int64_t last, uint32_t face,
                      uint64_t* keys) {
  for (int64_t column = first; column <= last; ++column) {
    double depth;
    const bool visible = pixel_depth(t, in_row, static_cast<double>(center(column)), &depth);
    const uint64_t key = visible ? visibility_key(visible ? depth : 0.0, face) : kNothing;
    keys[column] = key < keys[column] ? key : keys[column];
  }
}

inline void draw_triangle(const Triangle& t, const Band& band, uint32_t face) {
  const int64_t first_row = std::max<int64_t>(t.first_row, band.begin);
  const int64_t last_row = std::min<int64_t>(t.last_row, band.end - 1);
  if (t.last_column - t.first_column >= kNarrow) {
    for (int64_t row = first_row; row <= last_row; ++row) {
      int64_t first, last;
      if (covered_columns(t, row, &first, &last))
        draw_span(t, row_depth(t, row), first, last, face,
                  band.keys + (row - band.begin) * band.width);
    }
    return;
  }
  const int64_t step_0 = t.a[0] * kSubpixels, step_1 = t.a[1] * kSubpixels,
                step_2 = t.a[2] * kSubpixels;
  int64_t row_0 = edge_at(t, 0, first_row, t.first_column),
          row_1 = edge_at(t, 1, first_row, t.first_column),
          row_2 = edge_at(t, 2, first_row, t.first_column);
  for (int64_t row = first_row; row <= last_row; ++row) {
    int64_t e_0 = row_0, e_1 = row_1, e_2 = row_2;
    uint64_t* keys = band.keys + (row - band.begin) * band.width;
    for (int64_t column = t.first_column; column <= t.last_column; ++column) {
      double depth;
      if ((e_0 | e_1 | e_2) >= 0 &&
          pixel_depth(t, row_depth(t, row), static_cast<double>(center(column)), &depth)) {
        const uint64_t key = visibility_key(depth, face);
        if (key < keys[column]) keys[column] = key;
      }
      e_0 += step_0;
      e_1 += step_1;
      e_2 += step_2;
    }
    row_0 += t.b[0] * kSubpixels;
    row_1 += t.b[1] * kSubpixels;
    row_2 += t.b[2] * kSubpixels;
  }
}

template <class T>
void draw_band_impl(const Rasterize<T>& task, const ImageScale& scale, const ImageGeometry& image,
                    const Band& band) {
  const T* vertices = image_vertices(task, image.index);
  for (int64_t i = 0; i < image.faces.end - image.faces.begin; ++i) {
    const RowRange rows = image.rows[i];
    if (rows.first >= band.end || rows.last < band.begin) continue;
    const int64_t face = image.faces.begin + i;
    Triangle t;
    if (set_up_triangle(vertices, image.snapped, task.faces + 3 * face, scale, &t))
      draw_triangle(t, band, static_cast<uint32_t>(face));
  }
}

template <class T>
void snap_vertices_impl(const T* vertices, const ImageScale& scale, int64_t begin, int64_t end,
                        SnappedVertex* snapped) {
  for (int64_t i = begin; i < end; ++i) snapped[i] = snap_vertex(vertices + 4 * i, scale);
}

// Most triangles of a fine mesh cover no center, or another band's: their rows are all a band
// reads.
inline RowRange rows_of(const SnappedVertex* snapped, const int64_t* corners, int64_t num_vertices,
                        const ImageScale& scale) {
  constexpr RowRange kNone{1, -1};
  if (!has_corners(corners, num_vertices)) return kNone;
  const SnappedVertex a = snapped[corners[0]], b = snapped[corners[1]], c = snapped[corners[2]];
  if (!is_snapped(a, b, c)) return {0, static_cast<int16_t>(scale.height - 1)};
  Triangle t;
  if (!triangle_box(a, b, c, scale, &t)) return kNone;
  return {static_cast<int16_t>(t.first_row), static_cast<int16_t>(t.last_row)};
}

inline void face_rows_impl(const SnappedVertex* snapped, const int64_t* faces, int64_t num_vertices,
                           const ImageScale& scale, int64_t begin, int64_t end, RowRange* rows) {
  for (int64_t i = begin; i < end; ++i)
    rows[i] = rows_of(snapped, faces + 3 * i, num_vertices, scale);
}

template <class T>
void write_band_impl(const Rasterize<T>& task, int64_t image, const Band& band) {
  const PixelCenters centers = pixel_centers(task.height, task.width);
  for (int64_t row = band.begin; row < band.end; ++row) {
    const uint64_t* keys = band.keys + (row - band.begin) * band.width;
    for (int64_t column = 0; column < band.width; ++column)
      write_pixel(task, centers, image, row, column, keys[column]);
  }
}

}  // namespace
}  // namespace fastshape

#define FASTSHAPE_DEFINE_BANDS_FOR(T, suffix)                                            \
  void draw_band_##suffix(const Rasterize<T>& task, const ImageScale& scale,             \
                          const ImageGeometry& image, const Band& band) {                \
    draw_band_impl(task, scale, image, band);                                            \
  }                                                                                      \
  void snap_vertices_##suffix(const T* vertices, const ImageScale& scale, int64_t begin, \
                              int64_t end, SnappedVertex* snapped) {                     \
    snap_vertices_impl(vertices, scale, begin, end, snapped);                            \
  }                                                                                      \
  void write_band_##suffix(const Rasterize<T>& task, int64_t image, const Band& band) {  \
    write_band_impl(task, image, band);                                                  \
  }
#define FASTSHAPE_DEFINE_BANDS(suffix)                                                  \
  namespace cpu {                                                                       \
  FASTSHAPE_DEFINE_BANDS_FOR(float, suffix)                                             \
  FASTSHAPE_DEFINE_BANDS_FOR(double, suffix)                                            \
  void face_rows_##suffix(const SnappedVertex* snapped, const int64_t* faces,           \
                          int64_t num_vertices, const ImageScale& scale, int64_t begin, \
                          int64_t end, RowRange* rows) {                                \
    face_rows_impl(snapped, faces, num_vertices, scale, begin, end, rows);              \
  }                                                                                     \
  }
