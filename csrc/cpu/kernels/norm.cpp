// Normalisation by the statistics of columns: x (batches, rows, c), where each batch and each group
// of c / groups channels has a mean and a variance. Batch norm is one batch of n * pixels rows,
// instance and group norm have one batch per sample.
//
// Runs of kRun rows are summed in T, in registers, and the runs' sums in double, relative to each
// batch's first row: float32 sums of 100,000 rows, or of squares of values far from zero, would
// lose what the result needs.
#include <cmath>

#include "norm_sums.h"
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

// Rows of one work item, by shape alone: about 64 KB of floats, at most 4,096 rows.
int64_t rows_per_item(int64_t c) { return max_of(16, min_of(4096, (1 << 14) / c)); }

// The row blocks of all batches, and per block two sums per channel.
struct Blocks {
  int64_t rows, per_batch, count;
  explicit Blocks(const NormShape& s)
      : rows(rows_per_item(s.c)), per_batch(ceil_div(s.rows, rows)), count(s.batches * per_batch) {}
};

// ---- statistics ----

// Doubles for the blocks' sums (folded) and the totals, then kRows folded rows of T per batch.
constexpr int kRows = 4;
template <class T>
int64_t norm_workspace(const NormShape& s, int) {
  const Blocks blocks(s);
  const int64_t width = Fold<T>(s.c).width;
  const int64_t doubles = 2 * (blocks.count * width + s.batches * s.c);
  return doubles * int64_t{sizeof(double)} + s.batches * kRows * width * int64_t{sizeof(T)};
}

template <class T>
struct Scratch {
  double *sums, *totals;
  T* rows;
  int64_t width;
  Scratch(const Exec& exec, const NormShape& s)
      : sums(static_cast<double*>(exec.workspace)),
        totals(sums + Blocks(s).count * 2 * Fold<T>(s.c).width),
        rows(reinterpret_cast<T*>(totals + s.batches * 2 * s.c)),
        width(Fold<T>(s.c).width) {}
  T* row(int64_t batch, int which) const { return rows + (batch * kRows + which) * width; }
};

// body(begin, end, batch, sums) for every block, rows counted from the first batch's first; then
// totals (batches, 2, c), added up in block order.
template <class T, class Body>
void block_sums(const Exec& exec, const NormShape& s, int64_t work, const Scratch<T>& scratch,
                const Body& body) {
  const Blocks blocks(s);
  parallel_for(exec, blocks.count, work, [&](int64_t item, int) {
    const int64_t batch = item / blocks.per_batch;
    const int64_t first = item % blocks.per_batch * blocks.rows;
    const int64_t last = min_of(first + blocks.rows, s.rows);
    body(batch * s.rows + first, batch * s.rows + last, batch,
         scratch.sums + item * 2 * scratch.width);
  });
  for (int64_t batch = 0; batch < s.batches; ++batch) {
    double* total = scratch.totals + batch * 2 * s.c;
    for (int64_t i = 0; i < 2 * s.c; ++i) total[i] = 0;
    for (int64_t block = 0; block < blocks.per_batch; ++block)
      for (int64_t i = 0; i < 2 * s.c; ++i)
        total[i] += scratch.sums[(batch * blocks.per_batch + block) * 2 * scratch.width + i];
  }
}

// totals -> mean and variance of each group, written to each of its channels. Channels have sums
// relative to their own shifts, so groups join means and squared deviations.
template <class T>
void finish_statistics(const NormShape& s, const T* x, const double* totals, int64_t batch, T* mean,
                       T* var) {
  const int64_t size = s.c / s.groups;
  const T* shift = x + batch * s.rows * s.c;
  for (int64_t first = 0; first < s.c; first += size) {
    const auto channel_mean = [&](int64_t c) { return double(shift[c]) + totals[c] / s.rows; };
    double m = 0, squares = 0;
    for (int64_t c = first; c < first + size; ++c) m += channel_mean(c);
    m /= size;
    for (int64_t c = first; c < first + size; ++c) {
      const double off = size == 1 ? 0 : channel_mean(c) - m;
      squares += totals[s.c + c] - totals[c] * totals[c] / s.rows + s.rows * off * off;
    }
    squares = squares < 0 ? 0 : squares;
    for (int64_t c = first; c < first + size; ++c) {
      mean[batch * s.c + c] = T(m);
      var[batch * s.c + c] = T(squares / double(s.rows * size));
    }
  }
}

// running = (1 - momentum) running + momentum * (mean over batches), variances unbiased.
template <class T>
void update_running(const NormShape& s, const T* mean, const T* var, double momentum,
                    T* running_mean, T* running_var) {
  const double count = double(s.rows) * (s.c / s.groups);
  for (int64_t c = 0; c < s.c; ++c) {
    double m = 0, v = 0;
    for (int64_t batch = 0; batch < s.batches; ++batch) {
      m += mean[batch * s.c + c];
      v += var[batch * s.c + c];
    }
    m /= double(s.batches);
    v *= count / (count - 1) / double(s.batches);
    running_mean[c] = T((1 - momentum) * running_mean[c] + momentum * m);
    running_var[c] = T((1 - momentum) * running_var[c] + momentum * v);
  }
}

template <class T>
void norm_statistics(const Exec& exec, const NormShape& s, const T* x, T* mean, T* var,
                     const double* momentum, T* running_mean, T* running_var) {
  if (s.rows == 0 || s.batches == 0) {
    for (int64_t i = 0; i < s.batches * s.c; ++i) {
      mean[i] = 0;
      var[i] = 1;
    }
    return;
  }
  const Scratch<T> scratch(exec, s);
  for (int64_t batch = 0; batch < s.batches; ++batch) {
    T* shift = scratch.row(batch, 0);
    for (int64_t c = 0; c < s.c; ++c) shift[c] = x[batch * s.rows * s.c + c];
    repeat(s.c, shift);
  }
  const int64_t work = s.batches * s.rows * s.c;
  block_sums(exec, s, work, scratch, [&](int64_t begin, int64_t end, int64_t batch, double* sums) {
    column_pairs<T>(begin, end, s.c, sums, Deviations<T>{x, scratch.row(batch, 0)});
  });
  for (int64_t batch = 0; batch < s.batches; ++batch)
    finish_statistics(s, x, scratch.totals + batch * 2 * s.c, batch, mean, var);
  if (running_mean) update_running(s, mean, var, *momentum, running_mean, running_var);
}

template <class T>
T inverse_std(const NormShape& s, T var) {
  return T(1 / std::sqrt(double(var) + s.eps));
}

// ---- y = (x - mean) * scale + bias ----

// out = (x - rows[0]) * rows[1] + rows[2] over rows [begin, end).
template <class T>
void scale_shift(int64_t begin, int64_t end, int64_t c, const T* x, const T* mean, const T* scale,
                 const T* bias, T* out) {
  constexpr int kL = kLanes<T>;
  const Fold<T> f(c);
  int64_t at = begin * c;
  for (const int64_t last = end * c; at + f.width <= last; at += f.width)
    for (int64_t i = 0; i < f.width; i += kL)
      store(out + at + i, (load(x + at + i) - load(mean + i)) * load(scale + i) + load(bias + i));
  for (; at < end * c; ++at) out[at] = (x[at] - mean[at % c]) * scale[at % c] + bias[at % c];
}

template <class T>
void norm_apply(const Exec& exec, const NormShape& s, const T* x, const T* mean, const T* var,
                const T* w, const T* b, T* y) {
  const Scratch<T> scratch(exec, s);
  const Blocks blocks(s);
  for (int64_t batch = 0; batch < s.batches; ++batch) {
    T* row[3];
    for (int i = 0; i < 3; ++i) row[i] = scratch.row(batch, i);
    for (int64_t c = 0; c < s.c; ++c) {
      row[0][c] = mean[batch * s.c + c];
      row[1][c] = inverse_std(s, var[batch * s.c + c]) * (w ? w[c] : T(1));
      row[2][c] = b ? b[c] : T(0);
    }
    for (T* r : row) repeat(s.c, r);
  }
  parallel_for(exec, blocks.count, s.batches * s.rows * s.c, [&](int64_t item, int) {
    const int64_t batch = item / blocks.per_batch;
    const int64_t first = item % blocks.per_batch * blocks.rows;
    const int64_t last = min_of(first + blocks.rows, s.rows);
    scale_shift(batch * s.rows + first, batch * s.rows + last, s.c, x, scratch.row(batch, 0),
                scratch.row(batch, 1), scratch.row(batch, 2), y);
  });
}

// ---- backward ----

// The sums per batch and channel.
template <class T>
void gradient_sums(const Exec& exec, const NormShape& s, const T* x, const T* dy, const T* mean,
                   const Scratch<T>& scratch) {
  for (int64_t batch = 0; batch < s.batches; ++batch) {
    T* row = scratch.row(batch, 0);
    for (int64_t c = 0; c < s.c; ++c) row[c] = mean[batch * s.c + c];
    repeat(s.c, row);
  }
  const int64_t work = 2 * s.batches * s.rows * s.c;
  block_sums(exec, s, work, scratch, [&](int64_t begin, int64_t end, int64_t batch, double* sums) {
    column_pairs<T>(begin, end, s.c, sums, GradientTerms<T>{x, dy, scratch.row(batch, 0)});
  });
}

// dw (c) and db (c) from the sums, added up in batch order.
template <class T>
void parameter_gradients(const NormShape& s, const T* var, const double* totals, T* dw, T* db) {
  for (int64_t c = 0; c < s.c; ++c) {
    double weight = 0, bias = 0;
    for (int64_t batch = 0; batch < s.batches; ++batch) {
      const double* total = totals + batch * 2 * s.c;
      bias += total[c];
      weight += total[s.c + c] * double(inverse_std(s, var[batch * s.c + c]));
    }
    if (dw) dw[c] = T(weight);
    if (db) db[c] = T(bias);
  }
}

// Rows 1, 2, 3 of the scratch: dx = dy * row1 + (x - mean) * row2 + row3. With d = inv_std,
// dx = d (w dy - mean(w dy) - xhat mean(w dy xhat)), means over the group, xhat = (x - mean) d.
template <class T>
void input_coefficients(const NormShape& s, const T* var, const T* w, bool fixed,
                        const Scratch<T>& scratch, int64_t batch) {
  const int64_t size = s.c / s.groups;
  const double* total = scratch.totals + batch * 2 * s.c;
  T *scale = scratch.row(batch, 1), *slope = scratch.row(batch, 2), *offset = scratch.row(batch, 3);
  for (int64_t first = 0; first < s.c; first += size) {
    const double d = double(inverse_std(s, var[batch * s.c + first]));
    double sum = 0, products = 0;
    for (int64_t c = first; c < first + size && !fixed; ++c) {
      sum += (w ? w[c] : T(1)) * total[c];
      products += (w ? w[c] : T(1)) * total[s.c + c];
    }
    const double count = double(s.rows) * double(size);
    for (int64_t c = first; c < first + size; ++c) {
      const T channel = inverse_std(s, var[batch * s.c + c]);
      scale[c] = channel * (w ? w[c] : T(1));
      slope[c] = T(-d * d * d * products / count);
      offset[c] = T(-d * sum / count);
    }
  }
  for (int i = 1; i < kRows; ++i) repeat(s.c, scratch.row(batch, i));
}

template <class T>
void input_gradient(int64_t begin, int64_t end, int64_t c, const T* x, const T* dy, const T* mean,
                    const T* scale, const T* slope, const T* offset, T* dx) {
  constexpr int kL = kLanes<T>;
  const Fold<T> f(c);
  int64_t at = begin * c;
  for (const int64_t last = end * c; at + f.width <= last; at += f.width)
    for (int64_t i = 0; i < f.width; i += kL)
      store(dx + at + i, load(dy + at + i) * load(scale + i) +
                             (load(x + at + i) - load(mean + i)) * load(slope + i) +
                             load(offset + i));
  for (; at < end * c; ++at) {
    const int64_t i = at % c;
    dx[at] = dy[at] * scale[i] + (x[at] - mean[i]) * slope[i] + offset[i];
  }
}

template <class T>
void norm_backward(const Exec& exec, const NormShape& s, const T* x, const T* dy, const T* mean,
                   const T* var, const T* w, bool fixed, T* dx, T* dw, T* db) {
  const Scratch<T> scratch(exec, s);
  const Blocks blocks(s);
  gradient_sums(exec, s, x, dy, mean, scratch);
  parameter_gradients(s, var, scratch.totals, dw, db);
  if (!dx) return;
  for (int64_t batch = 0; batch < s.batches; ++batch)
    input_coefficients(s, var, w, fixed, scratch, batch);
  parallel_for(exec, blocks.count, 2 * s.batches * s.rows * s.c, [&](int64_t item, int) {
    const int64_t batch = item / blocks.per_batch;
    const int64_t first = item % blocks.per_batch * blocks.rows;
    const int64_t last = min_of(first + blocks.rows, s.rows);
    input_gradient(batch * s.rows + first, batch * s.rows + last, s.c, x, dy, scratch.row(batch, 0),
                   scratch.row(batch, 1), scratch.row(batch, 2), scratch.row(batch, 3), dx);
  });
}

template <class T>
void add(Ops<T>& table) {
  table.norm_workspace = norm_workspace<T>;
  table.norm_statistics = norm_statistics<T>;
  table.norm_apply = norm_apply<T>;
  table.norm_backward = norm_backward<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_norm(Ops<float>& table) { add(table); }
void add_norm(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
