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
inline Vec<T> prelu(Vec<T> x, Vec<T> a) {
  return x > T(0) ? x : a * x;
}

template <class T>
void prelu_forward(const Exec& exec, int64_t rows, int64_t c, const T* x, const T* a, T* y) {
  const int64_t block = rows_per_block(c);
  const auto slopes = [=](int64_t col, int64_t n) {
    return c == 1 ? broadcast(a[0]) : n == kLanes<T> ? load(a + col) : load_first(a + col, n);
  };
  parallel_for(exec, ceil_div(rows, block), rows * c, [&](int64_t item, int) {
    const T* in = x + item * block * c;
    T* out = y + item * block * c;
    for_vectors<T>(
        min_of(block, rows - item * block), c,
        [&](int64_t i, int64_t col) {
          store(out + i, prelu<T>(load(in + i), slopes(col, kLanes<T>)));
        },
        [&](int64_t i, int64_t col, int64_t n) {
          store_first(out + i, prelu<T>(load_first(in + i, n), slopes(col, n)), n);
        });
  });
}

template <class T>
int64_t prelu_backward_workspace(int64_t rows, int64_t c, int) {
  return ceil_div(rows, rows_per_block(c)) * c * static_cast<int64_t>(sizeof(T));
}

// dx of one block, and da (c) = its column sums of dy min(0, x).
template <class T>
void prelu_backward_block(int64_t rows, int64_t c, const T* x, const T* a, const T* dy, T* dx,
                          T* da) {
  for (int64_t col = 0; col < c; ++col) da[col] = 0;
  for (int64_t i = 0, col = 0; i < rows * c; ++i) {
    dx[i] = x[i] > T(0) ? dy[i] : a[col] * dy[i];
    da[col] += x[i] > T(0) ? T(0) : dy[i] * x[i];
    col = col + 1 == c ? 0 : col + 1;
  }
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

// Where the largest of x[0 .. k) lies: the first NaN, or else the first of the largest.
template <class T>
inline int64_t first_largest(const T* x, int64_t k) {
  int64_t best = 0;
  for (int64_t j = 1; j < k; ++j)
    if (!(x[j] <= x[best]) && x[best] == x[best]) best = j;
  return best;
}

template <class T>
void maxout_forward(const Exec& exec, int64_t n, int64_t k, const T* x, T* y) {
  const int64_t grain = max_of(1, kGrain / k);
  parallel_for(exec, ceil_div(n, grain), n * k, [&](int64_t item, int) {
    const int64_t end = min_of(n, (item + 1) * grain);
    for (int64_t i = item * grain; i < end; ++i) y[i] = x[i * k + first_largest(x + i * k, k)];
  });
}

template <class T>
void maxout_backward(const Exec& exec, int64_t n, int64_t k, const T* x, const T* dy, T* dx) {
  const int64_t grain = max_of(1, kGrain / k);
  parallel_for(exec, ceil_div(n, grain), n * k, [&](int64_t item, int) {
    const int64_t end = min_of(n, (item + 1) * grain);
    for (int64_t i = item * grain; i < end; ++i) {
      const int64_t best = first_largest(x + i * k, k);
      for (int64_t j = 0; j < k; ++j) dx[i * k + j] = j == best ? dy[i] : T(0);
    }
  });
}

template <class T>
void add(Ops<T>& table) {
  table.prelu_forward = prelu_forward<T>;
  table.prelu_backward_workspace = prelu_backward_workspace<T>;
  table.prelu_backward = prelu_backward<T>;
  table.maxout_forward = maxout_forward<T>;
  table.maxout_backward = maxout_backward<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_activation_channels(Ops<float>& table) { add(table); }
void add_activation_channels(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
