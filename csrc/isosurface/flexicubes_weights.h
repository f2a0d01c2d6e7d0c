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
  const T* raw;
  int64_t count;
  bool sigmoid;  // gamma
  T* weights;
};

// Of x <= 0. Below -87 the result would be no normal number, and is not needed: it is added to one.
FASTSHAPE_HOST_DEVICE float exp_of_negative(float x) {
  const float bounded = x > -87.0f ? x : -87.0f;
  const int power = static_cast<int>(bounded * 1.44269504f - 0.5f);  // rounds, as x is negative
  const float n = static_cast<float>(power);
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float sum = 1.0f / 5040.0f;                                         // of the exponential's series
  sum = sum * r + 1.0f / 720.0f;
  sum = sum * r + 1.0f / 120.0f;
  sum = sum * r + 1.0f / 24.0f;
  sum = sum * r + 1.0f / 6.0f;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const int32_t bits = (power + 127) << 23;
  float scale;
  memcpy(&scale, &bits, sizeof(scale));
  return sum * scale;
}
FASTSHAPE_HOST_DEVICE double exp_of_negative(double x) { return exp(x); }

template <class T>
FASTSHAPE_HOST_DEVICE T activated(T raw, bool sigmoid) {
  const T magnitude = raw < T(0) ? -raw : raw;
  const T e = exp_of_negative(sigmoid ? -magnitude : T(-2) * magnitude);
  const T upper = (sigmoid ? T(1) : T(1) - e) / (T(1) + e);  // of |raw|
  const T lower = sigmoid ? e / (T(1) + e) : -upper;         // of -|raw|
  const T value = T(0.99) * (raw < T(0) ? lower : upper) + (sigmoid ? T(0.005) : T(1));
  return raw == raw ? value : raw;
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
