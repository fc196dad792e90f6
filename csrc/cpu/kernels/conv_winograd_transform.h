// The transforms of Winograd's convolution F(4x4, 3x3): a 4x4 tile of outputs of a 3x3 kernel g
// from the 6x6 inputs d below it, by 36 products for each pair of channels instead of 144,
//   y = A^T [(G g G^T) . (B^T d B)] A,
// with the interpolation points 0, 1, -1, 2, -2 and infinity (Lavin and Gray, 2016). The products
// are numbered by frequency, 6 i + j. All transforms work on W channels side by side.
#pragma once
#include <limits>

#include "conv_micro.h"
#include "lanes.h"
#include "ops.h"

namespace convgrad::cpu {
namespace {

constexpr int kTileOut = 4, kTileIn = 6, kFrequencies = 36;

// The same number or pointer, of which the compiler knows nothing: otherwise it computes all 36
// addresses of a tile ahead, and keeps them in memory.
template <class V>
inline __attribute__((always_inline)) V opaque(V v) {
  asm("" : "+r"(v));
  return v;
}

// ---- weights ----

// The rows of G are (1 0 0), (1 1 1), (1 -1 1), (1 2 4), (1 -2 4), (0 0 1) times these.
constexpr double kWeightScale[6] = {1. / 4, -1. / 6, -1. / 6, 1. / 24, 1. / 24, 1};

template <class V>
inline __attribute__((always_inline)) void expand_weight(V g0, V g1, V g2, V (&out)[6]) {
  const V even = g0 + g2, far = g0 + 4 * g2;
  out[0] = g0;
  out[1] = even + g1;
  out[2] = even - g1;
  out[3] = far + 2 * g1;
  out[4] = far - 2 * g1;
  out[5] = g2;
}

// G g G^T of g[3 h + w], to u[frequency * pitch]. Whole multiples of 576 give whole numbers: the
// scales come last, and a product by 1/3 or 1/9, rounded, is right for every multiple of 3 or 9.
template <class T, int W>
inline void transform_weight(const Lanes<T, W> (&g)[9], T* u, int64_t pitch) {
  Lanes<T, W> column[6], rows[6][3], row[6];
  CONVGRAD_UNROLL
  for (int j = 0; j < 3; ++j) {
    expand_weight(g[j], g[3 + j], g[6 + j], column);
    CONVGRAD_UNROLL
    for (int i = 0; i < 6; ++i) rows[i][j] = column[i];
  }
  CONVGRAD_UNROLL
  for (int i = 0; i < 6; ++i) {
    expand_weight(rows[i][0], rows[i][1], rows[i][2], row);
    CONVGRAD_UNROLL
    for (int j = 0; j < 6; ++j, u = opaque(u + pitch))
      put<T, W>(u, row[j] * static_cast<T>(kWeightScale[i] * kWeightScale[j]));
  }
}

// ---- inputs ----

// Two elements of B^T d share most of their terms: 0 and 5 none, 1 and 2, 3 and 4 all.
enum class InputRows { k05, k12, k34 };

template <InputRows R, class V>
inline __attribute__((always_inline)) void input_pair(const V (&d)[6], V* first, V* second) {
  if constexpr (R == InputRows::k05) {
    *first = 4 * d[0] + (d[4] - 5 * d[2]);
    *second = 4 * d[1] + (d[5] - 5 * d[3]);
  } else if constexpr (R == InputRows::k12) {
    const V even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1];
    *first = even + odd;
    *second = even - odd;
  } else {
    const V even = d[4] - d[2], odd = d[3] - d[1];
    *first = even + 2 * odd;
    *second = even - 2 * odd;
  }
}

// B^T d, to v[j * pitch].
template <class T, int W>
inline __attribute__((always_inline)) void put_input_row(const Lanes<T, W> (&d)[6], T* v,
                                                         int64_t pitch) {
  Lanes<T, W> out[6];
  input_pair<InputRows::k05>(d, &out[0], &out[5]);
  input_pair<InputRows::k12>(d, &out[1], &out[2]);
  input_pair<InputRows::k34>(d, &out[3], &out[4]);
  CONVGRAD_UNROLL
  for (int j = 0; j < 6; ++j, v = opaque(v + pitch)) put<T, W>(v, out[j]);
}

// The 6x6 pixels under a tile: rows of them, `col` elements from one to the next, of which those
// outside [from, to) are zeros and not read.
template <class T>
struct InputTile {
  const T* rows[6];
  int64_t col, from, to;
};

// Two rows of B^T d B of the channels from c on. The inputs are loaded anew for each pair of rows:
// 84 loads in all, but no more registers than there are.
template <class T, int W, InputRows R, bool Whole>
inline __attribute__((always_inline)) void transform_input_rows(const InputTile<T>& x, int64_t c,
                                                                T* v, int64_t pitch) {
  constexpr int kFirst = R == InputRows::k05 ? 0 : R == InputRows::k12 ? 1 : 3;
  constexpr int kSecond = R == InputRows::k05 ? 5 : kFirst + 1;
  const T* rows[6];
  CONVGRAD_UNROLL
  for (int i = 0; i < 6; ++i) rows[i] = opaque(x.rows[i]);
  Lanes<T, W> a[6], b[6];
  CONVGRAD_UNROLL
  for (int j = 0; j < 6; ++j, c = opaque(c + x.col)) {
    a[j] = b[j] = Lanes<T, W>{};
    if (!Whole && (j < x.from || j >= x.to)) continue;
    Lanes<T, W> d[6];
    CONVGRAD_UNROLL
    for (int i = 0; i < 6; ++i) d[i] = get<T, W>(rows[i] + c);
    input_pair<R>(d, &a[j], &b[j]);
  }
  put_input_row<T, W>(a, v + 6 * kFirst * pitch, pitch);
  put_input_row<T, W>(b, v + 6 * kSecond * pitch, pitch);
}

// B^T d B of W channels from c on, to v[frequency * pitch].
template <class T, int W, bool Whole>
void transform_input(const InputTile<T>& x, int64_t c, T* v, int64_t pitch) {
  transform_input_rows<T, W, InputRows::k05, Whole>(x, c, v, pitch);
  transform_input_rows<T, W, InputRows::k12, Whole>(x, c, v, pitch);
  transform_input_rows<T, W, InputRows::k34, Whole>(x, c, v, pitch);
}

// ---- outputs ----

// A tile of the result: where its first pixel's channel goes, and how many pixels there are.
template <class T>
struct OutputTile {
  T* y;
  const T* mask;  // of the same pixel, or null
  int64_t row, col;
  int64_t rows, cols;
};

// Elements 0 and 2, or 1 and 3, of A^T m.
template <bool Odd, class V>
inline __attribute__((always_inline)) void output_pair(const V (&m)[6], V* first, V* second) {
  if constexpr (Odd) {
    const V near = m[1] - m[2], far = m[3] - m[4];
    *first = near + 2 * far;
    *second = m[5] + (near + 8 * far);
  } else {
    const V near = m[1] + m[2], far = m[3] + m[4];
    *first = m[0] + (near + far);
    *second = near + 4 * far;
  }
}

template <class T, int W>
inline __attribute__((always_inline)) void put_output_row(const Lanes<T, W> (&m)[6], int64_t cols,
                                                          Lanes<T, W> bias, Lanes<T, W> floor,
                                                          const T* mask, int64_t col, T* y) {
  Lanes<T, W> out[4];
  output_pair<false>(m, &out[0], &out[2]);
  output_pair<true>(m, &out[1], &out[3]);
  CONVGRAD_UNROLL
  for (int j = 0; j < 4; ++j) {
    if (j >= cols) break;
    Lanes<T, W> v = out[j] + bias;
    v = v < floor ? floor : v;
    if (mask) v = get<T, W>(mask + j * col) <= Lanes<T, W>{} ? Lanes<T, W>{} : v;
    put<T, W>(y + j * col, v);
  }
}

template <class T, int W, bool Odd>
inline __attribute__((always_inline)) void transform_output_rows(const T* m, int64_t pitch,
                                                                 const OutputTile<T>& to,
                                                                 Lanes<T, W> bias,
                                                                 Lanes<T, W> floor) {
  const T* rows[6];
  CONVGRAD_UNROLL
  for (int i = 0; i < 6; ++i) rows[i] = opaque(m + 6 * i * pitch);
  Lanes<T, W> a[6], b[6];
  int64_t at = 0;
  CONVGRAD_UNROLL
  for (int j = 0; j < 6; ++j, at = opaque(at + pitch)) {
    Lanes<T, W> column[6];
    CONVGRAD_UNROLL
    for (int i = 0; i < 6; ++i) column[i] = get<T, W>(rows[i] + at);
    output_pair<Odd>(column, &a[j], &b[j]);
  }
  constexpr int kFirst = Odd ? 1 : 0;
  const auto put_row = [&](const Lanes<T, W>(&row)[6], int i) {
    if (i >= to.rows) return;
    put_output_row<T, W>(row, to.cols, bias, floor, to.mask ? to.mask + i * to.row : nullptr,
                         to.col, to.y + i * to.row);
  };
  put_row(a, kFirst);
  put_row(b, kFirst + 2);
}

// A^T m A of m[frequency * pitch], through the epilogue of the channels from `bias` on (null:
// none).
template <class T, int W>
inline void transform_output(const T* m, int64_t pitch, const T* bias, bool relu,
                             const OutputTile<T>& to) {
  const Lanes<T, W> b = bias ? get<T, W>(bias) : Lanes<T, W>{};
  const Lanes<T, W> floor = Lanes<T, W>{} + (relu ? T(0) : -std::numeric_limits<T>::infinity());
  transform_output_rows<T, W, false>(m, pitch, to, b, floor);
  transform_output_rows<T, W, true>(m, pitch, to, b, floor);
}

}  // namespace
}  // namespace convgrad::cpu
