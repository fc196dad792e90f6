// Functions that CUDA's library lacks, or does not have to 4 units in the last place. Those for
// double are plain: it is for proof.
#pragma once
#include <bit>
#include <cmath>

#include "cuda/launch.cuh"

namespace convgrad::cuda {
namespace {

// 2^n for -126 <= n <= 127; for other n some number, which only NaN arguments ask for.
__device__ inline float two_to(int n) { return std::bit_cast<float>(unsigned(n + 127) << 23); }

// e^(high + low), low being what rounding lost of high: the exponential would magnify it.
__device__ inline float exponential(float high, float low = 0) {
  constexpr float kLog2e = 1.44269504f, kRound = 0x1.8p23f;
  constexpr float kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;  // n * kLn2Hi is exact
  float x = high > 89.0f ? 89.0f : high;                            // both bounds give infinity
  x = x < -110.0f ? -110.0f : x;                                    // and 0 of themselves
  const float n = (x * kLog2e + kRound) - kRound;                   // the nearest whole number
  const float r = ((x - n * kLn2Hi) - n * kLn2Lo) + low;            // |r| <= ln(2) / 2
  float q = 1.39506033e-3f * r + 8.36895313e-3f;                    // (e^r - 1 - r) / r^2, minimax
  q = q * r + 4.1666206e-2f;
  q = q * r + 0.166665182f;
  q = q * r + 0.5f;
  // Two exact scalings, then one rounding if the result is subnormal.
  const int whole = int(n), half = whole >> 1;
  return (r * r * q + r + 1.0f) * two_to(half) * two_to(whole - half);
}
__device__ inline double exponential(double high, double low = 0) {
  return std::exp(high) * (1 + low);
}

template <class T>
__device__ T sigmoid(T x) {
  const T e = exponential(-std::abs(x));
  return (x >= T(0) ? T(1) : e) / (T(1) + e);
}

// e^(-a^2 / 2), a >= 0, with the rounding of a^2 made good.
template <class T>
__device__ T bell(T a) {
  constexpr T kZeroFrom = sizeof(T) == 4 ? T(15) : T(40);
  a = a > kZeroFrom ? kZeroFrom : a;
  const T square = a * a;
  return exponential(T(-0.5) * square, T(-0.5) * std::fma(a, a, -square));
}

// For X ~ N(0, 1) and a >= 0: P(X > a) = tail_ratio(a, g) g e^(-a^2 / 2), g = 1 / (1 + a / 4), a
// minimax fit up to 14.6, where it underflows. Its last steps are as exact as V is.
template <class V>
__device__ V tail_ratio(V a, V g) {
  const V exact = (V(0.390625f) - V(0.15234375f) * a) * g;
  const float v = float(exact);
  float p = 1.69514362e-2f * v + 2.81023886e-2f;
  p = p * v - 3.29376608e-2f;
  p = p * v - 8.89612362e-2f;
  p = p * v + 1.18473116e-2f;
  p = p * v + 0.262301087f;
  p = p * v + 0.484245569f;
  p = p * v + 0.527536631f;
  return (V(p) * exact + V(0.403324425f)) * exact + V(0.227220431f);
}
// P(X > a) for 0 <= a <= 0.7
__device__ inline float centre_tail(float a) {
  const float z = a * a;
  float p = 1.04465632e-4f * z - 1.18269597e-3f;
  p = p * z + 9.97275021e-3f;
  p = p * z - 6.64903298e-2f;
  return 0.5f - a * (p * z + 0.398942292f);
}

// P(X > a), a >= 0, given e^(-a^2 / 2).
__device__ inline float normal_tail(float a, float bell_of_a) {
  if (a < 0.7f) return centre_tail(a);
  const float g = 1.0f / (1.0f + 0.25f * a);
  return tail_ratio(a, g) * g * bell_of_a;
}
__device__ inline double normal_tail(double a, double) {
  return 0.5 * std::erfc(0.7071067811865476 * a);
}
// a P(X > a). The last steps are in double, or their roundings would add up to more than 4 ULP.
__device__ inline float times_normal_tail(float a) {
  if (a < 0.7f) return a * centre_tail(a);
  const double w = a, g = 1 / (1 + 0.25 * w);
  return float(w * g * tail_ratio(w, g) * bell(a));
}
__device__ inline double times_normal_tail(double a) { return a * normal_tail(a, 0.0); }

}  // namespace
}  // namespace convgrad::cuda
