// A codebook made ready for searching: centered, scaled, cut into panels of 16 codes.
//
// A vector x belongs to the code e with the least |x - e|^2, which is where |e|^2 / 2 - x.e is
// least. That difference cancels where x and the codes lie far from the origin beside the distances
// between them, so both are taken from the codes' mean; and they are multiplied by the power of two
// that brings the largest component of a code into [1/2, 1), so that no scale of codes over- or
// underflows. By cosine the codes are brought to length one instead, and |e|^2 / 2 is left out.
//
// Every result has the same bits on every device and instruction set: one order of operations, no
// fused multiply-add.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "core/workspace.h"

namespace fastshape {

constexpr int kPanel = 16;       // codes side by side
constexpr int kMeanLanes = 256;  // partial sums of the mean
constexpr int kMaxCodeDim = 256;
constexpr int64_t kMaxCodes = 65536;
constexpr int kMaxTop = 32;  // nearest codes of one vector

template <class T>
struct Codebook {
  const T* codes;  // (num_codes, dim)
  int64_t num_codes;
  int dim;
  bool cosine;
};

// What searching reads. Codes beyond the last have half = infinity, which nothing is nearest to.
template <class T>
struct PackedCodebook {
  T* center;   // (dim,)
  T* largest;  // (dim,): magnitudes of the centered codes' components
  T* scale;    // (1,)
  T* half;     // (panels, 16): |e|^2 / 2
  T* panels;   // (panels, dim, 16)
  int64_t num_codes, num_panels;
  int dim;
};

template <class T>
PackedCodebook<T> take_packed_codebook(WorkspaceCutter& cutter, int64_t num_codes, int dim) {
  PackedCodebook<T> packed{};
  packed.num_codes = num_codes;
  packed.num_panels = (num_codes + 2 * kPanel - 1) / (2 * kPanel) * 2;  // in pairs
  packed.dim = dim;
  packed.center = cutter.take<T>(dim);
  packed.largest = cutter.take<T>(dim);
  packed.scale = cutter.take<T>(1);
  packed.half = cutter.take<T>(packed.num_panels * kPanel);
  packed.panels = cutter.take<T>(packed.num_panels * kPanel * dim);
  return packed;
}

// 2^-e for the e with |largest| in [2^(e - 1), 2^e); 1 for zero and what is not finite.
template <class T>
FASTSHAPE_HOST_DEVICE T scale_of(T largest) {
  const double value = static_cast<double>(largest);
  if (!(value > 0) || !(value < HUGE_VAL)) return T(1);
  int exponent = 0;
  frexp(value, &exponent);
  // 2^-e stays a normal number of the type.
  const int most = sizeof(T) == 4 ? 120 : 1000;
  exponent = exponent > most ? most : exponent < -most ? -most : exponent;
  return static_cast<T>(ldexp(1.0, -exponent));
}

template <class T>
FASTSHAPE_HOST_DEVICE T larger_magnitude(T most, T value) {
  const T magnitude = value < T(0) ? -value : value;
  return magnitude > most ? magnitude : most;  // NaN changes nothing
}

// After `center` and `largest` are there; by cosine both are zero.
template <class T>
FASTSHAPE_HOST_DEVICE T scale_of_codes(const PackedCodebook<T>& packed) {
  T most = T(0);
  for (int i = 0; i < packed.dim; ++i) most = larger_magnitude(most, packed.largest[i]);
  return scale_of(most);
}

// One code into its place.
template <class T>
FASTSHAPE_HOST_DEVICE void pack_code(const Codebook<T>& book, const PackedCodebook<T>& packed,
                                     T scale, int64_t code) {
  const int64_t panel = code / kPanel;
  T* const out = packed.panels + panel * kPanel * book.dim + code % kPanel;
  T* const half = packed.half + code;
  if (code >= book.num_codes) {
    for (int i = 0; i < book.dim; ++i) out[i * kPanel] = T(0);
    *half = static_cast<T>(HUGE_VAL);
    return;
  }
  const T* const e = book.codes + code * book.dim;
  T factor = scale;
  if (book.cosine) {  // its own power of two first: the squares are then neither lost nor infinite
    T most = T(0);
    for (int i = 0; i < book.dim; ++i) most = larger_magnitude(most, e[i]);
    factor = scale_of(most);
  }
  T sum = T(0);
  for (int i = 0; i < book.dim; ++i) {
    const T value = (e[i] - packed.center[i]) * factor;
    out[i * kPanel] = value;
    sum = sum + value * value;
  }
  if (!book.cosine) {
    *half = T(0.5) * sum;
    return;
  }
  *half = T(0);
  const T length = static_cast<T>(sqrt(sum));
  if (!(length > T(0))) return;  // a code of zeros has the cosine 0 with everything
  for (int i = 0; i < book.dim; ++i) out[i * kPanel] = out[i * kPanel] / length;
}

namespace cpu {
template <class T>
void pack_codebook(const Codebook<T>& book, const PackedCodebook<T>& packed);
}  // namespace cpu

namespace cuda {
template <class T>
void pack_codebook(const char* op, const Codebook<T>& book, const PackedCodebook<T>& packed,
                   cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
