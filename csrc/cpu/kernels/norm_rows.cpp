// Normalisation of each row of x (rows, c) by its own mean and variance: layer norm.
#include <cmath>

#include "parallel.h"
#include "vec.h"
#include "wide.h"

namespace convgrad::cpu {
namespace {

// Rows of one work item, by shape alone: about 64 KB of floats.
int64_t rows_per_item(int64_t c) { return max_of(16, (1 << 14) / max_of(c, 1)); }

// sums of term(x[i]) and mean in double.
template <class T>
double row_sum(int64_t c, const T* x) {
  Doubles<T> sum = {};
  int64_t i = 0;
  for (; i + kLanes<T> <= c; i += kLanes<T>) sum += to_doubles<T>(load(x + i));
  double s = sum_lanes<T>(sum);
  for (; i < c; ++i) s += double(x[i]);
  return s;
}
template <class T>
double row_squares(int64_t c, const T* x, double mean) {
  Doubles<T> sum = {};
  int64_t i = 0;
  for (; i + kLanes<T> <= c; i += kLanes<T>) {
    const Doubles<T> d = to_doubles<T>(load(x + i)) - mean;
    sum += d * d;
  }
  double s = sum_lanes<T>(sum);
  for (; i < c; ++i) s += (double(x[i]) - mean) * (double(x[i]) - mean);
  return s;
}

template <class T>
void layer_norm_forward(const Exec& exec, int64_t rows, int64_t c, double eps, const T* x,
                        const T* w, const T* b, T* y, T* mean, T* inv_std) {
  const int64_t step = rows_per_item(c);
  parallel_for(exec, ceil_div(rows, step), 3 * rows * c, [&](int64_t item, int) {
    for (int64_t row = item * step; row < min_of((item + 1) * step, rows); ++row) {
      const T* in = x + row * c;
      T* out = y + row * c;
      const double m = row_sum(c, in) / double(c);
      const T scale = T(1 / std::sqrt(row_squares(c, in, m) / double(c) + eps)), shift = T(m);
      for (int64_t i = 0; i < c; ++i) out[i] = (in[i] - shift) * scale;
      if (w)
        for (int64_t i = 0; i < c; ++i) out[i] *= w[i];
      if (b)
        for (int64_t i = 0; i < c; ++i) out[i] += b[i];
      mean[row] = shift;
      inv_std[row] = scale;
    }
  });
}

// Per work item two sums per column.
int64_t layer_norm_backward_workspace(int64_t rows, int64_t c, int) {
  return ceil_div(rows, rows_per_item(c)) * 2 * c * int64_t{sizeof(double)};
}

// dx = d (g - mean(g) - xhat mean(g xhat)), g = w dy, xhat = (x - mean) d.
template <class T>
void input_row(int64_t c, const T* x, const T* dy, T mean, T inv_std, const T* w, T* dx) {
  double sum = 0, products = 0;
  for (int64_t i = 0; i < c; ++i) {
    const T g = w ? w[i] * dy[i] : dy[i];
    sum += double(g);
    products += double(g * (x[i] - mean));
  }
  const double d = double(inv_std);
  const T offset = T(-d * sum / double(c)), slope = T(-d * d * d * products / double(c));
  for (int64_t i = 0; i < c; ++i)
    dx[i] = (w ? w[i] * dy[i] : dy[i]) * inv_std + (x[i] - mean) * slope + offset;
}

template <class T>
void parameter_row(int64_t c, const T* x, const T* dy, T mean, T inv_std, double* dw, double* db) {
  for (int64_t i = 0; i < c; ++i) {
    dw[i] += double(dy[i] * ((x[i] - mean) * inv_std));
    db[i] += double(dy[i]);
  }
}

template <class T>
void layer_norm_backward(const Exec& exec, int64_t rows, int64_t c, const T* x, const T* dy,
                         const T* mean, const T* inv_std, const T* w, T* dx, T* dw, T* db) {
  const int64_t step = rows_per_item(c), items = ceil_div(rows, step);
  double* sums = static_cast<double*>(exec.workspace);
  parallel_for(exec, items, 4 * rows * c, [&](int64_t item, int) {
    double* sum = sums + item * 2 * c;
    for (int64_t i = 0; i < 2 * c; ++i) sum[i] = 0;
    for (int64_t row = item * step; row < min_of((item + 1) * step, rows); ++row) {
      const int64_t at = row * c;
      if (dx) input_row(c, x + at, dy + at, mean[row], inv_std[row], w, dx + at);
      if (dw || db) parameter_row(c, x + at, dy + at, mean[row], inv_std[row], sum, sum + c);
    }
  });
  for (int64_t i = 0; i < c; ++i) {
    double weight = 0, bias = 0;
    for (int64_t item = 0; item < items; ++item) {
      weight += sums[item * 2 * c + i];
      bias += sums[item * 2 * c + c + i];
    }
    if (dw) dw[i] = T(weight);
    if (db) db[i] = T(bias);
  }
}

template <class T>
void add(Ops<T>& table) {
  table.layer_norm_forward = layer_norm_forward<T>;
  table.layer_norm_backward_workspace = layer_norm_backward_workspace;
  table.layer_norm_backward = layer_norm_backward<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_norm_rows(Ops<float>& table) { add(table); }
void add_norm_rows(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
