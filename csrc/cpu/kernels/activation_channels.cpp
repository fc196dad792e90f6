// Activations that know channels: prelu and maxout. Channels last.
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

// ---- prelu ----

// Rows of a work item, from the shape alone: about 2^14 elements, and at most 4,096 terms of a sum.
int64_t rows_per_block(int64_t c) { return max_of(1, min_of(4096, kGrain / max_of(c, 1))); }

// body(i, col) for each vector that lies whole inside one row of a block (rows, c), and rest(i,
// col, n) for what is left of it, n < lanes elements. A block of one column counts as one row.
template <class T, class Body, class Rest>
inline void for_vectors(int64_t rows, int64_t c, const Body& body, const Rest& rest) {
  const int64_t width = c == 1 ? rows : c, lines = c == 1 ? 1 : rows;
  for (int64_t line = 0; line < lines; ++line) {
    int64_t col = 0;
    for (; col + kLanes<T> <= width; col += kLanes<T>) body(line * width + col, c == 1 ? 0 : col);
    if (col < width) rest(line * width + col, c == 1 ? 0 : col, width - col);
  }
}

template <class T>
void prelu_forward(const Exec& exec, int64_t rows, int64_t c, const T* x, const T* a, T* y) {
  const int64_t block = rows_per_block(c);
  parallel_for(exec, ceil_div(rows, block), rows * c, [&](int64_t item, int) {
    const T* in = x + item * block * c;
    T* out = y + item * block * c;
    for_vectors<T>(
        min_of(block, rows - item * block), c,
        [&](int64_t i, int64_t col) {
          const Vec<T> v = load(in + i);
          store(out + i, v > T(0) ? v : (c == 1 ? broadcast(a[0]) : load(a + col)) * v);
        },
        [&](int64_t i, int64_t col, int64_t n) {
          for (int64_t j = 0; j < n; ++j)
            out[i + j] = in[i + j] > T(0) ? in[i + j] : a[c == 1 ? 0 : col + j] * in[i + j];
        });
  });
}

template <class T>
int64_t prelu_backward_workspace(int64_t rows, int64_t c, int) {
  return ceil_div(rows, rows_per_block(c)) * c * static_cast<int64_t>(sizeof(T));
}

template <class T>
inline Vec<T> slope_term(Vec<T> x, Vec<T> dy) {
  return x > T(0) ? Vec<T>{} : dy * x;
}

// dx of one block, and da (c) = its column sums of dy min(0, x).
template <class T>
void prelu_backward_block(int64_t rows, int64_t c, const T* x, const T* a, const T* dy, T* dx,
                          T* da) {
  const bool shared = c == 1;
  Vec<T> sum = {};  // of the only column
  for (int64_t col = 0; col < c; ++col) da[col] = 0;
  for_vectors<T>(
      rows, c,
      [&](int64_t i, int64_t col) {
        const Vec<T> v = load(x + i), g = load(dy + i), term = slope_term<T>(v, g);
        store(dx + i, v > T(0) ? g : (shared ? broadcast(a[0]) : load(a + col)) * g);
        if (shared)
          sum += term;
        else
          store(da + col, load(da + col) + term);
      },
      [&](int64_t i, int64_t col, int64_t n) {
        for (int64_t j = 0; j < n; ++j) {
          const int64_t k = shared ? 0 : col + j;
          dx[i + j] = x[i + j] > T(0) ? dy[i + j] : a[k] * dy[i + j];
          da[k] += x[i + j] > T(0) ? T(0) : dy[i + j] * x[i + j];
        }
      });
  for (int lane = 0; lane < kLanes<T>; ++lane) da[0] += shared ? sum[lane] : T(0);
}

template <class T>
void prelu_backward(const Exec& exec, int64_t rows, int64_t c, const T* x, const T* a, const T* dy,
                    T* dx, T* da) {
  const int64_t block = rows_per_block(c), blocks = ceil_div(rows, block);
  T* partial = static_cast<T*>(exec.workspace);
  parallel_for(exec, blocks, rows * c, [&](int64_t item, int) {
    const int64_t at = item * block * c;
    prelu_backward_block(min_of(block, rows - item * block), c, x + at, a, dy + at, dx + at,
                         partial + item * c);
  });
  for (int64_t col = 0; col < c; ++col) {
    double sum = 0;
    for (int64_t item = 0; item < blocks; ++item)
      sum += static_cast<double>(partial[item * c + col]);
    da[col] = static_cast<T>(sum);
  }
}

// ---- maxout ----

// Where the largest of x[0 .. k) lies: the first NaN, or else the first of the largest. K = k where
// it is known to the compiler, else 0. Without branches: which is the largest cannot be foreseen.
template <class T, int K>
inline int64_t first_largest(const T* x, int64_t k, T* largest) {
  T best = x[0];
  int64_t at = 0;
  for (int64_t j = 1; j < (K ? K : k); ++j) {
    const bool more = !(x[j] <= best) & (best == best);
    best = more ? x[j] : best;
    at = more ? j : at;
  }
  *largest = best;
  return at;
}

template <class T, int K>
void maxout_forward(const Exec& exec, int64_t n, int64_t k, const T* x, T* y) {
  const int64_t grain = max_of(1, kGrain / k);
  parallel_for(exec, ceil_div(n, grain), n * k, [&](int64_t item, int) {
    const int64_t end = min_of(n, (item + 1) * grain);
    for (int64_t i = item * grain; i < end; ++i) first_largest<T, K>(x + i * k, k, y + i);
  });
}

template <class T, int K>
void maxout_backward(const Exec& exec, int64_t n, int64_t k, const T* x, const T* dy, T* dx) {
  const int64_t grain = max_of(1, kGrain / k);
  parallel_for(exec, ceil_div(n, grain), n * k, [&](int64_t item, int) {
    const int64_t end = min_of(n, (item + 1) * grain);
    for (int64_t i = item * grain; i < end; ++i) {
      T largest;
      const int64_t at = first_largest<T, K>(x + i * k, k, &largest);
      for (int64_t j = 0; j < (K ? K : k); ++j) dx[i * k + j] = j == at ? dy[i] : T(0);
    }
  });
}

template <class T>
void maxout_forward_any(const Exec& exec, int64_t n, int64_t k, const T* x, T* y) {
  if (k == 2) return maxout_forward<T, 2>(exec, n, k, x, y);
  maxout_forward<T, 0>(exec, n, k, x, y);
}
template <class T>
void maxout_backward_any(const Exec& exec, int64_t n, int64_t k, const T* x, const T* dy, T* dx) {
  if (k == 2) return maxout_backward<T, 2>(exec, n, k, x, dy, dx);
  maxout_backward<T, 0>(exec, n, k, x, dy, dx);
}

template <class T>
void add(Ops<T>& table) {
  table.prelu_forward = prelu_forward<T>;
  table.prelu_backward_workspace = prelu_backward_workspace<T>;
  table.prelu_backward = prelu_backward<T>;
  table.maxout_forward = maxout_forward_any<T>;
  table.maxout_backward = maxout_backward_any<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_activation_channels(Ops<float>& table) { add(table); }
void add_activation_channels(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
