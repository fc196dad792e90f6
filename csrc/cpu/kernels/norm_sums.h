// Sums over the rows of (rows, c) for norm.cpp: runs of kRun rows in T, in registers, and the runs'
// sums in double.
#pragma once
#include "lanes.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

int64_t gcd(int64_t a, int64_t b) { return b == 0 ? a : gcd(b, a % b); }

constexpr int kRun = 64;    // folded rows summed in T
constexpr int kPilot = 16;  // rows of a run whose mean its deviations are taken from
constexpr int kGroup = 4;   // vectors side by side in registers

// `fold` rows lie side by side as one row of `width` columns, a whole number of vectors and, by
// doubling, at least kGroup.
template <class T>
struct Fold {
  int64_t fold, width;
  explicit Fold(int64_t c) : fold(kLanes<T> / gcd(c, kLanes<T>)) {
    while (fold * c < kGroup * kLanes<T>) fold *= 2;
    width = fold * c;
  }
};

// Repeats c values to a folded row.
template <class T>
void repeat(int64_t c, T* row) {
  const int64_t width = Fold<T>(c).width;
  for (int64_t i = c; i < width; ++i) row[i] = row[i - c];
}

// sums[0 .. c) and sums[c .. 2 c): two sums over rows [begin, end), per column; sums has room for
// two folded rows. terms.add_rows<V>(at, pitch, rows, column, a, b) adds those of V vectors of a
// run of folded rows to the doubles at a and b, `at` being the first element and `column` its place
// in a folded row; terms.add_one(at, column, a, b) does so for one element.
template <class T, class Terms>
void column_pairs(int64_t begin, int64_t end, int64_t c, double* sums, const Terms& terms) {
  constexpr int kL = kLanes<T>;
  const Fold<T> f(c);
  const int64_t folded = (end - begin) / f.fold;
  double *a = sums, *b = sums + f.width;
  for (int64_t i = 0; i < 2 * f.width; ++i) sums[i] = 0;
  for (int64_t r = 0; r < folded; r += kRun) {
    const int64_t first = begin * c + r * f.width, rows = min_of(kRun, folded - r);
    int64_t i = 0;
    for (; i + kGroup * kL <= f.width; i += kGroup * kL)
      terms.template add_rows<kGroup>(first + i, f.width, rows, i, a + i, b + i);
    for (; i < f.width; i += kL)
      terms.template add_rows<1>(first + i, f.width, rows, i, a + i, b + i);
  }
  for (int64_t at = begin * c + folded * f.width; at < end * c; ++at)
    terms.add_one(at, at % c, a[at % c], b[at % c]);
  for (int64_t i = c; i < f.width; ++i) {
    a[i - i / c * c] += a[i];
    b[i - i / c * c] += b[i];
  }
  for (int64_t i = 0; i < c; ++i) sums[c + i] = b[i];
}

// Sums of x - shift and of its square. A run is summed relative to the mean of its first kPilot
// rows, so that an outlying shift costs no digits. One outlier D among those moves the mean by
// D / kPilot, which adds kRun D^2 / kPilot^2 = D^2 / 4 to the run's squares: less than D itself
// does, so that the rounding stays below that of the result.
template <class T>
struct Deviations {
  const T *x, *shift;

  template <int V>
  void add_rows(int64_t at, int64_t pitch, int64_t rows, int64_t column, double* sum,
                double* squares) const {
    constexpr int kL = kLanes<T>;
    int64_t some = 1;  // a power of two, so that whole numbers stay exact
    while (some < kPilot && 2 * some <= rows) some *= 2;
    Vec<T> own[V] = {}, s[V] = {}, q[V] = {};
    for (int64_t r = 0; r < some; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) own[v] += load(x + at + r * pitch + v * kL);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) own[v] *= T(1) / T(some);
    for (int64_t r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const Vec<T> d = load(x + at + r * pitch + v * kL) - own[v];
        s[v] += d;
        q[v] += d * d;
      }
    T lanes[3][V * kL];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      store(lanes[0] + v * kL, own[v]);
      store(lanes[1] + v * kL, s[v]);
      store(lanes[2] + v * kL, q[v]);
    }
    const double count = double(rows);
    for (int i = 0; i < V * kL; ++i) {
      const double off = double(lanes[0][i]) - double(shift[column + i]), d = double(lanes[1][i]);
      sum[i] += d + count * off;
      squares[i] += double(lanes[2][i]) + off * (2 * d + count * off);
    }
  }

  void add_one(int64_t at, int64_t column, double& sum, double& squares) const {
    const double d = double(x[at]) - double(shift[column]);
    sum += d;
    squares += d * d;
  }
};

// dy, which counts as 0 where a mask is given and is not above 0: the gradient behind a ReLU, of
// whose output the mask is. NaN is not below 0.
template <class T, bool kMasked>
struct Gradient {
  const T *dy, *mask;

  template <int W>
  Lanes<T, W> at(int64_t i) const {
    const Lanes<T, W> g = get<T, W>(dy + i);
    if constexpr (!kMasked) return g;
    return get<T, W>(mask + i) <= T(0) ? Lanes<T, W>{} : g;
  }
};

// Sums of dy and of dy (x - mean); dy goes to `kept` too where that is not null.
template <class T, bool kMasked>
struct GradientTerms {
  const T *x, *mean;
  Gradient<T, kMasked> dy;
  T* kept;

  template <int V>
  void add_rows(int64_t at, int64_t pitch, int64_t rows, int64_t column, double* sum,
                double* products) const {
    constexpr int kL = kLanes<T>;
    Vec<T> m[V], s[V] = {}, p[V] = {};
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) m[v] = load(mean + column + v * kL);
    for (int64_t r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const int64_t i = at + r * pitch + v * kL;
        const Vec<T> g = dy.template at<kL>(i);
        if (kept) store(kept + i, g);
        s[v] += g;
        p[v] += g * (load(x + i) - m[v]);
      }
    T lanes[2][V * kL];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      store(lanes[0] + v * kL, s[v]);
      store(lanes[1] + v * kL, p[v]);
    }
    for (int i = 0; i < V * kL; ++i) {
      sum[i] += double(lanes[0][i]);
      products[i] += double(lanes[1][i]);
    }
  }

  void add_one(int64_t at, int64_t column, double& sum, double& products) const {
    const T g = dy.template at<1>(at);
    if (kept) kept[at] = g;
    sum += double(g);
    products += double(g * (x[at] - mean[column]));
  }
};

}  // namespace
}  // namespace convgrad::cpu
