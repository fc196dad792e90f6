// Vectors of the instruction set this file is compiled for, by the compilers' vector extensions:
// + - * / and comparisons work on them, and a scalar operand is broadcast.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "integers.h"

namespace convgrad::cpu {
namespace {

#if defined(CONVGRAD_VECTOR_BYTES)
constexpr int kVectorBytes = CONVGRAD_VECTOR_BYTES;
#elif defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  // The same lanes at any address, for loads and stores.
  typedef T unaligned
      __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), __may_alias__));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
inline __attribute__((always_inline)) Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::unaligned*>(p);
}
template <class T>
inline __attribute__((always_inline)) void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VecOf<T>::unaligned*>(p) = v;
}
// All lanes s. x - 0 is x for every x, -0.0 and NaN too, so that only the broadcast is left;
// setting lane by lane costs gcc a dozen instructions.
template <class T>
inline __attribute__((always_inline)) Vec<T> broadcast(T s) {
  return s - Vec<T>{};
}
// The first n lanes of p; the others are zero. 0 <= n <= lanes.
template <class T>
inline Vec<T> load_first(const T* p, int64_t n) {
  Vec<T> v = {};
  __builtin_memcpy(&v, p, static_cast<size_t>(n) * sizeof(T));
  return v;
}
// n elements in pieces of a power of two. 0 <= n < lanes.
template <class T>
inline void copy_first(T* to, const T* from, int64_t n) {
#pragma GCC unroll 8
  for (int piece = kLanes<T> / 2; piece > 0; piece /= 2) {
    if (!(n & piece)) continue;
    __builtin_memcpy(to, from, static_cast<size_t>(piece) * sizeof(T));
    to += piece;
    from += piece;
  }
}
// The first n lanes of v into p. 0 <= n <= lanes.
template <class T>
inline void store_first(T* p, Vec<T> v, int64_t n) {
  if (n == kLanes<T>) return store(p, v);
  T lanes[kLanes<T>];
  store(lanes, v);
  copy_first(p, lanes, n);
}

// The same through masks, where the instruction set has them. Not AVX2's stores: a masked one is
// 42 micro-operations on Zen 3.
#if defined(__AVX512F__)
inline Vec<float> load_first(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
inline Vec<double> load_first(const double* p, int64_t n) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
}
inline void store_first(float* p, Vec<float> v, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
}
inline void store_first(double* p, Vec<double> v, int64_t n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), v);
}
#elif defined(__AVX2__) && !defined(CONVGRAD_VECTOR_BYTES)
constexpr int64_t kMaskWords[8] = {-1, -1, -1, -1, 0, 0, 0, 0};
inline __m256i first_mask(int64_t bytes) {
  const char* words = reinterpret_cast<const char*>(kMaskWords);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + 32 - bytes));
}
inline Vec<float> load_first(const float* p, int64_t n) {
  return _mm256_maskload_ps(p, first_mask(4 * n));
}
inline Vec<double> load_first(const double* p, int64_t n) {
  return _mm256_maskload_pd(p, first_mask(8 * n));
}
#endif

}  // namespace
}  // namespace convgrad::cpu
