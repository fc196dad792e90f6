// Softmax and its logarithm along the middle axis of x (outer, n, inner).
#include "parallel.h"
#include "row_tile.h"
#include "vmath.h"

namespace convgrad::cpu {
namespace {

constexpr int64_t kBlock = 4096;  // terms of a float sum; the blocks' sums are added in double

template <class T>
T sum_of_lanes(Vec<T> v) {
  T sum = 0;
  for (int i = 0; i < kLanes<T>; ++i) sum += v[i];
  return sum;
}
template <class T>
inline Vec<T> larger(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}

// sum of term(i, lanes) over a row of n in vectors; term gives 0 in the lanes beyond.
template <class T, class Term>
inline T row_sum(int64_t n, const Term& term) {
  double sum = 0;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t end = min_of(n, first + kBlock);
    Vec<T> acc = {};
    for (int64_t i = first; i < end; i += kLanes<T>) acc += term(i, min_of(kLanes<T>, end - i));
    sum += static_cast<double>(sum_of_lanes<T>(acc));
  }
  return static_cast<T>(sum);
}
template <class T>
inline Vec<T> load_some(const T* p, int64_t lanes) {
  return lanes == kLanes<T> ? load(p) : load_first(p, lanes);
}
template <class T>
inline void store_some(T* p, Vec<T> v, int64_t lanes) {
  if (lanes == kLanes<T>) return store(p, v);
  store_first(p, v, lanes);
}
template <class T, class Fn>
inline void for_row(int64_t n, const Fn& fn) {
  for (int64_t i = 0; i < n; i += kLanes<T>) fn(i, min_of(kLanes<T>, n - i));
}

template <class T>
T largest(int64_t n, const T* x) {
  T best = x[0];
  int64_t i = 0;
  if (n >= kLanes<T>) {
    Vec<T> top = load(x);
    for (i = kLanes<T>; i + kLanes<T> <= n; i += kLanes<T>) top = larger<T>(load(x + i), top);
    for (int lane = 0; lane < kLanes<T>; ++lane) best = top[lane] > best ? top[lane] : best;
  }
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

template <class T>
void forward_row(bool log, int64_t n, const T* x, T* y) {
  const T top = largest(n, x);
  const T sum = row_sum<T>(n, [&](int64_t i, int64_t lanes) {
    const Vec<T> e = vexp(load_some(x + i, lanes) - top);
    store_some(y + i, e, lanes);
    return lanes == kLanes<T> ? e : load_first(y + i, lanes);
  });
  const T log_sum = log ? vlog(broadcast(sum))[0] : T(0);
  for_row<T>(n, [&](int64_t i, int64_t lanes) {
    const Vec<T> v = load_some((log ? x : y) + i, lanes);
    store_some(y + i, log ? (v - top) - log_sum : v / sum, lanes);
  });
}

template <class T>
void backward_row(bool log, int64_t n, const T* y, const T* dy, T* dx) {
  const T sum = row_sum<T>(n, [&](int64_t i, int64_t lanes) {
    const Vec<T> g = load_some(dy + i, lanes);
    return log ? g : g * load_some(y + i, lanes);
  });
  for_row<T>(n, [&](int64_t i, int64_t lanes) {
    const Vec<T> v = load_some(y + i, lanes), g = load_some(dy + i, lanes);
    store_some(dx + i, log ? g - vexp(v) * sum : v * (g - sum), lanes);
  });
}

// ---- an axis that is not the last: the lanes are neighbours of the inner axis ----

// The sum of term(i) over n, per lane.
template <class T, class Term>
inline Vec<T> column_sum(int64_t n, const Term& term) {
  Vec<T> sum = {};
  for (int64_t first = 0; first < n; first += kBlock) {
    Vec<T> acc = {};
    for (int64_t i = first; i < min_of(n, first + kBlock); ++i) acc += term(i);
    sum += acc;
  }
  return sum;
}

template <class T>
void forward_columns(bool log, int64_t n, int64_t inner, int64_t lanes, const T* x, T* y) {
  Vec<T> top = load_some(x, lanes);
  for (int64_t i = 1; i < n; ++i) top = larger<T>(load_some(x + i * inner, lanes), top);
  const Vec<T> sum = column_sum<T>(n, [&](int64_t i) {
    const Vec<T> e = vexp(load_some(x + i * inner, lanes) - top);
    store_some(y + i * inner, e, lanes);
    return e;
  });
  const Vec<T> log_sum = log ? vlog(sum) : Vec<T>{};
  for (int64_t i = 0; i < n; ++i) {
    const Vec<T> v = load_some((log ? x : y) + i * inner, lanes);
    store_some(y + i * inner, log ? (v - top) - log_sum : v / sum, lanes);
  }
}

template <class T>
void backward_columns(bool log, int64_t n, int64_t inner, int64_t lanes, const T* y, const T* dy,
                      T* dx) {
  const Vec<T> sum = column_sum<T>(n, [&](int64_t i) {
    const Vec<T> g = load_some(dy + i * inner, lanes);
    return log ? g : g * load_some(y + i * inner, lanes);
  });
  for (int64_t i = 0; i < n; ++i) {
    const Vec<T> v = load_some(y + i * inner, lanes), g = load_some(dy + i * inner, lanes);
    store_some(dx + i * inner, log ? g - vexp(v) * sum : v * (g - sum), lanes);
  }
}

// ---- short rows: as many together as there are lanes, transposed ----

template <class T>
void forward_short(bool log, int64_t rows, int64_t n, const T* x, T* y) {
  RowTile<T> in, out;
  store(in, Vec<T>{});  // n is at least 1, which the compiler cannot know
  tile_rows(rows, n, x, in);
  forward_columns<T>(log, n, kLanes<T>, kLanes<T>, in, out);
  untile_rows(rows, n, out, y);
}
template <class T>
void backward_short(bool log, int64_t rows, int64_t n, const T* y, const T* dy, T* dx) {
  RowTile<T> in, gradient, out;
  store(in, Vec<T>{});
  store(gradient, Vec<T>{});
  tile_rows(rows, n, y, in);
  tile_rows(rows, n, dy, gradient);
  backward_columns<T>(log, n, kLanes<T>, kLanes<T>, in, gradient, out);
  untile_rows(rows, n, out, dx);
}

// row(offset) for each row, few(offset, rows) for each few short ones, or columns(offset, lanes)
// for each few columns, in threads.
template <class T, class Row, class Few, class Columns>
void for_axis(const Exec& exec, int64_t outer, int64_t n, int64_t inner, const Row& row,
              const Few& few, const Columns& columns) {
  constexpr int64_t kWork = 16;  // of an element, for parallel_for
  if (inner == 1) {
    const int64_t rows = ceil_div(4096, n * kLanes<T>) * kLanes<T>;  // per item
    parallel_for(exec, ceil_div(outer, rows), outer * n * kWork, [&](int64_t item, int) {
      const int64_t end = min_of(outer, (item + 1) * rows), step = n <= kShortRow ? kLanes<T> : 1;
      for (int64_t i = item * rows; i < end; i += step)
        if (step > 1)
          few(i * n, min_of(step, end - i));
        else
          row(i * n);
    });
    return;
  }
  const int64_t groups = ceil_div(inner, kLanes<T>);
  parallel_for(exec, outer * groups, outer * n * inner * kWork, [&](int64_t item, int) {
    const int64_t first = item % groups * kLanes<T>;
    columns(item / groups * n * inner + first, min_of(kLanes<T>, inner - first));
  });
}

template <class T>
void softmax_forward(const Exec& exec, bool log, int64_t outer, int64_t n, int64_t inner,
                     const T* x, T* y) {
  if (outer * n * inner == 0) return;
  for_axis<T>(
      exec, outer, n, inner, [=](int64_t at) { forward_row(log, n, x + at, y + at); },
      [=](int64_t at, int64_t rows) { forward_short(log, rows, n, x + at, y + at); },
      [=](int64_t at, int64_t lanes) { forward_columns(log, n, inner, lanes, x + at, y + at); });
}

template <class T>
void softmax_backward(const Exec& exec, bool log, int64_t outer, int64_t n, int64_t inner,
                      const T* y, const T* dy, T* dx) {
  if (outer * n * inner == 0) return;
  for_axis<T>(
      exec, outer, n, inner, [=](int64_t at) { backward_row(log, n, y + at, dy + at, dx + at); },
      [=](int64_t at, int64_t rows) { backward_short(log, rows, n, y + at, dy + at, dx + at); },
      [=](int64_t at, int64_t lanes) {
        backward_columns(log, n, inner, lanes, y + at, dy + at, dx + at);
      });
}

template <class T>
void add(Ops<T>& table) {
  table.softmax_forward = softmax_forward<T>;
  table.softmax_backward = softmax_backward<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_softmax(Ops<float>& table) { add(table); }
void add_softmax(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
