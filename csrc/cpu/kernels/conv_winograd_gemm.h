// The products of Winograd's convolution: for each frequency, m (tiles, k) = v (tiles, c) u (c, k),
// summed over slices of v where the kernel has depth.
#pragma once
#include <utility>

#include "ahead.h"
#include "conv_micro.h"

namespace convgrad::cpu {
namespace {

// What the products of one step have in common.
struct MultiplyArgs {
  const int64_t* slice;  // offset in v of each slice
  int64_t slices, c;
  int64_t width;  // elements between rows of m
};

// M tiles x V vectors of channels of one frequency, u in panels [slice][c][V * lanes].
template <class T, int M, int V>
void multiply(const MultiplyArgs& a, const T* v, const T* u, T* m) {
  constexpr int kL = kLanes<T>;
  Vec<T> acc[M][V] = {};
  const int64_t pitch = a.c;
  for (int64_t s = 0; s < a.slices; ++s) {
    const Pixels<const T, M> tiles(v + a.slice[s], pitch);
    for (int64_t i = 0; i < a.c; ++i, u += V * kL) {
      Vec<T> w[V];
      CONVGRAD_UNROLL
      for (int j = 0; j < V; ++j) w[j] = load(u + j * kL);
      CONVGRAD_UNROLL
      for (int t = 0; t < M; ++t) {
        const Vec<T> x = broadcast(tiles.at(t, pitch)[i]);
        CONVGRAD_UNROLL
        for (int j = 0; j < V; ++j) acc[t][j] += w[j] * x;
      }
    }
  }
  const int64_t width = a.width;
  CONVGRAD_UNROLL
  for (int t = 0; t < M; ++t, m += width) CONVGRAD_UNROLL
  for (int j = 0; j < V; ++j) store(m + j * kL, acc[t][j]);
}

// Kernels by number of tiles: Most of them, as many as the registers hold.
template <class T, int V, class Numbers>
struct Multiply;
template <class T, int V, int... I>
struct Multiply<T, V, std::integer_sequence<int, I...>> {
  static constexpr int kMost = sizeof...(I);
  static constexpr void (*kByTiles[])(const MultiplyArgs&, const T*, const T*,
                                      T*) = {multiply<T, I + 1, V>...};
};
#if defined(__AVX512F__)
template <class T>
using Multiply1 = Multiply<T, 1, std::make_integer_sequence<int, 24>>;
template <class T>
using Multiply2 = Multiply<T, 2, std::make_integer_sequence<int, 13>>;
#else
template <class T>
using Multiply1 = Multiply<T, 1, std::make_integer_sequence<int, 12>>;
template <class T>
using Multiply2 = Multiply<T, 2, std::make_integer_sequence<int, 6>>;
#endif

// Of so many tiles, for panels of 1 or 2 vectors.
template <class T>
int64_t pieces_of(int64_t tiles, int64_t vectors) {
  return ceil_div(tiles, vectors == 2 ? Multiply2<T>::kMost : Multiply1<T>::kMost);
}

// One panel of channels of `tiles` tiles, cut as evenly as can be.
template <class Kernels, class T>
void multiply_tiles(const MultiplyArgs& args, int64_t tiles, const T* v, const T* u, T* m,
                    Ahead& ahead) {
  const int64_t pieces = ceil_div(tiles, Kernels::kMost), each = tiles / pieces,
                longer = tiles % pieces;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t count = each + (piece < longer);
    ahead.fetch();
    Kernels::kByTiles[count - 1](args, v, u, m);
    v += count * args.c;
    m += count * args.width;
  }
}

}  // namespace
}  // namespace convgrad::cpu
