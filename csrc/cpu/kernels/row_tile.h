// Short rows, as many at a time as a vector has lanes: transposed, so that each row is a lane.
#pragma once
#include "vec.h"

namespace convgrad::cpu {
namespace {

constexpr int64_t kShortRow = 32;
template <class T>
using RowTile = T[kShortRow * kLanes<T>];  // (n, lanes) for rows of n elements

// Lane numbers of two vectors, for __builtin_shuffle: their even or odd lanes, and the lanes of
// their lower or upper halves in turn.
struct Lanes2 {
  int32_t even[kLanes<float>], odd[kLanes<float>], low[kLanes<float>], high[kLanes<float>];
  constexpr Lanes2() : even{}, odd{}, low{}, high{} {
    constexpr int kL = kLanes<float>;
    for (int i = 0; i < kL; ++i) {
      even[i] = 2 * i;
      odd[i] = 2 * i + 1;
      low[i] = i % 2 * kL + i / 2;
      high[i] = low[i] + kL / 2;
    }
  }
};
constexpr Lanes2 kLanes2;

// v (lanes, N) in memory order -> v (N, lanes), N a power of two: each round makes the lowest bit
// of an element's number its highest.
template <int N>
inline void transpose_to_lanes(Vec<float> (&v)[N]) {
  const Vec<int32_t> even = load(kLanes2.even), odd = load(kLanes2.odd);
#pragma GCC unroll 16
  for (int round = 1; round < N; round *= 2) {
    Vec<float> next[N];
#pragma GCC unroll 16
    for (int j = 0; j < N / 2; ++j) {
      next[j] = __builtin_shuffle(v[2 * j], v[2 * j + 1], even);
      next[N / 2 + j] = __builtin_shuffle(v[2 * j], v[2 * j + 1], odd);
    }
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) v[j] = next[j];
  }
}
// And back.
template <int N>
inline void transpose_from_lanes(Vec<float> (&v)[N]) {
  const Vec<int32_t> low = load(kLanes2.low), high = load(kLanes2.high);
#pragma GCC unroll 16
  for (int round = 1; round < N; round *= 2) {
    Vec<float> next[N];
#pragma GCC unroll 16
    for (int j = 0; j < N / 2; ++j) {
      next[2 * j] = __builtin_shuffle(v[j], v[N / 2 + j], low);
      next[2 * j + 1] = __builtin_shuffle(v[j], v[N / 2 + j], high);
    }
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) v[j] = next[j];
  }
}

// Rows of c <= 8 elements are transposed as rows of N, the next power of two.
constexpr int padded_to(int64_t c) { return c <= 2 ? 2 : c <= 4 ? 4 : 8; }
// Whether that fits a vector.
constexpr bool is_narrow(int64_t c) { return c >= 2 && c <= 8 && padded_to(c) <= kLanes<float>; }

// For each c: where the lanes of a vector of dense rows lie in one of padded rows, and back.
struct Paddings {
  int32_t packed[9][kLanes<float>], padded[9][kLanes<float>];
  constexpr Paddings() : packed{}, padded{} {
    for (int c = 2; c <= 8; ++c)
      for (int row = 0; row < kLanes<float> / padded_to(c); ++row)
        for (int i = 0; i < c; ++i) {
          packed[c][row * c + i] = row * padded_to(c) + i;
          padded[c][row * padded_to(c) + i] = row * c + i;
        }
  }
};
constexpr Paddings kPaddings;

// v[i] = element i of each of lanes(float) rows, which lie at x; only the first `count` elements
// there may be read.
template <int N>
inline void get_rows(int64_t c, const float* x, int64_t count, Vec<float> (&v)[N]) {
  const int64_t step = kLanes<float> / N * c;
  const Vec<int32_t> padded = load(kPaddings.padded[c]);
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j, x += step, count = max_of(count - step, 0)) {
    const Vec<float> dense = count >= kLanes<float> ? load(x) : load_first(x, count);
    v[j] = c == N ? dense : __builtin_shuffle(dense, padded);
  }
  transpose_to_lanes(v);
}
// And back, to y; only the first `count` elements there may be written. Some of those behind the
// rows are: rows must be put in order.
template <int N>
inline void put_rows(int64_t c, Vec<float> (&v)[N], int64_t count, float* y) {
  const int64_t step = kLanes<float> / N * c;
  const Vec<int32_t> packed = load(kPaddings.packed[c]);
  transpose_from_lanes(v);
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j, y += step, count = max_of(count - step, 0)) {
    const Vec<float> dense = c == N ? v[j] : __builtin_shuffle(v[j], packed);
    if (count >= kLanes<float>)
      store(y, dense);
    else
      store_first(y, dense, count);
  }
}

// fn(N) for narrow rows.
template <int N>
struct PaddedTo {
  static constexpr int value = N;
};
template <class Fn>
inline void with_padding(int64_t c, const Fn& fn) {
  if (padded_to(c) == 2) return fn(PaddedTo<2>{});
  if (padded_to(c) == 4) return fn(PaddedTo<4>{});
  if constexpr (kLanes<float> >= 8) fn(PaddedTo<8>{});
}

// tile (n, lanes) = the transpose of x (rows, n), rows <= lanes; the other lanes are 0.
template <class T>
inline void tile_rows(int64_t rows, int64_t n, const T* x, RowTile<T>& tile) {
  constexpr int kL = kLanes<T>;
  if constexpr (__is_same(T, float))
    if (is_narrow(n))
      return with_padding(n, [&](auto padded) {
        Vec<T> v[padded.value];
        get_rows(n, x, rows * n, v);
#pragma GCC unroll 8
        for (int i = 0; i < padded.value; ++i) store(tile + i * kL, v[i]);
      });
  for (int64_t i = 0; i < n; ++i)
    for (int64_t row = 0; row < kL; ++row) tile[i * kL + row] = row < rows ? x[row * n + i] : T(0);
}
// y (rows, n) = the transpose of tile (n, lanes).
template <class T>
inline void untile_rows(int64_t rows, int64_t n, const RowTile<T>& tile, T* y) {
  constexpr int kL = kLanes<T>;
  if constexpr (__is_same(T, float))
    if (is_narrow(n))
      return with_padding(n, [&](auto padded) {
        Vec<T> v[padded.value];
#pragma GCC unroll 8
        for (int i = 0; i < padded.value; ++i) v[i] = load(tile + i * kL);
        put_rows(n, v, rows * n, y);
      });
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < n; ++i) y[row * n + i] = tile[i * kL + row];
}

}  // namespace
}  // namespace convgrad::cpu
