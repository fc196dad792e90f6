// Cross-entropy of logits or log-probabilities (rows, c).
#include <cmath>

#include "loss_short_rows.h"
#include "loss_target.h"
#include "parallel.h"
#include "vec.h"
#include "vmath.h"

namespace convgrad::cpu {
namespace {

constexpr int64_t kTile = 1024;  // exponentials computed at a time, on the stack

// Rows of one work item, from the shape alone.
int64_t rows_per_item(int64_t c) { return max_of(1, min_of(1024, (1 << 14) / c)); }

template <class T>
void exp_all(int64_t n, T* e) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(e + i, vexp(load(e + i)));
  if (i < n) store_first(e + i, vexp(load_first(e + i, n - i)), n - i);
}

// A NaN in x may be passed over here: it shows in the sum of exponentials.
template <class T>
T row_max(int64_t c, const T* x) {
  constexpr int kL = kLanes<T>;
  T m = x[0];
  int64_t i = 0;
  if (c >= 2 * kL) {
    Vec<T> v = load(x);
    for (i = kL; i + kL <= c; i += kL) {
      const Vec<T> w = load(x + i);
      v = w > v ? w : v;
    }
    m = v[0];
    for (int l = 1; l < kL; ++l) m = v[l] > m ? v[l] : m;
  }
  for (; i < c; ++i) m = x[i] > m ? x[i] : m;
  return m;
}

template <class T>
T sum_of(int64_t n, const T* x) {
  constexpr int kL = kLanes<T>;
  T s = 0;
  int64_t i = 0;
  if (n >= 2 * kL) {
    Vec<T> v = {};
    for (; i + kL <= n; i += kL) v += load(x + i);
    for (int l = 0; l < kL; ++l) s += v[l];
  }
  for (; i < n; ++i) s += x[i];
  return s;
}

// stats[2 r], stats[2 r + 1]: maximum and sum of exp(x - maximum) of each row.
template <class T>
void row_stats(int64_t rows, int64_t c, const T* x, T* stats) {
  alignas(kVectorBytes) T e[kTile];
  const int64_t fit = max_of(1, kTile / c);  // whole rows per tile
  for (int64_t r0 = 0; r0 < rows; r0 += fit) {
    const int64_t n = min_of(fit, rows - r0);
    for (int64_t r = r0; r < r0 + n; ++r) {
      stats[2 * r] = row_max(c, x + r * c);
      stats[2 * r + 1] = 0;
    }
    for (int64_t c0 = 0; c0 < c; c0 += kTile) {  // more than once only for long single rows
      const int64_t cols = min_of(kTile, c - c0);
      for (int64_t r = 0; r < n; ++r)
        for (int64_t i = 0; i < cols; ++i)
          e[r * cols + i] = x[(r0 + r) * c + c0 + i] - stats[2 * (r0 + r)];
      exp_all(n * cols, e);
      for (int64_t r = 0; r < n; ++r) stats[2 * (r0 + r) + 1] += sum_of(cols, e + r * cols);
    }
  }
}

// -sum of q[c] log p[c]; log p = x - m - log_sum.
template <class T>
T row_loss(const Target<T>& target, int64_t row, const T* x, T m, T log_sum) {
  if (target.sparse()) {
    const int64_t y = target.classes[row];
    return target.weight_of(y) * (log_sum - (x[y] - m));
  }
  double loss = 0;
  for (int64_t c = 0; c < target.s.c; ++c)
    loss += double(target.at(row, c) * (log_sum - (x[c] - m)));
  return T(loss);
}

int64_t cross_entropy_workspace(const CrossEntropyShape& s, int) {
  return ceil_div(s.rows, rows_per_item(s.c)) * int64_t{sizeof(Partial)};
}

template <class T>
void forward_rows(const Target<T>& target, int64_t begin, int64_t end, const T* x, T* loss,
                  T* stats, Partial* out) {
  const CrossEntropyShape& s = target.s;
  Partial sum{0, 0, -1};
  if (!s.log_probs) row_stats(end - begin, s.c, x + begin * s.c, stats + 2 * begin);
  for (int64_t row = begin; row < end; ++row) {
    double weight = 1;
    T value = 0;
    const int64_t y = target.classes ? target.classes[row] : 0;
    const bool ignored = target.classes && y == s.ignore_index;
    if (!ignored && (y < 0 || y >= s.c)) {
      if (sum.bad_row < 0) sum.bad_row = row;
    } else if (!ignored) {
      const T m = s.log_probs ? T(0) : stats[2 * row];
      const T log_sum = s.log_probs ? T(0) : std::log(stats[2 * row + 1]);
      value = row_loss(target, row, x + row * s.c, m, log_sum);
      if (target.classes) weight = double(target.weight_of(y));
      sum.loss += double(value);
      sum.weight += weight;
    }
    if (s.reduction == Reduction::kNone) loss[row] = value;
  }
  *out = sum;
}

template <class T>
void cross_entropy_forward(const Exec& exec, const CrossEntropyShape& s, const T* x,
                           const int64_t* classes, const T* probs, const T* weight, T* loss,
                           T* stats, T* norm, int64_t* bad_row) {
  const Target<T> target{s, classes, probs, weight};
  const int64_t rows = rows_per_item(s.c), items = ceil_div(s.rows, rows);
  Partial* partial = static_cast<Partial*>(exec.workspace);
  parallel_for(exec, items, s.rows * s.c * (s.log_probs ? 1 : 4), [&](int64_t item, int) {
    const int64_t begin = item * rows, end = min_of(begin + rows, s.rows);
    if constexpr (__is_same(T, float))
      if (has_short_rows(target))
        return forward_short_rows(target, begin, end, x, loss, stats, partial + item);
    forward_rows(target, begin, end, x, loss, stats, partial + item);
  });
  Partial sum{0, 0, -1};
  for (int64_t item = 0; item < items; ++item) {
    sum.loss += partial[item].loss;
    sum.weight += partial[item].weight;
    if (sum.bad_row < 0) sum.bad_row = partial[item].bad_row;
  }
  *bad_row = sum.bad_row;
  const double divisor = s.reduction == Reduction::kMean ? sum.weight : 1;
  *norm = T(divisor);
  if (s.reduction != Reduction::kNone) *loss = T(sum.loss / divisor);
}

// dx holds the probabilities p, or nothing for log-probabilities; it becomes scale (p sum(q) - q).
template <class T>
void backward_row(const Target<T>& target, int64_t row, T scale, T* dx) {
  const int64_t c = target.s.c;
  const bool log_probs = target.s.log_probs;
  if (target.sparse()) {
    const int64_t y = target.classes[row];
    const T total = scale * target.weight_of(y);
    for (int64_t i = 0; i < c; ++i) dx[i] = log_probs ? T(0) : total * dx[i];
    dx[y] -= total;
    return;
  }
  double total = 0;
  for (int64_t i = 0; i < c; ++i) total += double(target.at(row, i));
  for (int64_t i = 0; i < c; ++i)
    dx[i] = scale * ((log_probs ? T(0) : dx[i] * T(total)) - target.at(row, i));
}

// The gradient of a distribution as target: -scale (1 - smoothing) weight log p.
template <class T>
void backward_probs(const Target<T>& target, const T* x, const T* stats, T scale, T* dprobs) {
  const T log_sum = std::log(stats[1]);
  for (int64_t i = 0; i < target.s.c; ++i)
    dprobs[i] = scale * target.keep * target.weight_of(i) * (log_sum - (x[i] - stats[0]));
}

// dx = softmax(x) for rows [begin, end), whose statistics are known.
template <class T>
void softmax_rows(int64_t begin, int64_t end, int64_t c, const T* x, const T* stats, T* dx) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t i = row * c; i < (row + 1) * c; ++i) dx[i] = x[i] - stats[2 * row];
  exp_all((end - begin) * c, dx + begin * c);
  for (int64_t row = begin; row < end; ++row) {
    const T scale = T(1) / stats[2 * row + 1];
    for (int64_t i = row * c; i < (row + 1) * c; ++i) dx[i] *= scale;
  }
}

template <class T>
void cross_entropy_backward(const Exec& exec, const CrossEntropyShape& s, const T* x,
                            const int64_t* classes, const T* probs, const T* weight, const T* stats,
                            const T* norm, const T* dy, T* dx, T* dprobs) {
  const Target<T> target{s, classes, probs, weight};
  const int64_t rows = rows_per_item(s.c), c = s.c;
  parallel_for(exec, ceil_div(s.rows, rows), s.rows * c * 4, [&](int64_t item, int) {
    const int64_t begin = item * rows, end = min_of(begin + rows, s.rows);
    if constexpr (__is_same(T, float))
      if (has_short_rows(target)) {
        const T scale = s.reduction == Reduction::kNone ? T(0) : dy[0] / *norm;
        return backward_short_rows(target, begin, end, x, stats,
                                   s.reduction == Reduction::kNone ? dy : &scale, dx);
      }
    if (!s.log_probs) softmax_rows(begin, end, c, x, stats, dx);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = classes ? classes[row] : 0;
      if ((classes && y == s.ignore_index) || y < 0 || y >= c) {
        for (int64_t i = row * c; i < (row + 1) * c; ++i) dx[i] = 0;
        continue;
      }
      const T scale = s.reduction == Reduction::kNone ? dy[row] : dy[0] / *norm;
      backward_row(target, row, scale, dx + row * c);
      if (dprobs) backward_probs(target, x + row * c, stats + 2 * row, scale, dprobs + row * c);
    }
  });
}

template <class T>
void add(Ops<T>& table) {
  table.cross_entropy_workspace = cross_entropy_workspace;
  table.cross_entropy_forward = cross_entropy_forward<T>;
  table.cross_entropy_backward = cross_entropy_backward<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_loss(Ops<float>& table) { add(table); }
void add_loss(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
