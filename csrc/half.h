// 16-bit floating-point numbers: how they lie in memory. All arithmetic on them is float's, to
// which they convert; back it takes T(v), which rounds to nearest, ties to even, and keeps NaN.
//
// On a GPU by its instructions, on the host in integers: the same bits.
#pragma once
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define CONVGRAD_ANYWHERE __host__ __device__
#else
#define CONVGRAD_ANYWHERE
#endif

#include <bit>
#include <cstdint>

namespace convgrad {

// A sign, 8 bits of exponent, 7 of mantissa: the upper half of a float.
struct bfloat16 {
  uint16_t bits;

  bfloat16() = default;
  CONVGRAD_ANYWHERE explicit bfloat16(float x) : bits(rounded(x)) {}
  CONVGRAD_ANYWHERE operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }

 private:
  CONVGRAD_ANYWHERE static uint16_t rounded(float x) {
#if defined(__CUDA_ARCH__)
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
    if (x != x) return 0x7fff;
    const uint32_t b = std::bit_cast<uint32_t>(x);
    return uint16_t((b + 0x7fffu + (b >> 16 & 1)) >> 16);
#endif
  }
};

// IEEE 754's binary16: a sign, 5 bits of exponent, 10 of mantissa.
struct float16 {
  uint16_t bits;

  float16() = default;
  CONVGRAD_ANYWHERE explicit float16(float x) : bits(rounded(x)) {}
  CONVGRAD_ANYWHERE operator float() const {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(bits));
#else
    const uint32_t sign = uint32_t{bits & 0x8000u} << 16, exponent = bits >> 10 & 31;
    const uint32_t mantissa = bits & 1023;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
    if (exponent > 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(float(mantissa) * 0x1p-24f));
#endif
  }

 private:
  CONVGRAD_ANYWHERE static uint16_t rounded(float x) {
#if defined(__CUDA_ARCH__)
    return __half_as_ushort(__float2half_rn(x));
#else
    const uint32_t b = std::bit_cast<uint32_t>(x), sign = b >> 16 & 0x8000, size = b & 0x7fffffff;
    if (x != x) return 0x7fff;
    // From halfway between the largest number and the next on.
    if (size >= std::bit_cast<uint32_t>(65520.0f)) return uint16_t(sign | 0x7c00);
    // Subnormal numbers are multiples of 2^-24, float's unit in the last place at a half.
    if (size < std::bit_cast<uint32_t>(0x1p-14f))
      return uint16_t(sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0.5f) -
                              std::bit_cast<uint32_t>(0.5f)));
    return uint16_t(sign | (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13);
#endif
  }
};
#undef CONVGRAD_ANYWHERE

// What belongs to arrays of T but would be ruined by 16 bits, statistics and losses among them, and
// what kernels compute in: float for 16-bit types, else T.
template <class T>
struct StatOf {
  using type = T;
};
template <>
struct StatOf<bfloat16> {
  using type = float;
};
template <>
struct StatOf<float16> {
  using type = float;
};
template <class T>
using Stat = typename StatOf<T>::type;

}  // namespace convgrad
