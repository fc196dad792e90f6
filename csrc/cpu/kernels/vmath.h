// Transcendental functions on vectors: vexp, vexpm1, vlog, vlog1p, vtanh, vsigmoid, verf, vsqrt.
//
// Vec<float>: within 4 ULP of the exact value everywhere (tests/test_activation.py), subnormal
// arguments and results, signed zeros, infinities and NaN included. The polynomials are minimax
// fits made for these ranges (Remez exchange on 40 digits). Vec<double>: libm, lane by lane.
#pragma once
#include <cmath>

#include "vec.h"

namespace convgrad::cpu {
namespace {

typedef Vec<float> F32;
typedef Vec<int32_t> I32;
// As many doubles as there are float lanes: for arguments whose rounding an exponential magnifies.
typedef double Wide __attribute__((vector_size(2 * kVectorBytes)));
constexpr float kInf = __builtin_inff();

inline I32 bits_of(F32 x) { return (I32)x; }
inline F32 from_bits(I32 x) { return (F32)x; }
inline F32 vabs(F32 x) { return from_bits(bits_of(x) & 0x7fffffff); }
inline F32 with_sign_of(F32 sign, F32 magnitude) {
  return from_bits(bits_of(magnitude) | (bits_of(sign) & INT32_MIN));
}
// 2^n for -126 <= n <= 127; for other n some number, which only NaN arguments ask for.
inline F32 two_to(I32 n) { return from_bits((n + 127) << 23); }
inline Wide widen(F32 x) { return __builtin_convertvector(x, Wide); }
inline F32 narrow(Wide x) { return __builtin_convertvector(x, F32); }

// x rounded to whole numbers, |x| < 2^22; NaN gives some number.
constexpr float kRound = 0x1.8p23f;
inline I32 round_bits(F32 x_plus_round) { return bits_of(x_plus_round) - 0x4b400000; }

constexpr float kLog2e = 1.44269504f;
constexpr float kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;  // n * kLn2Hi is exact

// (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2
inline F32 exp_tail(F32 r) {
  F32 q = 1.39506033e-3f * r + 8.36895313e-3f;
  q = q * r + 4.1666206e-2f;
  q = q * r + 0.166665182f;
  return q * r + 0.5f;
}
// e^r 2^n, |r| <= ln(2) / 2, -240 <= n <= 128: two exact scalings, then one rounding if subnormal.
inline F32 exp_scaled(F32 r, I32 n) {
  const I32 half = n >> 1;
  return (r * r * exp_tail(r) + r + 1.0f) * two_to(half) * two_to(n - half);
}

inline F32 vexp(F32 x) {
  x = x < -104.0f ? broadcast(-104.0f) : x;  // both bounds give 0 and inf of themselves
  x = x > 89.0f ? broadcast(89.0f) : x;
  const F32 shifted = x * kLog2e + kRound;
  const F32 n = shifted - kRound;
  return exp_scaled((x - n * kLn2Hi) - n * kLn2Lo, round_bits(shifted));
}
// e^(-scale x^2), scale x^2 <= 160. x^2 is taken in two parts, the first exact because it squares
// x's upper 12 bits alone: rounding x^2 would cost up to 50 ULP.
inline F32 exp_minus_square(F32 x, float scale) {
  const F32 upper = from_bits(bits_of(x) & ~0xfff);
  const F32 high = -scale * upper * upper, low = -scale * (x - upper) * (x + upper);
  const F32 shifted = high * kLog2e + kRound;
  const F32 n = shifted - kRound;
  return exp_scaled((high - n * kLn2Hi) + (low - n * kLn2Lo), round_bits(shifted));
}
// The same of an argument in double, -160 <= x <= 88.
inline F32 vexp(Wide x) {
  const Wide n = (x * 1.4426950408889634 + 0x1.8p52) - 0x1.8p52;
  return exp_scaled(narrow(x - n * 0.6931471805599453), round_bits(narrow(n) + kRound));
}

// e^x - 1 = 2^n (e^r - 1) + (2^n - 1), computed at half its size because 2^128 overflows.
inline F32 vexpm1(F32 x) {
  F32 clamped = x < -40.0f ? broadcast(-40.0f) : x;
  clamped = clamped > 89.0f ? broadcast(89.0f) : clamped;
  const F32 shifted = clamped * kLog2e + kRound;
  const F32 n = shifted - kRound;
  const F32 r = (clamped - n * kLn2Hi) - n * kLn2Lo;
  const F32 scale = two_to(round_bits(shifted) - 1);
  const F32 y = (scale * (r * r * exp_tail(r) + r) + (scale - 0.5f)) * 2.0f;
  return vabs(x) < 0x1p-25f ? x : y;
}

// log(m 2^e) = e ln(2) + log(1 + f), m = 1 + f in [sqrt(1/2), sqrt(2)); `low` is added to the sum.
inline F32 log_normal(F32 x, F32 exponent_shift, F32 low) {
  constexpr int32_t kSqrtHalf = 0x3f3504f3;
  const I32 above = bits_of(x) - kSqrtHalf;
  const F32 e = __builtin_convertvector(above >> 23, F32) + exponent_shift;
  const F32 f = from_bits((above & 0x7fffff) + kSqrtHalf) - 1.0f;
  F32 p = 6.91589713e-2f * f - 0.117941849f;
  p = p * f + 0.118749842f;
  p = p * f - 0.123837776f;
  p = p * f + 0.142183378f;
  p = p * f - 0.166692719f;
  p = p * f + 0.200022414f;
  p = p * f - 0.249999866f;
  p = p * f + 0.333333105f;
  const F32 ff = f * f;
  const F32 tail = ff * f * p - 0.5f * ff;
  return e * kLn2Hi + (f + (tail + (e * kLn2Lo + low)));
}
// What log gives where its argument is 0, negative, infinite or NaN.
inline F32 log_edges(F32 x, F32 y) {
  y = x < 0.0f ? broadcast(__builtin_nanf("")) : y;
  y = x == 0.0f ? broadcast(-kInf) : y;
  return x < kInf ? y : x;
}

inline F32 vlog(F32 x) {
  const I32 subnormal = x < 0x1p-126f;
  const F32 normal = subnormal ? x * 0x1p23f : x;
  const F32 shift = subnormal ? broadcast(-23.0f) : F32{};
  return log_edges(x, log_normal(normal, shift, F32{}));
}
inline F32 vlog1p(F32 x) {
  const F32 u = 1.0f + x;
  const F32 lost = x - (u - 1.0f);  // what rounding u dropped, exactly
  const F32 y = log_edges(u, log_normal(u, F32{}, lost / u));
  return vabs(x) < 0x1p-25f ? x : y;
}

inline F32 vsigmoid(F32 x) {
  const F32 e = vexp(-vabs(x));
  return (x >= 0.0f ? broadcast(1.0f) : e) / (1.0f + e);
}

inline F32 vtanh(F32 x) {
  const F32 a = vabs(x), z = x * x;
  F32 p = 2.14754255e-3f * z - 8.18268023e-3f;
  p = p * z + 2.17029694e-2f;
  p = p * z - 5.39472066e-2f;
  p = p * z + 0.133332103f;
  p = p * z - 0.333333313f;
  const F32 small = a * z * p + a;
  const F32 large = 1.0f - 2.0f / (vexp(2.0f * a) + 1.0f);
  return with_sign_of(x, a < 0.625f ? small : large);
}

// For X ~ N(0, 1) and a >= 0: P(X > a) = tail_ratio(a) / (1 + a / 4) e^(-a^2 / 2), fitted up
// to 14.6, where it underflows. Nothing cancels in it.
inline F32 tail_ratio(F32 a) {
  const F32 v = (0.390625f - 0.15234375f * a) / (1.0f + 0.25f * a);
  F32 p = 1.69514362e-2f * v + 2.81023886e-2f;
  p = p * v - 3.29376608e-2f;
  p = p * v - 8.89612362e-2f;
  p = p * v + 1.18473116e-2f;
  p = p * v + 0.262301087f;
  p = p * v + 0.484245569f;
  p = p * v + 0.527536631f;
  p = p * v + 0.403324425f;
  return p * v + 0.227220431f;
}
// (P(X <= a) - 1/2) / a, |a| <= 0.7
inline F32 centre_ratio(F32 a) {
  const F32 z = a * a;
  F32 p = 1.04465632e-4f * z - 1.18269597e-3f;
  p = p * z + 9.97275021e-3f;
  p = p * z - 6.64903298e-2f;
  return p * z + 0.398942292f;
}
// e^(-a^2 / 2), and P(X > a) given it.
inline F32 bell(F32 a) { return exp_minus_square(a > 15.0f ? broadcast(15.0f) : a, 0.5f); }
inline F32 normal_tail(F32 a, F32 bell_of_a) {
  const F32 large = tail_ratio(a) / (1.0f + 0.25f * a) * bell_of_a;
  return a < 0.7f ? 0.5f - a * centre_ratio(a) : large;
}
// a P(X > a). The last products are in double, or their roundings would add up to more than 4 ULP.
inline F32 times_normal_tail(F32 a) {
  const Wide w = widen(a), bounded = widen(a > 15.0f ? broadcast(15.0f) : a);
  const Wide e = widen(vexp(-0.5 * bounded * bounded));
  const F32 large = narrow(w * widen(tail_ratio(a)) / (1.0 + 0.25 * w) * e);
  return a < 0.7f ? a * (0.5f - a * centre_ratio(a)) : large;
}

// sigmoid(2 k (x + q x^3)), the gate of GELU's approximation by tanh.
constexpr double kGeluScale = 0.7978845608028654, kGeluCubic = 0.044715;
inline F32 gelu_gate(F32 x) {
  F32 a = vabs(x);
  a = a > 11.0f ? broadcast(11.0f) : a;  // gives 0 and 1 of itself
  const Wide w = widen(a);
  const F32 e = vexp(w * (-2.0 * kGeluScale - 2.0 * kGeluScale * kGeluCubic * (w * w)));
  return (x >= 0.0f ? broadcast(1.0f) : e) / (1.0f + e);
}

// x tanh(log(1 + e)) = x n / (n + 2), n = e (e + 2), e = e^x; x itself, in float, from 20 on. In
// doubles after the exponential, or the roundings would add up to more than 4 ULP.
inline F32 vmish(F32 x) {
  const Wide e = widen(vexp(x > 20.0f ? broadcast(20.0f) : x)), n = e * (e + 2.0);
  return narrow(widen(x) * n / (n + 2.0));
}

inline F32 verf(F32 x) {
  const F32 a = vabs(x) > 10.0f ? broadcast(10.0f) : vabs(x), z = a * a;
  F32 p = 8.53883976e-5f * z - 8.18192726e-4f;
  p = p * z + 5.2044359e-3f;
  p = p * z - 2.68607531e-2f;
  p = p * z + 0.112837195f;
  p = p * z - 0.376126349f;
  p = p * z + 0.128379166f;
  const F32 large = 1.0f - 2.0f * tail_ratio(1.41421356f * a) / (1.0f + 0.353553391f * a) *
                               exp_minus_square(a, 1.0f);
  return with_sign_of(x, a < 0.9f ? a * p + a : large);
}

// ---- double: libm ----

#define CONVGRAD_BY_LANE(name, call)                            \
  inline Vec<double> name(Vec<double> x) {                      \
    for (int i = 0; i < kLanes<double>; ++i) x[i] = call(x[i]); \
    return x;                                                   \
  }
CONVGRAD_BY_LANE(vabs, __builtin_fabs)
CONVGRAD_BY_LANE(vexp, __builtin_exp)
CONVGRAD_BY_LANE(vexpm1, __builtin_expm1)
CONVGRAD_BY_LANE(vlog, __builtin_log)
CONVGRAD_BY_LANE(vlog1p, __builtin_log1p)
CONVGRAD_BY_LANE(vtanh, __builtin_tanh)
CONVGRAD_BY_LANE(verf, __builtin_erf)
CONVGRAD_BY_LANE(vsqrt, __builtin_sqrt)
#undef CONVGRAD_BY_LANE

inline F32 vsqrt(F32 x) {
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}
inline Vec<double> vsigmoid(Vec<double> x) {
  const Vec<double> e = vexp(-vabs(x));
  return (x >= 0.0 ? broadcast(1.0) : e) / (1.0 + e);
}

inline Vec<double> bell(Vec<double> a) { return vexp(-0.5 * a * a); }
inline Vec<double> normal_tail(Vec<double> a, Vec<double>) {
  for (int i = 0; i < kLanes<double>; ++i) a[i] = 0.5 * __builtin_erfc(0.7071067811865476 * a[i]);
  return a;
}

inline Vec<double> times_normal_tail(Vec<double> a) { return a * normal_tail(a, a); }
inline Vec<double> gelu_gate(Vec<double> x) {
  return vsigmoid(2.0 * kGeluScale * (x + kGeluCubic * x * x * x));
}

inline Vec<double> vmish(Vec<double> x) {
  const Vec<double> e = vexp(x > 40.0 ? broadcast(40.0) : x), n = e * (e + 2.0);
  return x * n / (n + 2.0);
}

}  // namespace
}  // namespace convgrad::cpu
