// Matrix products whose operands both lie along k, c = a b' with a (m, k) and b (n, k), as tiles of
// dot products: lanes run along k, so that nothing is packed and few columns waste no lanes.
#pragma once
#include "gemm_along_k.h"
#include "lanes.h"

namespace convgrad::cpu {
namespace {

// The largest tile: 6 x 4 accumulators of 32 vector registers, or 3 x 4 of 16.
template <class T>
constexpr int kDotRows = kVectorBytes == 64 && sizeof(T) == 4 ? 6 : 3;
constexpr int kDotCols = 4;
constexpr int64_t kDotDepth = 4096;  // longer sums lose digits, and leave no work for more threads

// The sums of the lanes of four vectors, of floats in registers: in every four lanes, first of a
// and b, and c and d, then of all four; then over the fours.
template <class T>
inline __attribute__((always_inline)) Lanes<T, 4> sum_lanes_of_four(Vec<T> a, Vec<T> b, Vec<T> c,
                                                                    Vec<T> d) {
  if constexpr (kLanes<T> == 16) {
    const auto pairs = [](Vec<T> u, Vec<T> v) __attribute__((always_inline)) {
      return __builtin_shufflevector(u, v, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13,
                                     29) +
             __builtin_shufflevector(u, v, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15,
                                     31);
    };
    const Vec<T> ab = pairs(a, b), cd = pairs(c, d);
    const Vec<T> fours =
        __builtin_shufflevector(ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
        __builtin_shufflevector(ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    const auto half = __builtin_shufflevector(fours, fours, 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(fours, fours, 8, 9, 10, 11, 12, 13, 14, 15);
    return __builtin_shufflevector(half, half, 0, 1, 2, 3) +
           __builtin_shufflevector(half, half, 4, 5, 6, 7);
  } else if constexpr (kLanes<T> == 8) {
    const auto pairs = [](Vec<T> u, Vec<T> v) __attribute__((always_inline)) {
      return __builtin_shufflevector(u, v, 0, 8, 1, 9, 4, 12, 5, 13) +
             __builtin_shufflevector(u, v, 2, 10, 3, 11, 6, 14, 7, 15);
    };
    const Vec<T> ab = pairs(a, b), cd = pairs(c, d);
    const Vec<T> fours = __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) +
                         __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
    return __builtin_shufflevector(fours, fours, 0, 1, 2, 3) +
           __builtin_shufflevector(fours, fours, 4, 5, 6, 7);
  } else {
    Lanes<T, 4> sum = {};
    for (int l = 0; l < kLanes<T>; ++l) sum += Lanes<T, 4>{a[l], b[l], c[l], d[l]};
    return sum;
  }
}

// v without its first n lanes.
template <class T>
inline __attribute__((always_inline)) Vec<T> without_first(Vec<T> v, int64_t n) {
  static constexpr T kNumbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(kNumbers) >= static_cast<T>(n) ? v : Vec<T>{};
}

// sums[r][i] = row r of a times row i of b, R x C of them, rows of length k >= a vector.
template <class T, int R, int C>
void dot_tile(int64_t k, const T* a, const T* b, T sums[][kDotCols]) {
  constexpr int L = kLanes<T>;
  const int64_t whole = k / L * L;
  Vec<T> acc[R][kDotCols];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < kDotCols; ++i) acc[r][i] = Vec<T>{};
  for (int64_t p = 0; p < whole; p += L) {
    Vec<T> cols[C];
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i) cols[i] = load(b + i * k + p);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<T> row = load(a + r * k + p);
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) acc[r][i] += row * cols[i];
    }
  }
  if (whole < k) {  // the last vector again, but for what is in the sums already
    Vec<T> cols[C];
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i)
      cols[i] = without_first<T>(load(b + i * k + k - L), L - (k - whole));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<T> row = without_first<T>(load(a + r * k + k - L), L - (k - whole));
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) acc[r][i] += row * cols[i];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    put<T, 4>(sums[r], sum_lanes_of_four<T>(acc[r][0], acc[r][1], acc[r][2], acc[r][3]));
}

template <class T>
using DotTile = void (*)(int64_t, const T*, const T*, T[][kDotCols]);

// The tile for at most `rows` rows and `cols` columns, and how many of them it takes.
template <class T>
struct DotTileChoice {
  DotTile<T> tile;
  int64_t rows, cols;
};
template <class T, int R>
DotTileChoice<T> dot_tile_for(int64_t cols) {
  if (cols >= 4) return {dot_tile<T, R, 4>, R, 4};
  if (cols >= 2) return {dot_tile<T, R, 2>, R, 2};
  return {dot_tile<T, R, 1>, R, 1};
}
template <class T>
DotTileChoice<T> choose_dot_tile(int64_t rows, int64_t cols) {
  if (rows >= kDotRows<T>) return dot_tile_for<T, kDotRows<T>>(cols);
  return rows >= 2 ? dot_tile_for<T, 2>(cols) : dot_tile_for<T, 1>(cols);
}

// Writes up to four neighbours: columns j .. j + count of a row, from c[at] on.
template <class T>
void finish_dots(const Epilogue<T>& e, int64_t count, const T* sums, int64_t j, int64_t at, T* c) {
  using Four = Lanes<T, 4>;
  if (count < 4) {
    for (int64_t i = 0; i < count; ++i) c[at + i] = finish(e, sums[i], j + i, at + i);
    return;
  }
  Four v = get<T, 4>(sums);
  if (e.bias) v += get<T, 4>(e.bias + j);
  if (e.relu) v = v < T(0) ? Four{} : v;
  if (e.mask) v = get<T, 4>(e.mask + at) <= T(0) ? Four{} : v;
  put<T, 4>(c + at, v);
}

// Whether dot products beat panels. They do for few rows or columns, which waste lanes of a panel,
// and for little depth: adding up the lanes costs 5 cycles per result, loads a tenth (measured,
// Zen 5).
template <class T>
bool dots_pay(const GemmShape& s) {
  constexpr int64_t L = kLanes<T>;
  if (s.trans_a || !s.trans_b || s.k < 4 * L || s.k > kDotDepth) return false;
  const int64_t dots = s.m * s.n * 11 / 10 + 10 * L * s.m * s.n / s.k;
  return s.m < 16 || s.n < 16 || !is_along_k<T>(s) ||
         dots < min_of(along_k_cost<T>(s, false), along_k_cost<T>(s, true));
}

// One item: kDotBlock columns, whose rows of b stay in the L2 cache, and the rows of a tile, or of
// some where they would be done in less than a microsecond.
template <class T>
void dot_gemm(const Exec& exec, const GemmShape& s, const T* a, const T* b,
              const Epilogue<T>& epilogue, T* c) {
  constexpr int64_t kDotBlock = 64;
  const int64_t tile_work = kDotRows<T> * min_of(s.n, kDotBlock) * s.k / kLanes<T>;
  const int64_t height = kDotRows<T> * ceil_div(1 << 13, max_of(1, tile_work));
  const int64_t rows = ceil_div(s.m, height), cols = ceil_div(s.n, kDotBlock);
  parallel_for(exec, s.batch * rows * cols, gemm_work<T>(s), [&](int64_t item, int) {
    const int64_t o = item / (rows * cols), first = item / rows % cols * kDotBlock;
    const int64_t top = item % rows * height;
    const int64_t bottom = min_of(top + height, s.m), last = min_of(first + kDotBlock, s.n);
    const T *from_a = a + o * s.stride_a, *from_b = b + o * s.stride_b;
    for (int64_t i = top, step = 1; i < bottom; i += step)
      for (int64_t j = first; j < last;) {
        const DotTileChoice<T> choice = choose_dot_tile<T>(bottom - i, last - j);
        T sums[kDotRows<T>][kDotCols];
        choice.tile(s.k, from_a + i * s.k, from_b + j * s.k, sums);
        for (int64_t r = 0; r < choice.rows; ++r)
          finish_dots(epilogue, choice.cols, sums[r], j, (o * s.m + i + r) * s.n + j, c);
        step = choice.rows;
        j += choice.cols;
      }
  });
}

}  // namespace
}  // namespace convgrad::cpu
