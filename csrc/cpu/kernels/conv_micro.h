// Micro-kernels of the direct convolution: a row of pixels times a block of output channels, held
// in registers over all taps and channels. Weights come in panels, in the order they are used.
//
// A vector holds all its channels of one pixel or, for half as many channels, of two: P = 2 pixels
// that are `apart` in the row, each weight in both halves. Otherwise half of the lanes would idle.
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
  bool first;           // y = bias + sum; else y += sum
  bool relu;            // then y = y < 0 ? 0 : y
};

// apart: pixels from a vector's first to its second.
template <class T>
using TileKernel = void (*)(const TileArgs<T>&, const T* x, T* y, int64_t apart);

// ---- P pixels in a vector; `apart` counts elements here ----

// The first n channels of each pixel; the others are zero.
template <class T, int P>
inline __attribute__((always_inline)) Vec<T> load_pixels(const T* p, int64_t apart, int64_t n) {
  if constexpr (P == 1) return load_first(p, n);
#if defined(__AVX512F__)
  const unsigned first = (1u << n) - 1;
  const Vec<T> low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(first), p);
  return _mm512_mask_loadu_ps(low, static_cast<__mmask16>(first << 8), p + apart - 8);
#else
  T lanes[kLanes<T>] = {};
  copy_first(lanes, p, n);
  copy_first(lanes + kLanes<T> / 2, p + apart, n);
  return load(lanes);
#endif
}
template <class T, int P>
inline __attribute__((always_inline)) void store_pixels(T* p, int64_t apart, Vec<T> v, int64_t n) {
  if constexpr (P == 1) return store_first(p, v, n);
#if defined(__AVX512F__)
  const unsigned first = (1u << n) - 1;
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(first), v);
  _mm512_mask_storeu_ps(p + apart - 8, static_cast<__mmask16>(first << 8), v);
#else
  T lanes[kLanes<T>];
  store(lanes, v);
  copy_first(p, lanes, n);
  copy_first(p + apart, lanes + kLanes<T> / 2, n);
#endif
}
// *p in the lanes of the first pixel, *q in the second's.
template <class T>
inline __attribute__((always_inline)) Vec<T> broadcast_pair(const T* p, const T* q) {
#if defined(__AVX512F__)
  return _mm512_mask_broadcastss_ps(broadcast(*p), 0xff00, _mm_load_ss(q));
#elif defined(__AVX2__) && !defined(CONVGRAD_VECTOR_BYTES)
  return _mm256_blend_ps(broadcast(*p), broadcast(*q), 0xf0);
#else
  Vec<T> v = broadcast(*p);
  for (int lane = kLanes<T> / 2; lane < kLanes<T>; ++lane) v[lane] = *q;
  return v;
#endif
}

// Elements i of N neighbouring pixels, from pointers to every third or sixth of them: with one
// index register for each pixel between, that needs the fewest registers.
template <class T, int P, int N>
struct Pixels {
  static constexpr int kNear = P == 1 ? 3 : 6;
  const T* base[P][(N + kNear - 1) / kNear];

  inline __attribute__((always_inline)) Pixels(const T* x, int64_t pitch, int64_t apart) {
    CONVGRAD_UNROLL
    for (int p = 0; p < P; ++p) CONVGRAD_UNROLL
    for (int j = 0; j < (N + kNear - 1) / kNear; ++j)
      base[p][j] = x + (kNear * j + p * apart) * pitch;
  }
  template <int Of = 0>
  inline __attribute__((always_inline)) const T* at(int m, int64_t pitch, int64_t i) const {
    return base[Of][m / kNear] + m % kNear * pitch + i;
  }
  inline __attribute__((always_inline)) Vec<T> spread(int m, int64_t pitch, int64_t i) const {
    if constexpr (P == 1)
      return broadcast(*at(m, pitch, i));
    else
      return broadcast_pair(at(m, pitch, i), at<1>(m, pitch, i));
  }
};

template <class T, int P, int M, int V>
inline __attribute__((always_inline)) void finish(const TileArgs<T>& a, const Vec<T> (&acc)[M][V],
                                                  T* y, int64_t apart) {
  constexpr int kL = kLanes<T>;
  const int64_t pitch = a.y_pitch;
  apart *= pitch;
  Vec<T> out[M][V];
  const auto valid = [&](int v) { return v + 1 < V ? kL / P : a.last; };
  if (a.first) {
    CONVGRAD_UNROLL
    for (int v = 0; v < V; ++v) {
      const Vec<T> bias = load(a.bias + v * kL);
      CONVGRAD_UNROLL
      for (int m = 0; m < M; ++m) out[m][v] = acc[m][v] + bias;
    }
  } else {  // All of y before any is written: two vectors may share a pixel.
    CONVGRAD_UNROLL
    for (int m = 0; m < M; ++m) CONVGRAD_UNROLL
    for (int v = 0; v < V; ++v)
      out[m][v] = acc[m][v] + load_pixels<T, P>(y + m * pitch + v * kL, apart, valid(v));
  }
  const Vec<T> floor = broadcast(a.relu ? T(0) : -std::numeric_limits<T>::infinity());
  CONVGRAD_UNROLL
  for (int m = 0; m < M; ++m) CONVGRAD_UNROLL
  for (int v = 0; v < V; ++v) out[m][v] = out[m][v] < floor ? floor : out[m][v];
  // A sum that is not the last is masked too: it starts anew from 0, and is masked again.
  if (a.mask) {
    const T* mask = a.mask + (y - a.dst);
    CONVGRAD_UNROLL
    for (int m = 0; m < M; ++m) CONVGRAD_UNROLL
    for (int v = 0; v < V; ++v) {
      const Vec<T> of = load_pixels<T, P>(mask + m * pitch + v * kL, apart, valid(v));
      out[m][v] = of <= T(0) ? Vec<T>{} : out[m][v];
    }
  }
  if (P == 1 && a.last == kL) {
    CONVGRAD_UNROLL
    for (int m = 0; m < M; ++m) CONVGRAD_UNROLL
    for (int v = 0; v < V; ++v) store(y + m * pitch + v * kL, out[m][v]);
  } else {
    CONVGRAD_UNROLL
    for (int m = 0; m < M; ++m) CONVGRAD_UNROLL
    for (int v = 0; v < V; ++v)
      store_pixels<T, P>(y + m * pitch + v * kL, apart, out[m][v], valid(v));
  }
}

// M vectors of pixels x V vectors of channels; any kernel, stride and dilation. A step is one
// element of a row of taps: panel [row][step][V * lanes].
template <class T, int P, int V, int M>
void tile(const TileArgs<T>& a, const T* x, T* y, int64_t apart) {
  constexpr int kL = kLanes<T>;
  Vec<T> acc[M][V] = {};
  const T* panel = a.panel;
  const int64_t pitch = a.x_pitch;
  for (int64_t row = 0; row < a.rows; ++row) {
    const Pixels<T, P, M> pixels(x + a.offset[row], pitch, apart);
    for (int64_t i = 0; i < a.run; ++i, panel += V * kL) {
      Vec<T> w[V];
      CONVGRAD_UNROLL
      for (int v = 0; v < V; ++v) w[v] = load(panel + v * kL);
      CONVGRAD_UNROLL
      for (int m = 0; m < M; ++m) {
        const Vec<T> s = pixels.spread(m, pitch, i);
        CONVGRAD_UNROLL
        for (int v = 0; v < V; ++v) acc[m][v] += w[v] * s;
      }
    }
  }
  finish<T, P, M, V>(a, acc, y, apart);
}

// M neighbouring vectors of pixels x 1 vector of channels for rows of S taps at stride 1: each
// input element is loaded once and meets its S taps. A step is one channel: panel
// [row][channel][S][lanes].
template <class T, int P, int S, int M>
void slide(const TileArgs<T>& a, const T* x, T* y, int64_t apart) {
  constexpr int kL = kLanes<T>;
  Vec<T> acc[M][1] = {};
  const T* panel = a.panel;
  const int64_t pitch = a.x_pitch;
  for (int64_t row = 0; row < a.rows; ++row) {
    const Pixels<T, P, M + S - 1> pixels(x + a.offset[row], pitch, apart);
    for (int64_t c = 0; c < a.run; ++c, panel += S * kL) {
      Vec<T> w[S];
      CONVGRAD_UNROLL
      for (int t = 0; t < S; ++t) w[t] = load(panel + t * kL);
      CONVGRAD_UNROLL
      for (int q = 0; q < M + S - 1; ++q) {
        const Vec<T> s = pixels.spread(q, pitch, c);
        CONVGRAD_UNROLL
        for (int t = 0; t < S; ++t)
          if (q >= t && q - t < M) acc[q - t][0] += w[t] * s;
      }
    }
  }
  finish<T, P, M, 1>(a, acc, y, apart);
}

// M pixels x 1 vector of channels, each channel with its own filter: panel [tap][lanes].
template <class T, int M>
void depthwise(const TileArgs<T>& a, const T* x, T* y, int64_t) {
  constexpr int kL = kLanes<T>;
  Vec<T> acc[M][1] = {};
  const int64_t pitch = a.x_pitch;
  for (int64_t row = 0; row < a.rows; ++row) {
    const Pixels<T, 1, M> pixels(x + a.offset[row], pitch, 0);
    const Vec<T> w = load(a.panel + row * kL);
    CONVGRAD_UNROLL
    for (int m = 0; m < M; ++m) acc[m][0] += w * load(pixels.at(m, pitch, 0));
  }
  finish<T, 1, M, 1>(a, acc, y, 0);
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
template <class T, int... I>
constexpr Kernels<T> depthwises(std::integer_sequence<int, I...>) {
  return {sizeof...(I), {depthwise<T, I + 1>...}};
}
template <int N>
using UpTo = std::make_integer_sequence<int, N>;

// Accumulators, weights and what is broadcast must stay in registers. Of 16: 12 and 2 weights, or
// 11 and 3 (gcc 12 keeps the twelfth in memory); two pixels need one more for the second.
#if defined(__AVX512F__)
constexpr int kTile1Most = 16, kTile2Most = 12, kSlide3Most = 16, kSlide5Most = 16;
constexpr int kPairTileMost = 16, kPairSlide3Most = 16, kPairSlide5Most = 16;
#else
constexpr int kTile1Most = 12, kTile2Most = 6, kSlide3Most = 11, kSlide5Most = 10;
constexpr int kPairTileMost = 12, kPairSlide3Most = 10, kPairSlide5Most = 9;
#endif
template <class T>
constexpr Kernels<T> kTile1 = tiles<T, 1, 1>(UpTo<kTile1Most>{});
template <class T>
constexpr Kernels<T> kTile2 = tiles<T, 1, 2>(UpTo<kTile2Most>{});
template <class T>
constexpr Kernels<T> kSlide3 = slides<T, 1, 3>(UpTo<kSlide3Most>{});
template <class T>
constexpr Kernels<T> kSlide5 = slides<T, 1, 5>(UpTo<kSlide5Most>{});
template <class T>
constexpr Kernels<T> kPairTile = tiles<T, 2, 1>(UpTo<kPairTileMost>{});
template <class T>
constexpr Kernels<T> kPairSlide3 = slides<T, 2, 3>(UpTo<kPairSlide3Most>{});
template <class T>
constexpr Kernels<T> kPairSlide5 = slides<T, 2, 5>(UpTo<kPairSlide5Most>{});
template <class T>
constexpr Kernels<T> kDepthwise = depthwises<T>(UpTo<8>{});

}  // namespace
}  // namespace convgrad::cpu
