// Micro-kernels of the direct convolution: a row of pixels times a block of output channels, held
// in registers over all taps and channels. Weights come in panels, in the order they are used.
//
// A vector holds channels of one pixel or, half as many, of two (P = 2), where otherwise half of
// the lanes would idle. Those two lie `apart` in the row of y, side by side in x (element by
// element: one broadcast reads both), and in neighbouring lanes: each weight comes twice.
//
// Every loop over the accumulators unrolls completely: otherwise gcc keeps them in memory.
#pragma once
#include <limits>
#include <utility>

#include "vec.h"

#define CONVGRAD_UNROLL _Pragma("GCC unroll 32")

namespace convgrad::cpu {
namespace {

// What the tiles of one box, block of channels and block of terms have in common.
template <class T>
struct TileArgs {
  const int64_t* offset;  // per row of taps, from a pixel's first element
  int64_t rows, run;      // run: steps per row
  int64_t x_pitch, y_pitch;
  const T* panel;
  const T* bias;        // as many as the block has lanes; zeros if there is none
  const T *dst, *mask;  // the whole result, and its mask (see Epilogue) or null
  int64_t last;         // channels in the block's last vector, 1 .. lanes / P
  bool first;           // y = bias + sum; else, never with P = 2, y += sum
  bool relu;            // then y = y < 0 ? 0 : y
  int64_t apart;        // P = 2: elements of y from a vector's first pixel to its second
};

template <class T>
using TileKernel = void (*)(const TileArgs<T>&, const T* x, T* y);

// ---- P pixels in a vector ----

#if defined(CONVGRAD_VECTOR_BYTES)  // emulated, they are long, and megabytes in all if inline
#define CONVGRAD_INLINE __attribute__((noinline))
#else
#define CONVGRAD_INLINE inline __attribute__((always_inline))
#endif

// All lanes p[i], or pairs of p[2 i] and p[2 i + 1].
template <class T, int P>
inline __attribute__((always_inline)) Vec<T> spread(const T* p, int64_t i) {
  if constexpr (P == 1) return broadcast(p[i]);
  int64_t pair;
  static_assert(P == 1 || sizeof(pair) == P * sizeof(T));
  __builtin_memcpy(&pair, p + 2 * i, sizeof(pair));
  return reinterpret_cast<Vec<T>>(broadcast(pair));
}
// From pairs of lanes to the first pixel's channels, then the second's.
template <class T, int P>
CONVGRAD_INLINE Vec<T> unzip(Vec<T> v) {
  if constexpr (P == 1) return v;
  constexpr int kHalf = kLanes<T> / 2;
  Vec<int32_t> from;
  CONVGRAD_UNROLL
  for (int j = 0; j < kLanes<T>; ++j) from[j] = j < kHalf ? 2 * j : 2 * (j - kHalf) + 1;
  return __builtin_shuffle(v, from);
}
// The first n channels of each pixel, at p and at q; the others are zero.
template <class T, int P>
CONVGRAD_INLINE Vec<T> load_pixels(const T* p, const T* q, int64_t n) {
  if constexpr (P == 1) return load_first(p, n);
#if defined(__AVX512F__)
  const __m256 high = _mm256_maskz_loadu_ps(static_cast<__mmask8>((1u << n) - 1), q);
  return _mm512_insertf32x8(load_first(p, n), high, 1);
#else
  T lanes[kLanes<T>] = {};
  copy_first(lanes, p, n);
  copy_first(lanes + kLanes<T> / 2, q, n);
  return load(lanes);
#endif
}
template <class T, int P>
CONVGRAD_INLINE void store_pixels(T* p, T* q, Vec<T> v, int64_t n) {
  if constexpr (P == 1) return store_first(p, v, n);
#if defined(__AVX512F__)
  store_first(p, v, n);
  const __m256 high = _mm512_maskz_extractf32x8_ps(0xff, v, 1);  // gcc 12 warns of the plain one
  _mm256_mask_storeu_ps(q, static_cast<__mmask8>((1u << n) - 1), high);
#else
  T lanes[kLanes<T>];
  store(lanes, v);
  copy_first(p, lanes, n);
  copy_first(q, lanes + kLanes<T> / 2, n);
#endif
}

template <class T>
CONVGRAD_INLINE Vec<T> at_least(Vec<T> v, Vec<T> floor) {
  return v < floor ? floor : v;
}
template <class T>
CONVGRAD_INLINE Vec<T> where_positive(Vec<T> mask, Vec<T> v) {
  return mask <= T(0) ? Vec<T>{} : v;
}

// Element m of a row with `pitch`, from pointers to every third: x86 addresses reach 0, 1 and 2
// pitches without a register of their own.
template <class T, int N>
struct Pixels {
  T* base[(N + 2) / 3];
  inline __attribute__((always_inline)) Pixels(T* x, int64_t pitch) {
    CONVGRAD_UNROLL
    for (int j = 0; j < (N + 2) / 3; ++j) base[j] = x + 3 * j * pitch;
  }
  inline __attribute__((always_inline)) T* at(int m, int64_t pitch) const {
    return base[m / 3] + m % 3 * pitch;
  }
};

template <class T, int P, int M, int V>
inline __attribute__((always_inline)) void finish(const TileArgs<T>& a, const Vec<T> (&acc)[M][V],
                                                  T* y) {
  constexpr int kL = kLanes<T>, kC = kL / P;  // kC: channels per vector
  const int64_t pitch = a.y_pitch;
  const Pixels<T, M> first(y, pitch), second(y + a.apart, pitch);
  Vec<T> out[M][V];
  const auto valid = [&](int v) { return v + 1 < V ? kC : a.last; };
  if (P == 2 || a.first) {
    CONVGRAD_UNROLL
    for (int v = 0; v < V; ++v) {
      const Vec<T> bias = load(a.bias + v * kL);
      CONVGRAD_UNROLL
      for (int m = 0; m < M; ++m) out[m][v] = unzip<T, P>(acc[m][v]) + bias;
    }
  } else if constexpr (P == 1) {
    CONVGRAD_UNROLL
    for (int m = 0; m < M; ++m) CONVGRAD_UNROLL
    for (int v = 0; v < V; ++v)
      out[m][v] = acc[m][v] + load_pixels<T, 1>(first.at(m, pitch) + v * kL, nullptr, valid(v));
  }
  const Vec<T> floor = broadcast(a.relu ? T(0) : -std::numeric_limits<T>::infinity());
  CONVGRAD_UNROLL
  for (int m = 0; m < M; ++m) CONVGRAD_UNROLL
  for (int v = 0; v < V; ++v) out[m][v] = at_least<T>(out[m][v], floor);
  // A sum that is not the last is masked too: it starts anew from 0, and is masked again.
  if (a.mask) {
    const int64_t to_mask = a.mask - a.dst;
    CONVGRAD_UNROLL
    for (int m = 0; m < M; ++m) CONVGRAD_UNROLL
    for (int v = 0; v < V; ++v) {
      const Vec<T> mask = load_pixels<T, P>(first.at(m, pitch) + to_mask + v * kC,
                                            second.at(m, pitch) + to_mask + v * kC, valid(v));
      out[m][v] = where_positive<T>(mask, out[m][v]);
    }
  }
  if (P == 1 && a.last == kL) {
    CONVGRAD_UNROLL
    for (int m = 0; m < M; ++m) CONVGRAD_UNROLL
    for (int v = 0; v < V; ++v) store(first.at(m, pitch) + v * kL, out[m][v]);
  } else {
    CONVGRAD_UNROLL
    for (int m = 0; m < M; ++m) CONVGRAD_UNROLL
    for (int v = 0; v < V; ++v)
      store_pixels<T, P>(first.at(m, pitch) + v * kC, second.at(m, pitch) + v * kC, out[m][v],
                         valid(v));
  }
}

// M vectors of pixels x V vectors of channels; any kernel, stride and dilation. A step is one
// element of a row of taps: panel [row][step][V * lanes].
template <class T, int P, int V, int M>
void tile(const TileArgs<T>& a, const T* x, T* y) {
  constexpr int kL = kLanes<T>;
  Vec<T> acc[M][V] = {};
  const T* panel = a.panel;
  const int64_t pitch = a.x_pitch;
  for (int64_t row = 0; row < a.rows; ++row) {
    const Pixels<const T, M> pixels(x + a.offset[row], pitch);
    for (int64_t i = 0; i < a.run; ++i, panel += V * kL) {
      Vec<T> w[V];
      CONVGRAD_UNROLL
      for (int v = 0; v < V; ++v) w[v] = load(panel + v * kL);
      CONVGRAD_UNROLL
      for (int m = 0; m < M; ++m) {
        const Vec<T> s = spread<T, P>(pixels.at(m, pitch), i);
        CONVGRAD_UNROLL
        for (int v = 0; v < V; ++v) acc[m][v] += w[v] * s;
      }
    }
  }
  finish<T, P, M, V>(a, acc, y);
}

// M neighbouring vectors of pixels x 1 vector of channels for rows of S taps at stride 1: each
// input element is loaded once and meets its S taps. A step is one channel: panel
// [row][channel][S][lanes].
template <class T, int P, int S, int M>
void slide(const TileArgs<T>& a, const T* x, T* y) {
  constexpr int kL = kLanes<T>;
  Vec<T> acc[M][1] = {};
  const T* panel = a.panel;
  const int64_t pitch = a.x_pitch;
  for (int64_t row = 0; row < a.rows; ++row) {
    const Pixels<const T, M + S - 1> pixels(x + a.offset[row], pitch);
    for (int64_t c = 0; c < a.run; ++c, panel += S * kL) {
      Vec<T> w[S];
      CONVGRAD_UNROLL
      for (int t = 0; t < S; ++t) w[t] = load(panel + t * kL);
      CONVGRAD_UNROLL
      for (int q = 0; q < M + S - 1; ++q) {
        const Vec<T> s = spread<T, P>(pixels.at(q, pitch), c);
        CONVGRAD_UNROLL
        for (int t = 0; t < S; ++t)
          if (q >= t && q - t < M) acc[q - t][0] += w[t] * s;
      }
    }
  }
  finish<T, P, M, 1>(a, acc, y);
}

// M neighbouring pixels x 1 vector of channels, each channel with its own filter, for rows of S
// taps at stride 1 as above; S = 1 serves any taps. Panel [row][S][lanes].
template <class T, int S, int M>
void depthwise(const TileArgs<T>& a, const T* x, T* y) {
  constexpr int kL = kLanes<T>;
  Vec<T> acc[M][1] = {};
  const T* panel = a.panel;
  const int64_t pitch = a.x_pitch;
  for (int64_t row = 0; row < a.rows; ++row, panel += S * kL) {
    const Pixels<const T, M + S - 1> pixels(x + a.offset[row], pitch);
    Vec<T> w[S];
    CONVGRAD_UNROLL
    for (int t = 0; t < S; ++t) w[t] = load(panel + t * kL);
    CONVGRAD_UNROLL
    for (int q = 0; q < M + S - 1; ++q) {
      const Vec<T> v = load(pixels.at(q, pitch));
      CONVGRAD_UNROLL
      for (int t = 0; t < S; ++t)
        if (q >= t && q - t < M) acc[q - t][0] += w[t] * v;
    }
  }
  finish<T, 1, M, 1>(a, acc, y);
}

// Kernels by number of vectors of pixels, from 1 to `most`.
constexpr int kMostVectors = 16;
template <class T>
struct Kernels {
  int most;
  TileKernel<T> of[kMostVectors];
};
template <class T, int P, int V, int... I>
constexpr Kernels<T> tiles(std::integer_sequence<int, I...>) {
  return {sizeof...(I), {tile<T, P, V, I + 1>...}};
}
template <class T, int P, int S, int... I>
constexpr Kernels<T> slides(std::integer_sequence<int, I...>) {
  return {sizeof...(I), {slide<T, P, S, I + 1>...}};
}
template <class T, int S, int... I>
constexpr Kernels<T> depthwises(std::integer_sequence<int, I...>) {
  return {sizeof...(I), {depthwise<T, S, I + 1>...}};
}

// Accumulators, weights and what is broadcast must stay in registers. Of 16: 12 and 2 weights, or
// 11 and 3 (gcc 12 keeps the twelfth in memory).
#if defined(__AVX512F__)
constexpr int most_tiles(int vectors) { return vectors == 1 ? 16 : 24 / vectors; }
constexpr int most_slides(int) { return 16; }
#else
constexpr int most_tiles(int vectors) { return vectors == 3 ? 3 : 12 / vectors; }
constexpr int most_slides(int taps) {
  return taps == 1 ? 12 : taps == 2 ? 12 : taps == 3 ? 11 : 10;
}
#endif
template <class T, int P, int V>
constexpr Kernels<T> kTile = tiles<T, P, V>(std::make_integer_sequence<int, most_tiles(V)>{});
template <class T, int P, int S>
constexpr Kernels<T> kSlide = slides<T, P, S>(std::make_integer_sequence<int, most_slides(S)>{});
template <class T, int S>
constexpr Kernels<T> kDepthwise =
    depthwises<T, S>(std::make_integer_sequence<int, most_slides(S)>{});

}  // namespace
}  // namespace convgrad::cpu
