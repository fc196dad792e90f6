// CUDA's built-in vector types, and its 16-bit floating-point types in software.
#pragma once
#include <bit>
#include <cstdint>

#define SIM_VECTOR2(name, type, align)          \
  struct alignas(align) name##2 { type x, y; }; \
  constexpr name##2 make_##name##2(type x, type y) { return {x, y}; }
#define SIM_VECTOR3(name, type)     \
  struct name##3 { type x, y, z; }; \
  constexpr name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }
#define SIM_VECTOR4(name, type, align)                \
  struct alignas(align) name##4 { type x, y, z, w; }; \
  constexpr name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

SIM_VECTOR2(char, signed char, 2)
SIM_VECTOR2(uchar, unsigned char, 2)
SIM_VECTOR2(short, short, 4)
SIM_VECTOR2(ushort, unsigned short, 4)
SIM_VECTOR2(int, int, 8)
SIM_VECTOR2(uint, unsigned, 8)
SIM_VECTOR2(float, float, 8)
SIM_VECTOR2(double, double, 16)
SIM_VECTOR2(longlong, long long, 16)
SIM_VECTOR2(ulonglong, unsigned long long, 16)
SIM_VECTOR3(int, int)
SIM_VECTOR3(uint, unsigned)
SIM_VECTOR3(float, float)
SIM_VECTOR4(char, signed char, 4)
SIM_VECTOR4(uchar, unsigned char, 4)
SIM_VECTOR4(short, short, 8)
SIM_VECTOR4(ushort, unsigned short, 8)
SIM_VECTOR4(int, int, 16)
SIM_VECTOR4(uint, unsigned, 16)
SIM_VECTOR4(float, float, 16)
#undef SIM_VECTOR2
#undef SIM_VECTOR3
#undef SIM_VECTOR4

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

namespace convgrad::cuda::sim {

// The 16-bit patterns nearest to x, ties to even; a NaN is CUDA's canonical one.
uint16_t bf16_bits(float x);
uint16_t half_bits(float x);
float half_value(uint16_t bits);
inline float bf16_value(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

}  // namespace convgrad::cuda::sim

#define SIM_FLOAT16(type, to_bits, to_value)                               \
  struct type {                                                            \
    uint16_t bits;                                                         \
    type() = default;                                                      \
    type(float x) : bits(convgrad::cuda::sim::to_bits(x)) {}               \
    type(double x) : type(float(x)) {}                                     \
    type(int x) : type(float(x)) {}                                        \
    operator float() const { return convgrad::cuda::sim::to_value(bits); } \
  };                                                                       \
  struct alignas(4) type##2 { type x, y; };
SIM_FLOAT16(__nv_bfloat16, bf16_bits, bf16_value)
SIM_FLOAT16(__half, half_bits, half_value)
#undef SIM_FLOAT16
using half = __half;

inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  return std::bit_cast<__nv_bfloat16>(bits);
}
inline __half __ushort_as_half(unsigned short bits) { return std::bit_cast<__half>(bits); }
