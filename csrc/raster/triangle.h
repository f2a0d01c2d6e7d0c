// One triangle in one image: the pixels whose centers it covers, in integers, and how deep it lies.
//
// Vertices before the camera are rounded to 1/256 of a pixel. Which side of an edge a pixel's
// center lies on is an exact number of 64 bits that depends on the edge's two vertices alone, and a
// center on the edge belongs to the triangle below or to the right of it (the top-left rule). So
// triangles that share an edge leave no crack and count no pixel twice.
//
// A vertex behind the camera, or so far to the side that its coordinates overflow, has no such
// place. An edge to it is the line through the other end in the direction of the vertex, an edge
// between two of them the line of their plane through the eye, both scaled to integers: again the
// same for both triangles (Olano and Greer 1997, "Triangle Scan Conversion using 2D Homogeneous
// Coordinates"). Nothing is clipped into polygons.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace fastshape {

constexpr int kSubpixelBits = 8;
constexpr int64_t kSubpixels = int64_t{1} << kSubpixelBits;
constexpr int64_t kMaxImageSide = 32768;
constexpr double kSnapLimit =
    536870912.0;  // 2^29 sub-pixels: products of coordinates stay below 2^62
constexpr int32_t kNotSnapped = INT32_MIN;  // the x of a vertex without a place
constexpr double kFarthest = 4294967295.0;  // depth z/w = 1; -1 is 0

// Where the numbers of an image lie: x in sub-pixels is (x / w + 1) * scale_x, y points down.
struct ImageScale {
  int64_t height, width;
  double scale_x, scale_y;
};

FASTSHAPE_HOST_DEVICE ImageScale image_scale(int64_t height, int64_t width) {
  return {height, width, static_cast<double>(width * (kSubpixels / 2)),
          static_cast<double>(height * (kSubpixels / 2))};
}

struct SnappedVertex {
  int32_t x, y;
  double depth;
};

struct Triangle {
  int64_t a[3], b[3], c[3];  // covers the sub-pixel (x, y) where a x + b y + c >= 0 for all three
  double depth;              // at (x0, y0)
  double depth_x, depth_y;   // per sub-pixel
  double x0, y0;
  double nearest, farthest;  // of its vertices: rounding does not leave this range
  int32_t first_row, last_row, first_column, last_column;
};

// ---- Rounding ----------------------------------------------------------------------------------

// To the nearest integer, ties to even, of |value| < 2^51; rint without SSE4.1 is a call.
FASTSHAPE_HOST_DEVICE double round_even(double value) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  return (value + kMagic) - kMagic;
}

FASTSHAPE_HOST_DEVICE double magnitude(double value) { return value < 0.0 ? -value : value; }

FASTSHAPE_HOST_DEVICE bool is_finite_number(double value) { return value - value == 0.0; }

constexpr double kNoLength = 1e-250;  // what cannot be scaled up any more

// A power of two that brings `largest` to [limit / 2, limit); `limit` is a power of two itself.
FASTSHAPE_HOST_DEVICE double scale_to(double largest, double limit) {
  int exponent;
  frexp(largest, &exponent);  // largest < 2^exponent
  return ldexp(limit, -exponent);
}

template <class T>
FASTSHAPE_HOST_DEVICE SnappedVertex snap_vertex(const T* clip, const ImageScale& scale) {
  const double w = static_cast<double>(clip[3]);
  SnappedVertex vertex{kNotSnapped, 0, 0.0};
  if (!(w > 0.0)) return vertex;
  const double x = (static_cast<double>(clip[0]) / w + 1.0) * scale.scale_x;
  const double y = (1.0 - static_cast<double>(clip[1]) / w) * scale.scale_y;
  const double depth = (static_cast<double>(clip[2]) / w + 1.0) * (kFarthest / 2.0);
  if (!(magnitude(x) < kSnapLimit) || !(magnitude(y) < kSnapLimit) || !is_finite_number(depth))
    return vertex;
  vertex.x = static_cast<int32_t>(round_even(x));
  vertex.y = static_cast<int32_t>(round_even(y));
  vertex.depth = depth;
  return vertex;
}

// ---- The box -----------------------------------------------------------------------------------

FASTSHAPE_HOST_DEVICE int32_t smallest(int32_t a, int32_t b, int32_t c) {
  const int32_t d = a < b ? a : b;
  return d < c ? d : c;
}
FASTSHAPE_HOST_DEVICE int32_t largest(int32_t a, int32_t b, int32_t c) {
  const int32_t d = a > b ? a : b;
  return d > c ? d : c;
}

// The pixels along an axis whose centers lie in [low, high]; first > last: none.
FASTSHAPE_HOST_DEVICE void covered_range(int32_t low, int32_t high, int64_t pixels, int32_t* first,
                                         int32_t* last) {
  constexpr int32_t kHalf = kSubpixels / 2;
  const int32_t begin = (low + (kHalf - 1)) >> kSubpixelBits, end = (high - kHalf) >> kSubpixelBits;
  *first = begin < 0 ? 0 : begin;
  *last = end < pixels ? end : static_cast<int32_t>(pixels) - 1;
}

FASTSHAPE_HOST_DEVICE bool is_snapped(const SnappedVertex& a, const SnappedVertex& b,
                                      const SnappedVertex& c) {
  return a.x != kNotSnapped && b.x != kNotSnapped && c.x != kNotSnapped;
}

// False where no pixel's center lies in the box of a triangle of snapped vertices, or where all of
// it lies beyond the near or the far plane.
FASTSHAPE_HOST_DEVICE bool triangle_box(const SnappedVertex& a, const SnappedVertex& b,
                                        const SnappedVertex& c, const ImageScale& scale,
                                        Triangle* t) {
  covered_range(smallest(a.y, b.y, c.y), largest(a.y, b.y, c.y), scale.height, &t->first_row,
                &t->last_row);
  covered_range(smallest(a.x, b.x, c.x), largest(a.x, b.x, c.x), scale.width, &t->first_column,
                &t->last_column);
  if (t->first_row > t->last_row || t->first_column > t->last_column) return false;
  const double low = a.depth < b.depth ? a.depth : b.depth;
  const double high = a.depth > b.depth ? a.depth : b.depth;
  t->nearest = low < c.depth ? low : c.depth;
  t->farthest = high > c.depth ? high : c.depth;
  return t->farthest >= 0.0 && t->nearest <= kFarthest;
}

// ---- Edges -------------------------------------------------------------------------------------

// The edge from i to j leaves the covered side on its left in the sense of a x + b y + c > 0,
// before the triangle's orientation is known. `through` lies on it.
FASTSHAPE_HOST_DEVICE void set_edge(Triangle* t, int k, int64_t direction_x, int64_t direction_y,
                                    const SnappedVertex& through) {
  t->a[k] = -direction_y;
  t->b[k] = direction_x;
  t->c[k] = direction_y * through.x - direction_x * through.y;
}

// A center on the line is covered where the triangle lies to its right, or right below it.
FASTSHAPE_HOST_DEVICE void settle_edges(Triangle* t, bool turned) {
  for (int k = 0; k < 3; ++k) {
    if (turned) {
      t->a[k] = -t->a[k];
      t->b[k] = -t->b[k];
      t->c[k] = -t->c[k];
    }
    if (!(t->a[k] > 0 || (t->a[k] == 0 && t->b[k] > 0))) t->c[k] -= 1;
  }
}

// After triangle_box.
FASTSHAPE_HOST_DEVICE bool set_up_snapped(const SnappedVertex& a, const SnappedVertex& b,
                                          const SnappedVertex& c, Triangle* t) {
  const int64_t ab_x = static_cast<int64_t>(b.x) - a.x, ab_y = static_cast<int64_t>(b.y) - a.y;
  const int64_t ac_x = static_cast<int64_t>(c.x) - a.x, ac_y = static_cast<int64_t>(c.y) - a.y;
  const int64_t area = ab_x * ac_y - ab_y * ac_x;
  if (area == 0) return false;
  set_edge(t, 0, ab_x, ab_y, a);
  set_edge(t, 1, ac_x - ab_x, ac_y - ab_y, b);
  set_edge(t, 2, -ac_x, -ac_y, c);
  settle_edges(t, area < 0);
  const double ab = b.depth - a.depth, ac = c.depth - a.depth,
               share = 1.0 / static_cast<double>(area);
  t->depth = a.depth;
  t->depth_x = (ab * static_cast<double>(ac_y) - ac * static_cast<double>(ab_y)) * share;
  t->depth_y = (ac * static_cast<double>(ab_x) - ab * static_cast<double>(ac_x)) * share;
  t->x0 = static_cast<double>(a.x);
  t->y0 = static_cast<double>(a.y);
  return true;
}

// ---- Triangles with vertices that have no place ------------------------------------------------

struct ClipVertex {
  double x, y, z, w;
};

template <class T>
FASTSHAPE_HOST_DEVICE ClipVertex load_clip(const T* clip) {
  return {static_cast<double>(clip[0]), static_cast<double>(clip[1]), static_cast<double>(clip[2]),
          static_cast<double>(clip[3])};
}

// All of the triangle lies beyond one of the six planes of the view, or a number is not finite.
FASTSHAPE_HOST_DEVICE bool is_out_of_view(const ClipVertex* v) {
  bool left = true, right = true, below = true, above = true, before = true, behind = true;
  bool finite = true, none = true;
  for (int i = 0; i < 3; ++i) {
    finite = finite && is_finite_number(((v[i].x * 0.0 + v[i].y * 0.0) + v[i].z * 0.0) + v[i].w);
    none = none && v[i].w <= 0.0;
    left = left && v[i].x < -v[i].w;
    right = right && v[i].x > v[i].w;
    below = below && v[i].y < -v[i].w;
    above = above && v[i].y > v[i].w;
    before = before && v[i].z < -v[i].w;
    behind = behind && v[i].z > v[i].w;
  }
  return !finite || none || left || right || below || above || before || behind;
}

// The edge from a vertex with a place to one without: its line, with the direction as integers.
FASTSHAPE_HOST_DEVICE bool direction_to(const SnappedVertex& from, const ClipVertex& to,
                                        const ImageScale& scale, int64_t* x, int64_t* y) {
  constexpr double kLimit = 536870912.0;  // 2^29
  const double dx = (to.x + to.w) * scale.scale_x - static_cast<double>(from.x) * to.w;
  const double dy = (to.w - to.y) * scale.scale_y - static_cast<double>(from.y) * to.w;
  const double longest = magnitude(dx) > magnitude(dy) ? magnitude(dx) : magnitude(dy);
  if (!(longest > kNoLength) || !is_finite_number(longest)) return false;
  const double factor = scale_to(longest, kLimit);
  *x = static_cast<int64_t>(round_even(dx * factor));
  *y = static_cast<int64_t>(round_even(dy * factor));
  return true;
}

FASTSHAPE_HOST_DEVICE bool set_far_edge(Triangle* t, int k, const ClipVertex& p,
                                        const ClipVertex& q, const ImageScale& scale) {
  constexpr double kLimit = 68719476736.0;         // 2^36
  constexpr double kMost = 2305843009213693952.0;  // 2^61: so far off that no pixel is on its side
  const double px = (p.x + p.w) * scale.scale_x, py = (p.w - p.y) * scale.scale_y;
  const double qx = (q.x + q.w) * scale.scale_x, qy = (q.w - q.y) * scale.scale_y;
  const double a = py * q.w - p.w * qy, b = p.w * qx - px * q.w, c = px * qy - py * qx;
  if (!is_finite_number(a) || !is_finite_number(b) || !is_finite_number(c)) return false;
  const double steepest = magnitude(a) > magnitude(b) ? magnitude(a) : magnitude(b);
  if (!(steepest > kNoLength)) {
    if (c == 0.0) return false;
    t->a[k] = t->b[k] = 0;
    t->c[k] = static_cast<int64_t>(c > 0.0 ? kMost : -kMost);
    return true;
  }
  const double factor = scale_to(steepest, kLimit);
  const double scaled = c * factor;
  t->a[k] = static_cast<int64_t>(round_even(a * factor));
  t->b[k] = static_cast<int64_t>(round_even(b * factor));
  if (!(magnitude(scaled) < kMost))
    t->c[k] = static_cast<int64_t>(scaled > 0.0 ? kMost : -kMost);
  else  // from 2^51 on it is an integer already, or all but one
    t->c[k] = static_cast<int64_t>(magnitude(scaled) < 1e15 ? round_even(scaled) : scaled);
  return true;
}

// Any triangle of finite vertices. Its box is the image.
FASTSHAPE_HOST_DEVICE bool set_up_general(const ClipVertex* v, const SnappedVertex* s,
                                          const ImageScale& scale, Triangle* t) {
  if (is_out_of_view(v)) return false;
  t->first_row = t->first_column = 0;
  t->last_row = static_cast<int32_t>(scale.height) - 1;
  t->last_column = static_cast<int32_t>(scale.width) - 1;
  int placed = -1;
  for (int k = 0; k < 3; ++k) {
    const int i = k, j = k == 2 ? 0 : k + 1;
    int64_t x, y;
    if (s[i].x != kNotSnapped) {
      placed = placed < 0 ? i : placed;
      if (s[j].x != kNotSnapped) {
        x = static_cast<int64_t>(s[j].x) - s[i].x;
        y = static_cast<int64_t>(s[j].y) - s[i].y;
      } else if (!direction_to(s[i], v[j], scale, &x, &y)) {
        return false;
      }
      set_edge(t, k, x, y, s[i]);
    } else if (s[j].x != kNotSnapped) {
      if (!direction_to(s[j], v[i], scale, &x, &y)) return false;
      set_edge(t, k, -x, -y, s[j]);
    } else if (!set_far_edge(t, k, v[i], v[j], scale)) {
      return false;
    }
  }

  // x, y, w with the origin in the middle of the image.
  double x[3], y[3];
  for (int i = 0; i < 3; ++i) {
    x[i] = v[i].x * scale.scale_x;
    y[i] = -v[i].y * scale.scale_y;
  }
  double normal_x = 0.0, normal_y = 0.0, normal_w = 0.0, volume = 0.0;
  for (int i = 0; i < 3; ++i) {
    const int j = i == 2 ? 0 : i + 1, k = j == 2 ? 0 : j + 1;
    const double cross_x = y[j] * v[k].w - v[j].w * y[k];
    const double cross_y = v[j].w * x[k] - x[j] * v[k].w;
    const double cross_w = x[j] * y[k] - y[j] * x[k];
    normal_x += v[i].z * cross_x;
    normal_y += v[i].z * cross_y;
    normal_w += v[i].z * cross_w;
    if (i == 0) volume = (x[0] * cross_x + y[0] * cross_y) + v[0].w * cross_w;
  }
  if (volume == 0.0 || !is_finite_number(1.0 / volume)) return false;

  bool turned = volume < 0.0;
  if (placed >= 0) {  // by the integers, which decide what is covered
    const int before = placed == 0 ? 2 : placed - 1;
    const int64_t area = t->b[placed] * t->a[before] - t->a[placed] * t->b[before];
    if (area == 0) return false;
    turned = area < 0;
  }
  settle_edges(t, turned);
  t->depth_x = normal_x / volume * (kFarthest / 2.0);
  t->depth_y = normal_y / volume * (kFarthest / 2.0);
  t->depth = (normal_w / volume + 1.0) * (kFarthest / 2.0);
  t->x0 = scale.scale_x;
  t->y0 = scale.scale_y;
  t->nearest = -kFarthest;  // the planes decide
  t->farthest = 2.0 * kFarthest;
  return is_finite_number((t->depth + t->depth_x) + t->depth_y);
}

// ---- What covers and how deep ------------------------------------------------------------------

template <class T>
FASTSHAPE_HOST_DEVICE bool set_up_triangle(const T* vertices, const SnappedVertex* snapped,
                                           const int64_t* corners, const ImageScale& scale,
                                           Triangle* t) {
  const SnappedVertex a = snapped[corners[0]], b = snapped[corners[1]], c = snapped[corners[2]];
  if (is_snapped(a, b, c)) return triangle_box(a, b, c, scale, t) && set_up_snapped(a, b, c, t);
  const ClipVertex clip[3] = {load_clip(vertices + 4 * corners[0]),
                              load_clip(vertices + 4 * corners[1]),
                              load_clip(vertices + 4 * corners[2])};
  const SnappedVertex places[3] = {a, b, c};
  return set_up_general(clip, places, scale, t);
}

FASTSHAPE_HOST_DEVICE bool has_corners(const int64_t* corners, int64_t num_vertices) {
  for (int k = 0; k < 3; ++k)
    if (corners[k] < 0 || corners[k] >= num_vertices) return false;
  return true;
}

FASTSHAPE_HOST_DEVICE int64_t center(int64_t pixel) { return pixel * kSubpixels + kSubpixels / 2; }

// The edge's number at the center of a pixel.
FASTSHAPE_HOST_DEVICE int64_t edge_at(const Triangle& t, int k, int64_t row, int64_t column) {
  return (t.a[k] * center(column) + t.b[k] * center(row)) + t.c[k];
}

FASTSHAPE_HOST_DEVICE double row_depth(const Triangle& t, int64_t row) {
  return t.depth + t.depth_y * (static_cast<double>(center(row)) - t.y0);
}

// In [0, 2^32 - 1], to be rounded; false beyond the near and the far plane.
FASTSHAPE_HOST_DEVICE bool pixel_depth(const Triangle& t, double in_row, double x, double* depth) {
  double value = in_row + t.depth_x * (x - t.x0);
  value = value > t.nearest ? value : t.nearest;
  value = value < t.farthest ? value : t.farthest;
  *depth = value;
  return value >= 0.0 && value <= kFarthest;
}

// What the visibility buffer keeps the smallest of: the nearest, then the lowest face.
FASTSHAPE_HOST_DEVICE uint64_t visibility_key(double depth, uint32_t face) {
  return static_cast<uint64_t>(round_even(depth)) << 32 | face;
}

constexpr uint64_t kNothing = ~uint64_t{0};

// The columns of a row that are covered; false: none.
FASTSHAPE_HOST_DEVICE bool covered_columns(const Triangle& t, int64_t row, int64_t* first,
                                           int64_t* last) {
  int64_t begin = t.first_column, end = t.last_column;
  for (int k = 0; k < 3; ++k) {
    const int64_t at_zero = edge_at(t, k, row, 0), step = t.a[k] * kSubpixels;
    if (step > 0) {
      if (at_zero < 0) {
        const int64_t bound = (-at_zero + step - 1) / step;
        begin = bound > begin ? bound : begin;
      }
    } else {
      if (at_zero < 0) return false;
      if (step < 0) {
        const int64_t bound = at_zero / -step;
        end = bound < end ? bound : end;
      }
    }
  }
  *first = begin;
  *last = end;
  return begin <= end;
}

}  // namespace fastshape
