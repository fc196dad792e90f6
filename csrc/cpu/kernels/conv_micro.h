// Micro-kernels of the direct convolution: a row of pixels times a block of output channels, held
// in registers over all taps and channels. Weights come in panels, in the order they are used.
//
// Every loop over the accumulators unrolls completely: otherwise gcc keeps them in memory.
#pragma once
#include <limits>

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
  int64_t last;         // channels in the block's last vector, 1 .. lanes
  bool first;           // y = bias + sum; else y += sum
  bool relu;            // then y = y < 0 ? 0 : y
};

template <class T>
using TileKernel = void (*)(const TileArgs<T>&, const T* x, T* y);

// Element m of a row with `pitch`, from pointers to every third: x86 addresses reach 0, 1 and 2
// pitches without a register of their own.
template <class T, int M>
struct Pixels {
  const T* base[(M + 2) / 3];
  inline __attribute__((always_inline)) Pixels(const T* x, int64_t pitch) {
    CONVGRAD_UNROLL
    for (int j = 0; j < (M + 2) / 3; ++j) base[j] = x + 3 * j * pitch;
  }
  inline __attribute__((always_inline)) const T* at(int m, int64_t pitch) const {
    return base[m / 3] + m % 3 * pitch;
  }
};

template <class T, int M, int V>
inline __attribute__((always_inline)) void finish(const TileArgs<T>& a, const Vec<T> (&acc)[M][V],
                                                  T* y) {
  constexpr int kL = kLanes<T>;
  Vec<T> bias[V];
  CONVGRAD_UNROLL
  for (int v = 0; v < V; ++v) bias[v] = load(a.bias + v * kL);
  const Vec<T> floor = broadcast(a.relu ? T(0) : -std::numeric_limits<T>::infinity());
  if (a.first && a.last == kL && !a.mask) {
    CONVGRAD_UNROLL
    for (int m = 0; m < M; ++m) CONVGRAD_UNROLL
    for (int v = 0; v < V; ++v) {
      const Vec<T> sum = acc[m][v] + bias[v];
      store(y + m * a.y_pitch + v * kL, sum < floor ? floor : sum);
    }
    return;
  }
  CONVGRAD_UNROLL
  for (int m = 0; m < M; ++m) CONVGRAD_UNROLL
  for (int v = 0; v < V; ++v) {
    T* out = y + m * a.y_pitch + v * kL;
    const int64_t n = v + 1 < V ? kL : a.last;
    Vec<T> sum = acc[m][v] + (a.first ? bias[v] : load_first(out, n));
    sum = sum < floor ? floor : sum;
    // A sum that is not the last is masked too: it starts anew from 0, and is masked again.
    if (a.mask) sum = load_first(a.mask + (out - a.dst), n) <= T(0) ? Vec<T>{} : sum;
    store_first(out, sum, n);
  }
}

// M pixels x V vectors of channels; any kernel, stride and dilation. A step is one element of a row
// of taps: panel [row][step][V * lanes].
template <class T, int M, int V>
void tile(const TileArgs<T>& a, const T* x, T* y) {
  constexpr int kL = kLanes<T>;
  Vec<T> acc[M][V] = {};
  const T* panel = a.panel;
  const int64_t pitch = a.x_pitch;
  for (int64_t row = 0; row < a.rows; ++row) {
    const Pixels<T, M> pixels(x + a.offset[row], pitch);
    for (int64_t i = 0; i < a.run; ++i, panel += V * kL) {
      Vec<T> w[V];
      CONVGRAD_UNROLL
      for (int v = 0; v < V; ++v) w[v] = load(panel + v * kL);
      CONVGRAD_UNROLL
      for (int m = 0; m < M; ++m) {
        const Vec<T> s = broadcast(pixels.at(m, pitch)[i]);
        CONVGRAD_UNROLL
        for (int v = 0; v < V; ++v) acc[m][v] += w[v] * s;
      }
    }
  }
  finish<T, M, V>(a, acc, y);
}

// M neighbouring pixels x 1 vector of channels for rows of S taps at stride 1: each input element
// is loaded once and meets its S taps. A step is one channel: panel [row][channel][S][lanes].
template <class T, int S, int M>
void slide(const TileArgs<T>& a, const T* x, T* y) {
  constexpr int kL = kLanes<T>;
  Vec<T> acc[M][1] = {};
  const T* panel = a.panel;
  const int64_t pitch = a.x_pitch;
  for (int64_t row = 0; row < a.rows; ++row) {
    const Pixels<T, M + S - 1> pixels(x + a.offset[row], pitch);
    for (int64_t c = 0; c < a.run; ++c, panel += S * kL) {
      Vec<T> w[S];
      CONVGRAD_UNROLL
      for (int t = 0; t < S; ++t) w[t] = load(panel + t * kL);
      CONVGRAD_UNROLL
      for (int q = 0; q < M + S - 1; ++q) {
        const Vec<T> s = broadcast(pixels.at(q, pitch)[c]);
        CONVGRAD_UNROLL
        for (int t = 0; t < S; ++t)
          if (q >= t && q - t < M) acc[q - t][0] += w[t] * s;
      }
    }
  }
  finish<T, M, 1>(a, acc, y);
}

// M pixels x 1 vector of channels, each channel with its own filter: panel [tap][lanes].
template <class T, int M>
void depthwise(const TileArgs<T>& a, const T* x, T* y) {
  constexpr int kL = kLanes<T>;
  Vec<T> acc[M][1] = {};
  const int64_t pitch = a.x_pitch;
  for (int64_t row = 0; row < a.rows; ++row) {
    const Pixels<T, M> pixels(x + a.offset[row], pitch);
    const Vec<T> w = load(a.panel + row * kL);
    CONVGRAD_UNROLL
    for (int m = 0; m < M; ++m) acc[m][0] += w * load(pixels.at(m, pitch));
  }
  finish<T, M, 1>(a, acc, y);
}

// Kernels by number of pixels, from 1 to `most`.
template <class T>
struct Kernels {
  int64_t most;
  TileKernel<T> by_pixels[12];
};

// 12 accumulators, 2 weights and a broadcast stay in 16 registers, with 3 weights 11 (gcc 12 keeps
// the twelfth in memory); with 32 registers there is room for 24.
template <class T>
constexpr Kernels<T> kTile1 = {
    12,
    {tile<T, 1, 1>, tile<T, 2, 1>, tile<T, 3, 1>, tile<T, 4, 1>, tile<T, 5, 1>, tile<T, 6, 1>,
     tile<T, 7, 1>, tile<T, 8, 1>, tile<T, 9, 1>, tile<T, 10, 1>, tile<T, 11, 1>, tile<T, 12, 1>}};
#if defined(__AVX512F__)
template <class T>
constexpr Kernels<T> kTile2 = {
    12,
    {tile<T, 1, 2>, tile<T, 2, 2>, tile<T, 3, 2>, tile<T, 4, 2>, tile<T, 5, 2>, tile<T, 6, 2>,
     tile<T, 7, 2>, tile<T, 8, 2>, tile<T, 9, 2>, tile<T, 10, 2>, tile<T, 11, 2>, tile<T, 12, 2>}};
#else
template <class T>
constexpr Kernels<T> kTile2 = {
    6, {tile<T, 1, 2>, tile<T, 2, 2>, tile<T, 3, 2>, tile<T, 4, 2>, tile<T, 5, 2>, tile<T, 6, 2>}};
#endif
template <class T>
constexpr Kernels<T> kSlide3 = {
    11,
    {slide<T, 3, 1>, slide<T, 3, 2>, slide<T, 3, 3>, slide<T, 3, 4>, slide<T, 3, 5>, slide<T, 3, 6>,
     slide<T, 3, 7>, slide<T, 3, 8>, slide<T, 3, 9>, slide<T, 3, 10>, slide<T, 3, 11>}};
template <class T>
constexpr Kernels<T> kSlide5 = {
    10,
    {slide<T, 5, 1>, slide<T, 5, 2>, slide<T, 5, 3>, slide<T, 5, 4>, slide<T, 5, 5>, slide<T, 5, 6>,
     slide<T, 5, 7>, slide<T, 5, 8>, slide<T, 5, 9>, slide<T, 5, 10>}};
template <class T>
constexpr Kernels<T> kDepthwise = {
    8,
    {depthwise<T, 1>, depthwise<T, 2>, depthwise<T, 3>, depthwise<T, 4>, depthwise<T, 5>,
     depthwise<T, 6>, depthwise<T, 7>, depthwise<T, 8>}};

}  // namespace
}  // namespace convgrad::cpu
