// The micro-kernels of backward_weight: each sums the pixels of a box in registers and adds the
// sums to a unit's partial matrix.
#pragma once
#include "vec.h"

namespace convgrad::cpu {
namespace {

// A box walked in two arrays: counts along n, d, h, w, and the steps in elements of a and b.
struct Walk {
  int64_t count[4], a[4], b[4];
};

// Calls row(a, b) for each row (along w) of the box.
template <class T, class Row>
inline __attribute__((always_inline)) void for_rows(const Walk& walk, const T* a, const T* b,
                                                    const Row& row) {
  for (int64_t n = 0; n < walk.count[0]; ++n)
    for (int64_t d = 0; d < walk.count[1]; ++d)
      for (int64_t h = 0; h < walk.count[2]; ++h)
        row(a + n * walk.a[0] + d * walk.a[1] + h * walk.a[2],
            b + n * walk.b[0] + d * walk.b[1] + h * walk.b[2]);
}

// ---- tile: out[m][v] += sum over pixels of a[m] b[v], M scalars by V vectors ----

template <class T, int M, int V>
void dw_tile(const Walk& walk, const T* a, const T* b, T* out, int64_t pitch) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[m][v] = Vec<T>{};
  for_rows(walk, a, b, [&](const T* pa, const T* pb) __attribute__((always_inline)) {
    for (int64_t w = 0; w < walk.count[3]; ++w, pa += walk.a[3], pb += walk.b[3]) {
      Vec<T> row[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) row[v] = load(pb + v * L);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const Vec<T> scale = broadcast(pa[m]);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) acc[m][v] += scale * row[v];
      }
    }
  });
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      T* to = out + m * pitch + v * L;
      store(to, load(to) + acc[m][v]);
    }
}

template <class T>
using DwTile = void (*)(const Walk&, const T*, const T*, T*, int64_t);

// `rows` rows by `vectors` (1 or 2) vectors, in evenly split tiles of at most 6 x 2 or 12 x 1.
template <class T>
void dw_tiles(int64_t rows, int64_t vectors, const Walk& walk, const T* a, const T* b, T* out,
              int64_t pitch) {
  static constexpr DwTile<T> kOne[12] = {dw_tile<T, 1, 1>,  dw_tile<T, 2, 1>,  dw_tile<T, 3, 1>,
                                         dw_tile<T, 4, 1>,  dw_tile<T, 5, 1>,  dw_tile<T, 6, 1>,
                                         dw_tile<T, 7, 1>,  dw_tile<T, 8, 1>,  dw_tile<T, 9, 1>,
                                         dw_tile<T, 10, 1>, dw_tile<T, 11, 1>, dw_tile<T, 12, 1>};
  static constexpr DwTile<T> kTwo[6] = {dw_tile<T, 1, 2>, dw_tile<T, 2, 2>, dw_tile<T, 3, 2>,
                                        dw_tile<T, 4, 2>, dw_tile<T, 5, 2>, dw_tile<T, 6, 2>};
  const int64_t tiles = ceil_div(rows, vectors == 1 ? 12 : 6);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t r = rows * tile / tiles, end = rows * (tile + 1) / tiles;
    (vectors == 1 ? kOne : kTwo)[end - r - 1](walk, a + r, b, out + r * pitch, pitch);
  }
}

// ---- slide: kernel width 3, stride 1. Each pixel of x meets dy at three neighbouring pixels,
// which stay in registers: out[r][tap][c] += x[row r, pixel j - pad, c] dy[j - tap] ----

struct SlideRow {
  int64_t begin, end;                    // output columns of the strip
  int64_t pad, width;                    // input columns: [0, width)
  int64_t x_pixel, x_tap_row, dy_pixel;  // steps in elements
  int64_t out_row, out_tap, out_c;       // steps in the partial matrix
};

// x: input column 0 of the first tap row; dy: output column `begin`. The columns of walk are
// unused.
template <class T, int R, int C>
void dw_slide(const Walk& walk, const SlideRow& s, const T* x, const T* dy, T* out) {
  Vec<T> acc[R][3][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) acc[r][0][c] = acc[r][1][c] = acc[r][2][c] = Vec<T>{};
  // Column j of x, counted so that tap t meets output column j - t.
  const int64_t first = max_of(s.begin, s.pad), last = min_of(s.end + 2, s.pad + s.width);
  const int64_t inner = min_of(max_of(first, s.begin + 2), last), inner_end = min_of(s.end, last);
  for_rows(walk, x, dy, [&](const T* x_row, const T* dy_row) __attribute__((always_inline)) {
    const T* px = x_row + (first - s.pad) * s.x_pixel;
    const T* pd = dy_row + (first - s.begin) * s.dy_pixel;
    int64_t j = first;
    const auto border = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int t = 0; t < 3; ++t) {
        if (j - t < s.begin || j - t >= s.end) continue;
        const Vec<T> d = load(pd - t * s.dy_pixel);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
          for (int c = 0; c < C; ++c) acc[r][t][c] += broadcast(px[r * s.x_tap_row + c]) * d;
      }
      ++j, px += s.x_pixel, pd += s.dy_pixel;
    };
    while (j < inner) border();
    if (j < inner_end) {
      Vec<T> d1 = load(pd - s.dy_pixel), d2 = load(pd - 2 * s.dy_pixel);
      for (; j < inner_end; ++j, px += s.x_pixel, pd += s.dy_pixel) {
        const Vec<T> d0 = load(pd);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
          for (int c = 0; c < C; ++c) {
            const Vec<T> v = broadcast(px[r * s.x_tap_row + c]);
            acc[r][0][c] += v * d0;
            acc[r][1][c] += v * d1;
            acc[r][2][c] += v * d2;
          }
        d2 = d1;
        d1 = d0;
      }
    }
    while (j < last) border();
  });
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int t = 0; t < 3; ++t)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        T* to = out + r * s.out_row + t * s.out_tap + c * s.out_c;
        store(to, load(to) + acc[r][t][c]);
      }
}

template <class T>
using DwSlide = void (*)(const Walk&, const SlideRow&, const T*, const T*, T*);

// ---- depthwise: out[t] += sum over pixels of x[pixel + t] dy[pixel], S taps; V a vector or T ----

template <class V, class T>
inline __attribute__((always_inline)) V load_as(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class T, class V, int S>
void dw_depthwise(const Walk& walk, int64_t x_tap, const T* x, const T* dy, T* out, int64_t pitch) {
  V even[S], odd[S];
#pragma GCC unroll 16
  for (int t = 0; t < S; ++t) even[t] = odd[t] = V{};
  for_rows(walk, x, dy, [&](const T* px, const T* pd) __attribute__((always_inline)) {
    int64_t w = 0;
    for (; w + 2 <= walk.count[3]; w += 2, px += 2 * walk.a[3], pd += 2 * walk.b[3]) {
      const V d0 = load_as<V>(pd), d1 = load_as<V>(pd + walk.b[3]);
#pragma GCC unroll 16
      for (int t = 0; t < S; ++t) {
        even[t] += d0 * load_as<V>(px + t * x_tap);
        odd[t] += d1 * load_as<V>(px + walk.a[3] + t * x_tap);
      }
    }
    if (w < walk.count[3]) {
      const V d = load_as<V>(pd);
#pragma GCC unroll 16
      for (int t = 0; t < S; ++t) even[t] += d * load_as<V>(px + t * x_tap);
    }
  });
#pragma GCC unroll 16
  for (int t = 0; t < S; ++t) {
    const V sum = load_as<V>(out + t * pitch) + (even[t] + odd[t]);
    __builtin_memcpy(out + t * pitch, &sum, sizeof(V));
  }
}

// ---- db: out[v] += sum over pixels of b[v] ----

template <class T, class V>
void dw_bias(const Walk& walk, const T* dy, T* out) {
  V acc[4] = {};
  for_rows(walk, dy, dy, [&](const T*, const T* pd) __attribute__((always_inline)) {
    int64_t w = 0;
    for (; w + 4 <= walk.count[3]; w += 4, pd += 4 * walk.b[3])
#pragma GCC unroll 16
      for (int i = 0; i < 4; ++i) acc[i] += load_as<V>(pd + i * walk.b[3]);
    for (; w < walk.count[3]; ++w, pd += walk.b[3]) acc[0] += load_as<V>(pd);
  });
  const V sum = load_as<V>(out) + ((acc[0] + acc[1]) + (acc[2] + acc[3]));
  __builtin_memcpy(out, &sum, sizeof(V));
}

}  // namespace
}  // namespace convgrad::cpu
