// FlexiCubes' weights from what a network gives: alpha, beta = 0.99 tanh(w) + 1 and
// gamma = 0.99 sigmoid(w) + 0.005.
//
// In float both come from one exponential of our own, in additions and multiplications that are the
// same on every device and in every vector width, as are then the vertices.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace fastshape {

template <class T>
struct FlexiCubesWeights {
  const T* raw;         // (N, width)
  const int64_t* rows;  // (num_rows,) those that are asked for
  int64_t num_rows, width;
  bool sigmoid;  // gamma
  T* weights;    // (num_rows, width)
};

// Of x <= 0. Below -87 the result would be no normal number, and is not needed: it is added to one.
// Without branches, so that compilers make vectors of it; NaN stays NaN.
FASTSHAPE_HOST_DEVICE float exp_of_negative(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  const float bounded = -87.0f > x ? -87.0f : x;
  const float shifted = bounded * 1.44269504f + kShift, n = shifted - kShift;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float sum = 1.0f / 5040.0f;                                         // of the exponential's series
  sum = sum * r + 1.0f / 720.0f;
  sum = sum * r + 1.0f / 120.0f;
  sum = sum * r + 1.0f / 24.0f;
  sum = sum * r + 1.0f / 6.0f;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  uint32_t bits;  // of 2^n, from those of `shifted`
  memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits - 0x4b400000u + 127u) << 23;
  float scale;
  memcpy(&scale, &bits, sizeof(scale));
  return sum * scale;
}
FASTSHAPE_HOST_DEVICE double exp_of_negative(double x) { return exp(x); }

FASTSHAPE_HOST_DEVICE float with_sign(float x, float sign) { return copysignf(x, sign); }
FASTSHAPE_HOST_DEVICE double with_sign(double x, double sign) { return copysign(x, sign); }

// sigmoid(w) = (1 + tanh(w / 2)) / 2.
template <class T>
FASTSHAPE_HOST_DEVICE T activated(T raw, bool sigmoid) {
  const T e = exp_of_negative((sigmoid ? T(1) : T(2)) * with_sign(raw, T(-1)));
  const T tangent = with_sign((T(1) - e) / (T(1) + e), raw);
  return (sigmoid ? T(0.495) : T(0.99)) * tangent + (sigmoid ? T(0.5) : T(1));
}

// The derivative of `activated`, from what it gave.
template <class T>
FASTSHAPE_HOST_DEVICE T activation_slope(T weight, bool sigmoid) {
  const T tangent = (weight - (sigmoid ? T(0.5) : T(1))) / (sigmoid ? T(0.495) : T(0.99));
  return (sigmoid ? T(0.2475) : T(0.99)) * (T(1) - tangent * tangent);
}

namespace cpu {
template <class T>
void flexicubes_weights(const FlexiCubesWeights<T>& task);
}  // namespace cpu

namespace cuda {
template <class T>
void flexicubes_weights(const FlexiCubesWeights<T>& task, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
