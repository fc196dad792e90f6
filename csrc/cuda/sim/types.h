// CUDA's built-in vector types.
#pragma once
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
