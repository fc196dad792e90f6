// The micro-kernels of backward_weight: each sums the pixels of a box in registers and adds the
// sums to a unit's partial matrix.
#pragma once
#include "lanes.h"
#include "vec.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace convgrad::cpu {
namespace {

// A box walked in two arrays: counts along n, d, h, w, and the steps in elements of a and b. Where
// two rows are summed side by side, `next` is how far the second one lies from the first.
struct Walk {
  int64_t count[4], a[4], b[4];
  int64_t next_a, next_b;
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

// What one vector holds: W output channels of one row of pixels, or in a second half of the lanes
// also those of another row (P = 2): so 8 channels fill 16 lanes. The halves are added at the end.
template <class T, int W, int P>
struct Beside {
  static_assert(P == 1 || (P == 2 && W == 8));
  using Vector = Lanes<T, W * P>;
  static inline __attribute__((always_inline)) Vector vector(const T* p, int64_t next) {
    if constexpr (P == 1)
      return get<T, W>(p);
    else
      return join(get<T, W>(p), get<T, W>(p + next));
  }
  static inline __attribute__((always_inline)) Vector scalar(const T* p, int64_t next) {
    if constexpr (P == 1) return *p - Vector{};  // a broadcast, see vec.h
#if defined(__AVX512F__)
    else  // one load and one masked load
      return _mm512_mask_broadcastss_ps(_mm512_set1_ps(*p), 0xff00, _mm_load_ss(p + next));
#else
    else
      return join(*p - Lanes<T, W>{}, p[next] - Lanes<T, W>{});
#endif
  }
  static inline __attribute__((always_inline)) void add_to(T* out, Vector sum) {
    if constexpr (P == 1)
      put<T, W>(out, get<T, W>(out) + sum);
    else
      put<T, W>(out,
                get<T, W>(out) + (__builtin_shufflevector(sum, sum, 0, 1, 2, 3, 4, 5, 6, 7) +
                                  __builtin_shufflevector(sum, sum, 8, 9, 10, 11, 12, 13, 14, 15)));
  }

 private:
  static inline __attribute__((always_inline)) Vector join(Lanes<T, W> lo, Lanes<T, W> hi) {
    return __builtin_shufflevector(lo, hi, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
};

// Calls sum<P>(walk, a, b) so that all rows of the box are summed, two at a time where it can be.
template <int N>
struct Rows {
  static constexpr int value = N;
};
template <class T, class Sum>
inline void in_pairs(Walk walk, const T* a, const T* b, const Sum& sum) {
  int axis = 2;
  while (axis > 0 && walk.count[axis] == 1) --axis;
  const int64_t count = walk.count[axis], half = count / 2;
  if (half > 0) {
    walk.count[axis] = half;
    walk.next_a = half * walk.a[axis];
    walk.next_b = half * walk.b[axis];
    sum(Rows<2>{}, walk, a, b);
  }
  if (count % 2 == 0) return;
  walk.count[axis] = 1;
  sum(Rows<1>{}, walk, a + (count - 1) * walk.a[axis], b + (count - 1) * walk.b[axis]);
}

// ---- tile: out[m][v] += sum over pixels of a[m] b[v], M scalars by V vectors ----

template <class T>
using DwTile = void (*)(const Walk&, const T*, const T*, T*, int64_t);

// Few results are summed over U neighbouring pixels at once, each in sums of its own: a core adds
// to eight registers before the first is ready again.
constexpr int pixels_at_once(int results) { return results >= 6 ? 1 : results >= 3 ? 2 : 4; }

template <class T, int W, int P, int V, int M>
void dw_tile(const Walk& walk, const T* a, const T* b, T* out, int64_t pitch) {
  using B = Beside<T, W, P>;
  constexpr int U = pixels_at_once(M * V);
  typename B::Vector acc[U][M][V] = {};
  const auto add_pixel = [&](auto& sum, const T* pa, const T* pb) __attribute__((always_inline)) {
    typename B::Vector row[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) row[v] = B::vector(pb + v * W, walk.next_b);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const typename B::Vector scale = B::scalar(pa + m, walk.next_a);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[m][v] += scale * row[v];
    }
  };
  for_rows(walk, a, b, [&](const T* pa, const T* pb) __attribute__((always_inline)) {
    int64_t w = 0;
    for (; w + U <= walk.count[3]; w += U, pa += U * walk.a[3], pb += U * walk.b[3])
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) add_pixel(acc[u], pa + u * walk.a[3], pb + u * walk.b[3]);
    if constexpr (U > 1)
      for (; w < walk.count[3]; ++w, pa += walk.a[3], pb += walk.b[3]) add_pixel(acc[0], pa, pb);
  });
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      typename B::Vector sum = acc[0][m][v];
#pragma GCC unroll 4
      for (int u = 1; u < U; ++u) sum += acc[u][m][v];
      B::add_to(out + m * pitch + v * W, sum);
    }
}

template <class T, int W, int P, int V, int... M>
struct DwTiles {
  static constexpr int64_t kMost = sizeof...(M);
  static constexpr DwTile<T> kByRows[] = {dw_tile<T, W, P, V, M>...};
  // `rows` rows in evenly split tiles.
  static void run(int64_t rows, const Walk& walk, const T* a, const T* b, T* out, int64_t pitch) {
    const int64_t tiles = ceil_div(rows, kMost);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t r = rows * tile / tiles, end = rows * (tile + 1) / tiles;
      kByRows[end - r - 1](walk, a + r, b, out + r * pitch, pitch);
    }
  }
};
template <class T, int W, int P>
using DwTiles1 = DwTiles<T, W, P, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>;
#if defined(__AVX512F__)
template <class T>
using DwTiles2 = DwTiles<T, kLanes<T>, 1, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>;
#else
template <class T>
using DwTiles2 = DwTiles<T, kLanes<T>, 1, 2, 1, 2, 3, 4, 5, 6>;
#endif

// ---- slide: kernel width S, stride 1. Each pixel of x meets dy at S neighbouring pixels, which
// stay in registers: out[r][tap][c] += x[row r, pixel j - pad, c] dy[j - tap] ----

struct SlideRow {
  int64_t begin, end;                    // output columns of the strip
  int64_t pad, width;                    // input columns: [0, width)
  int64_t x_pixel, x_tap_row, dy_pixel;  // steps in elements
  int64_t out_row, out_tap, out_c;       // steps in the partial matrix
};

// x: input column 0 of the first tap row; dy: output column `begin`. The columns of walk are
// unused.
template <class T, int W, int P, int S, int R, int C>
void dw_slide(const Walk& walk, const SlideRow& s, const T* x, const T* dy, T* out) {
  using B = Beside<T, W, P>;
  using Vector = typename B::Vector;
  Vector acc[R][S][C] = {};
  // Column j of x, counted so that tap t meets output column j - t.
  const int64_t first = max_of(s.begin, s.pad), last = min_of(s.end + S - 1, s.pad + s.width);
  const int64_t inner = min_of(max_of(first, s.begin + S - 1), last),
                inner_end = min_of(s.end, last);
  for_rows(walk, x, dy, [&](const T* x_row, const T* dy_row) __attribute__((always_inline)) {
    const T* px = x_row + (first - s.pad) * s.x_pixel;
    const T* pd = dy_row + (first - s.begin) * s.dy_pixel;
    int64_t j = first;
    const auto border = [&]() __attribute__((always_inline)) {
      Vector v[R][C];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) v[r][c] = B::scalar(px + r * s.x_tap_row + c, walk.next_a);
#pragma GCC unroll 16
      for (int t = 0; t < S; ++t) {
        if (j - t < s.begin || j - t >= s.end) continue;
        const Vector d = B::vector(pd - t * s.dy_pixel, walk.next_b);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
          for (int c = 0; c < C; ++c) acc[r][t][c] += v[r][c] * d;
      }
      ++j, px += s.x_pixel, pd += s.dy_pixel;
    };
    while (j < inner) border();
    if (j < inner_end) {
      Vector d[S];
#pragma GCC unroll 16
      for (int t = 1; t < S; ++t) d[t] = B::vector(pd - t * s.dy_pixel, walk.next_b);
      for (; j < inner_end; ++j, px += s.x_pixel, pd += s.dy_pixel) {
        d[0] = B::vector(pd, walk.next_b);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
          for (int c = 0; c < C; ++c) {
            const Vector v = B::scalar(px + r * s.x_tap_row + c, walk.next_a);
#pragma GCC unroll 16
            for (int t = 0; t < S; ++t) acc[r][t][c] += v * d[t];
          }
#pragma GCC unroll 16
        for (int t = S - 1; t > 0; --t) d[t] = d[t - 1];
      }
    }
    while (j < last) border();
  });
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int t = 0; t < S; ++t)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c)
        B::add_to(out + r * s.out_row + t * s.out_tap + c * s.out_c, acc[r][t][c]);
}

template <class T>
using DwSlide = void (*)(const Walk&, const SlideRow&, const T*, const T*, T*);

// Kernels by number of channels of one row of taps, and of one channel by number of rows.
template <class T, int W, int P, int S, int... N>
struct DwSlides {
  static constexpr int64_t kMost = sizeof...(N);
  static constexpr DwSlide<T> kByChannels[] = {dw_slide<T, W, P, S, 1, N>...};
  static constexpr DwSlide<T> kByRows[] = {dw_slide<T, W, P, S, N, 1>...};
};
#if defined(__AVX512F__)
template <class T, int W, int P>
using DwSlides3 = DwSlides<T, W, P, 3, 1, 2, 3, 4, 5, 6, 7, 8>;
template <class T, int W, int P>
using DwSlides5 = DwSlides<T, W, P, 5, 1, 2, 3, 4, 5>;
#else
template <class T, int W, int P>
using DwSlides3 = DwSlides<T, W, P, 3, 1, 2, 3, 4>;
template <class T, int W, int P>
using DwSlides5 = DwSlides<T, W, P, 5, 1, 2>;
#endif

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
