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

// The row blocks of all batches.
struct Blocks {
  int64_t rows, per_batch, count;
  explicit Blocks(const NormShape& s)
      : rows(rows_per_item(s.c)), per_batch(ceil_div(s.rows, rows)), count(s.batches * per_batch) {}
};

// Rows [begin, end) of `batch`, counted from the first batch's first.
struct Block {
  int64_t index, batch, begin, end;
};
template <class Body>
void for_blocks(const Exec& exec, const NormShape& s, int64_t work, const Body& body) {
  const Blocks blocks(s);
  parallel_for(exec, blocks.count, work, [&](int64_t item, int) {
    const int64_t batch = item / blocks.per_batch;
    const int64_t first = item % blocks.per_batch * blocks.rows;
    const int64_t last = min_of(first + blocks.rows, s.rows);
    body(Block{item, batch, batch * s.rows + first, batch * s.rows + last});
  });
}

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

// terms(batch) summed over every block; then totals (batches, 2, c), added up in block order.
template <class T, class Terms>
void block_sums(const Exec& exec, const NormShape& s, int64_t work, const Scratch<T>& scratch,
                const Terms& terms) {
  for_blocks(exec, s, work, [&](const Block& block) {
    column_pairs<T>(block.begin, block.end, s.c, scratch.sums + block.index * 2 * scratch.width,
                    terms(block.batch));
  });
  const Blocks blocks(s);
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
  block_sums(exec, s, s.batches * s.rows * s.c, scratch,
             [&](int64_t batch) { return Deviations<T>{x, scratch.row(batch, 0)}; });
  for (int64_t batch = 0; batch < s.batches; ++batch)
    finish_statistics(s, x, scratch.totals + batch * 2 * s.c, batch, mean, var);
  if (running_mean) update_running(s, mean, var, *momentum, running_mean, running_var);
}

template <class T>
T inverse_std(const NormShape& s, T var) {
  return T(1 / std::sqrt(double(var) + s.eps));
}

// ---- y = (x - mean) * scale + bias ----

// body(Width<W>, at, coefficients) for every W elements of rows [begin, end): `at` is the first
// one's place, the coefficients are those of the N folded rows for its columns.
template <class T, int N, class Body>
void for_rows(int64_t begin, int64_t end, int64_t c, const T* const (&rows)[N], const Body& body) {
  constexpr int kL = kLanes<T>;
  const Fold<T> f(c);
  int64_t at = begin * c;
  const int64_t last = end * c;
  if (f.width == kGroup * kL) {  // the coefficients stay in registers
    Vec<T> k[kGroup][N];
#pragma GCC unroll 16
    for (int v = 0; v < kGroup; ++v)
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) k[v][n] = load(rows[n] + v * kL);
    for (; at + f.width <= last; at += f.width)
#pragma GCC unroll 16
      for (int v = 0; v < kGroup; ++v) body(Width<kL>{}, at + v * kL, k[v]);
  }
  for (; at + f.width <= last; at += f.width)
    for (int64_t i = 0; i < f.width; i += kL) {
      Vec<T> k[N];
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) k[n] = load(rows[n] + i);
      body(Width<kL>{}, at + i, k);
    }
  for (; at < last; ++at) {
    T k[N];
    for (int n = 0; n < N; ++n) k[n] = rows[n][at % c];
    body(Width<1>{}, at, k);
  }
}

// A flag that is known when a loop is compiled.
template <bool B>
struct Flag {
  static constexpr bool value = B;
};
template <class Fn>
void with_flag(bool flag, const Fn& fn) {
  flag ? fn(Flag<true>{}) : fn(Flag<false>{});
}

template <class T>
void norm_apply(const Exec& exec, const NormShape& s, const T* x, const T* mean, const T* var,
                const T* w, const T* b, const T* residual, bool relu, T* y) {
  const Scratch<T> scratch(exec, s);
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
  const auto apply = [&](auto with_residual, auto with_relu) {
    const auto element = [=](auto width, int64_t at, const auto* k) {
      constexpr int W = decltype(width)::value;
      Lanes<T, W> v = (get<T, W>(x + at) - k[0]) * k[1] + k[2];
      if constexpr (decltype(with_residual)::value) v += get<T, W>(residual + at);
      if constexpr (decltype(with_relu)::value) v = v < T(0) ? Lanes<T, W>{} : v;
      put<T, W>(y + at, v);
    };
    for_blocks(exec, s, s.batches * s.rows * s.c, [&](const Block& block) {
      const T* const rows[3] = {scratch.row(block.batch, 0), scratch.row(block.batch, 1),
                                scratch.row(block.batch, 2)};
      for_rows(block.begin, block.end, s.c, rows, element);
    });
  };
  with_flag(residual != nullptr, [&](auto with_residual) {
    with_flag(relu, [&](auto with_relu) { apply(with_residual, with_relu); });
  });
}

// ---- backward ----

// The sums per batch and channel.
template <class T, bool kMasked>
void gradient_sums(const Exec& exec, const NormShape& s, const T* x, const Gradient<T, kMasked>& dy,
                   const T* mean, T* kept, const Scratch<T>& scratch) {
  for (int64_t batch = 0; batch < s.batches; ++batch) {
    T* row = scratch.row(batch, 0);
    for (int64_t c = 0; c < s.c; ++c) row[c] = mean[batch * s.c + c];
    repeat(s.c, row);
  }
  block_sums(exec, s, 2 * s.batches * s.rows * s.c, scratch, [&](int64_t batch) {
    return GradientTerms<T, kMasked>{x, scratch.row(batch, 0), dy, kept};
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

template <class T, bool kMasked>
void input_gradient(const Exec& exec, const NormShape& s, const T* x,
                    const Gradient<T, kMasked>& dy, const Scratch<T>& scratch, T* dx) {
  for_blocks(exec, s, 2 * s.batches * s.rows * s.c, [&](const Block& block) {
    const T* const rows[kRows] = {scratch.row(block.batch, 0), scratch.row(block.batch, 1),
                                  scratch.row(block.batch, 2), scratch.row(block.batch, 3)};
    for_rows(block.begin, block.end, s.c, rows, [=](auto width, int64_t at, const auto* k) {
      constexpr int W = decltype(width)::value;
      put<T, W>(dx + at, dy.template at<W>(at) * k[1] + (get<T, W>(x + at) - k[0]) * k[2] + k[3]);
    });
  });
}

template <class T>
void norm_backward(const Exec& exec, const NormShape& s, const T* x, const T* dy, const T* mask,
                   const T* mean, const T* var, const T* w, bool fixed, T* dx, T* dw, T* db,
                   T* dmasked) {
  const Scratch<T> scratch(exec, s);
  with_flag(mask != nullptr, [&](auto masked) {
    const Gradient<T, decltype(masked)::value> gradient = {dy, mask};
    gradient_sums(exec, s, x, gradient, mean, dmasked, scratch);
    parameter_gradients(s, var, scratch.totals, dw, db);
    if (!dx) return;
    for (int64_t batch = 0; batch < s.batches; ++batch)
      input_coefficients(s, var, w, fixed, scratch, batch);
    if (dmasked)
      input_gradient(exec, s, x, Gradient<T, false>{dmasked, nullptr}, scratch, dx);
    else
      input_gradient(exec, s, x, gradient, scratch, dx);
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
