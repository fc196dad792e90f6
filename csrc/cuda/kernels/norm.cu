// Normalisation by the statistics of columns: x (batches, rows, c), where each batch and each group
// of c / groups channels has a mean and a variance. Batch norm is one batch of n * pixels rows,
// instance and group norm have one batch per sample.
#include <cmath>

#include "cuda/kernels/columns.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kRows = 4;  // that a thread reads before it writes, so that many reads are under way

// ---- statistics ----

// Sums of x - shift and of its square, shift being the block's first row; of a block, its mean and
// its squared deviations from that. Any element as shift costs at most log2(rows) bits of a double.
template <class T>
struct Deviations {
  static constexpr int kSums = 2;
  const T* x;

  template <int kV, bool kPacked>
  __device__ Pack<T, kV> columns(const ColumnPlan& plan, const ColumnPlace& place) const {
    if (!place.inside) return {};
    return load_columns<kV, kPacked>(x + place.at(plan, place.block * plan.block_rows));
  }

  // A run is summed in T relative to its own mean.
  template <bool kPacked, int kCount, int kV>
  __device__ void add(const ColumnPlan& plan, const ColumnPlace& place, const Pack<T, kV>& shift,
                      int64_t row, double (&total)[2][kV]) const {
    using A = Acc<T>;
    const T* from = x + place.at(plan, row);
    const int64_t step = plan.step();
    Pack<T, kV> in[kCount];
#pragma unroll
    for (int r = 0; r < kCount; ++r) in[r] = load_columns<kV, kPacked>(from + r * step);
#pragma unroll
    for (int v = 0; v < kV; ++v) {
      A own = 0, sum = 0, squares = 0;
#pragma unroll
      for (int r = 0; r < kCount; ++r) own += A(in[r][v]);
      own *= A(1) / kCount;  // a power of two: whole numbers stay exact
#pragma unroll
      for (int r = 0; r < kCount; ++r) {
        const A d = A(in[r][v]) - own;
        sum += d;
        squares += d * d;
      }
      const double off = double(own) - double(shift[v]), d = double(sum);
      total[0][v] += d + kCount * off;
      total[1][v] += double(squares) + off * (2 * d + kCount * off);
    }
  }

  template <int kV>
  __device__ void finish(const Pack<T, kV>& shift, int v, double rows, double (&sums)[2]) const {
    const double squares = sums[1] - sums[0] * sums[0] / rows;
    sums[0] = double(shift[v]) + sums[0] / rows;
    sums[1] = squares < 0 ? 0 : squares;
  }
};

template <class A>
struct Running {
  const double* momentum;
  A *mean, *var;  // null: none

  // The channel's, by the mean over batches of the statistics of `count` values each.
  __device__ void update(int64_t channel, double m, double v, double count) const {
    const double part = *momentum;
    v *= count / (count - 1);
    mean[channel] = A((1 - part) * double(mean[channel]) + part * m);
    var[channel] = A((1 - part) * double(var[channel]) + part * v);
  }
};

// A block per batch and group: mean and variance from the parts' means and squared deviations.
template <int kThreads, class A>
__global__ void __launch_bounds__(kThreads)
    group_statistics(NormShape s, ColumnPlan plan, const double* parts, A* mean, A* var,
                     Running<A> running) {
  auto& scratch = shared<TotalScratch<kThreads>>();
  const int64_t size = s.c / s.groups, entries = size * plan.blocks;
  const int64_t first = blockIdx.x * size;  // of the batches' channels
  const double* part = parts + first * plan.blocks * 2;
  const double count = double(s.rows) * double(size);
  double sum = 0, squares = 0;
  for (int64_t i = threadIdx.x; i < entries; i += kThreads)
    sum += double(plan.rows_of(i % plan.blocks)) * part[2 * i];
  const double m = block_reduce<kThreads>(sum, scratch.sums, Plus<double>{}) / count;
  for (int64_t i = threadIdx.x; i < entries; i += kThreads) {
    const double off = part[2 * i] - m;
    squares += part[2 * i + 1] + double(plan.rows_of(i % plan.blocks)) * off * off;
  }
  const double v = block_reduce<kThreads>(squares, scratch.sums, Plus<double>{}) / count;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    mean[first + i] = A(m);
    var[first + i] = A(v);
    if (running.mean && s.batches == 1)
      running.update(first + i, double(A(m)), double(A(v)), count);
  }
}

// The running statistics of several batches.
template <class A>
void update_running(const Exec& exec, const NormShape& s, const A* mean, const A* var,
                    const Running<A>& running) {
  for_each(exec, s.c, [=] __device__(int64_t c) {
    double m = 0, v = 0;
    for (int64_t batch = 0; batch < s.batches; ++batch) {
      m += double(mean[batch * s.c + c]);
      v += double(var[batch * s.c + c]);
    }
    running.update(c, m / double(s.batches), v / double(s.batches),
                   double(s.rows) * double(s.c / s.groups));
  });
}

template <class T>
ColumnPlan norm_plan(const NormShape& s, int run = kRun) {
  return column_plan<T>(s.batches, s.rows, s.c, run);
}

// dx = dy * scale + (x - mean) * slope + offset, slope and offset being a group's: with d =
// inv_std, dx = d (w dy - mean(w dy) - xhat mean(w dy xhat)), means over the group, xhat =
// (x - mean) d.
template <class A>
struct Line {
  A slope, offset;
};

// Two sums per part, and two coefficients per group for norm_backward.
template <class T>
int64_t norm_workspace(const NormShape& s, int) {
  return column_parts(norm_plan<T>(s), 2) * int64_t{sizeof(double)} +
         s.batches * s.groups * int64_t{sizeof(Line<Acc<T>>)};
}

template <class T>
void norm_statistics(const Exec& exec, const NormShape& s, const T* x, Stat<T>* mean, Stat<T>* var,
                     const double* momentum, Stat<T>* running_mean, Stat<T>* running_var) {
  if (s.rows == 0)
    return for_each(exec, s.batches * s.c, [=] __device__(int64_t i) {
      mean[i] = 0;
      var[i] = 1;
    });
  const ColumnPlan plan = norm_plan<T>(s);
  const Running<Stat<T>> running{momentum, running_mean, running_var};
  double* parts = static_cast<double*>(exec.workspace);
  sum_columns<T>(exec, plan, aligned(x), Deviations<T>{x}, parts);
  with_total_threads(s.c / s.groups * plan.blocks, [&](auto threads) {
    launch(exec, group_statistics<threads.value, Stat<T>>, dim3(unsigned(s.batches * s.groups)),
           dim3(threads.value), sizeof(TotalScratch<threads.value>), s, plan, parts, mean, var,
           running);
  });
  if (running_mean && s.batches > 1) update_running(exec, s, mean, var, running);
}

template <class A>
__device__ A inverse_std(double eps, A var) {
  return A(1 / std::sqrt(double(var) + eps));
}

// ---- y = (x - mean) * scale + bias ----

// Shared memory: kRowsOf rows of coefficients for a block's channels.
template <class A, int kRowsOf, int kV>
struct Coefficients {
  A row[kRowsOf][kColumnThreads * kV];

  // A thread's.
  __device__ void load(int lane, A (&mine)[kRowsOf][kV]) const {
    for (int i = 0; i < kRowsOf; ++i)
      for (int v = 0; v < kV; ++v) mine[i][v] = row[i][lane * kV + v];
  }
};

// fill(i, channel) for the block's channels, i counted from its first; then all threads go on.
template <int kV, class Fill>
__device__ void fill_coefficients(const ColumnPlan& plan, const ColumnPlace& place,
                                  const Fill& fill) {
  const int64_t first = int64_t(place.tile) * plan.width * kV;
  for (int i = int(threadIdx.x); i < plan.width * kV && first + i < plan.c; i += kColumnThreads)
    fill(i, first + i);
  __syncthreads();
}

template <class A>
struct Affine {
  const A *mean, *var, *w, *b;
};

template <class T, int kV, bool kPacked>
__global__ void __launch_bounds__(kColumnThreads)
    apply_kernel(ColumnPlan plan, double eps, const T* x, Affine<Acc<T>> affine, const T* residual,
                 bool relu, T* y) {
  using A = Acc<T>;
  auto& coefficients = shared<Coefficients<A, 3, kV>>();
  const ColumnPlace place(plan);
  fill_coefficients<kV>(plan, place, [&](int i, int64_t c) {
    const int64_t at = place.batch * plan.c + c;
    coefficients.row[0][i] = affine.mean[at];
    coefficients.row[1][i] = inverse_std(eps, affine.var[at]) * (affine.w ? affine.w[c] : A(1));
    coefficients.row[2][i] = affine.b ? affine.b[c] : A(0);
  });
  if (!place.inside) return;
  A k[3][kV];  // mean, scale, bias
  coefficients.load(int(threadIdx.x) % plan.width, k);
  place.for_rows<kRows>(plan, [&](auto count, int64_t row) {
    const int64_t at = place.at(plan, row), step = plan.step();
    Pack<T, kV> in[count.value], added[count.value];
#pragma unroll
    for (int r = 0; r < count.value; ++r) {
      in[r] = load_columns<kV, kPacked>(x + at + r * step);
      if (residual) added[r] = load_columns<kV, kPacked>(residual + at + r * step);
    }
#pragma unroll
    for (int r = 0; r < count.value; ++r) {
      for (int v = 0; v < kV; ++v) {
        A out = (A(in[r][v]) - k[0][v]) * k[1][v] + k[2][v];
        if (residual) out += A(added[r][v]);
        in[r][v] = T(relu && out < 0 ? A(0) : out);
      }
      store_columns<kV, kPacked>(y + at + r * step, in[r]);
    }
  });
}

template <class T>
void norm_apply(const Exec& exec, const NormShape& s, const T* x, const Stat<T>* mean,
                const Stat<T>* var, const Stat<T>* w, const Stat<T>* b, const T* residual,
                bool relu, T* y) {
  const ColumnPlan plan = norm_plan<T>(s, kRows);
  with_pack<T>(s.c, aligned(x, residual, y), [&](auto pack, auto packed) {
    launch(exec, apply_kernel<T, pack.value, packed.value>, plan.grid(), dim3(kColumnThreads),
           sizeof(Coefficients<Acc<T>, 3, pack.value>), plan, s.eps, x,
           Affine<Stat<T>>{mean, var, w, b}, residual, relu, y);
  });
}

// ---- backward ----

// dy, which counts as 0 where a mask is given and is not above 0: the gradient behind a ReLU, of
// whose output the mask is. NaN is not below 0.
template <class T, bool kMasked>
struct Gradient {
  const T *dy, *mask;

  template <bool kPacked, int kV>
  __device__ void load(int64_t at, Pack<T, kV>& g, Pack<T, kV>& m) const {
    g = load_columns<kV, kPacked>(dy + at);
    if constexpr (kMasked) m = load_columns<kV, kPacked>(mask + at);
  }
  static __device__ T value(T g, T m) { return kMasked && Acc<T>(m) <= 0 ? T(0) : g; }
};

// Sums of dy and of dy (x - mean); dy goes to `kept` too where that is not null, which may be dy.
template <class T, bool kMasked>
struct GradientTerms {
  static constexpr int kSums = 2;
  const T* x;
  const Stat<T>* mean;
  Gradient<T, kMasked> dy;
  T* kept;

  template <int kV, bool kPacked>
  __device__ Pack<Acc<T>, kV> columns(const ColumnPlan& plan, const ColumnPlace& place) const {
    Pack<Acc<T>, kV> m{};
    for (int v = 0; v < kV && place.inside; ++v)
      m[v] = mean[place.batch * plan.c + place.channel + v];
    return m;
  }

  template <bool kPacked, int kCount, int kV>
  __device__ void add(const ColumnPlan& plan, const ColumnPlace& place, const Pack<Acc<T>, kV>& m,
                      int64_t row, double (&total)[2][kV]) const {
    constexpr int kAtOnce = kCount < kRows ? kCount : kRows;
    int64_t at = place.at(plan, row);
    const int64_t step = plan.step();
    using A = Acc<T>;
    A sum[kV] = {}, products[kV] = {};
#pragma unroll 1
    for (int left = kCount; left > 0; left -= kAtOnce, at += kAtOnce * step) {
      Pack<T, kV> in[kAtOnce], g[kAtOnce], sign[kAtOnce];
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        in[r] = load_columns<kV, kPacked>(x + at + r * step);
        dy.template load<kPacked>(at + r * step, g[r], sign[r]);
      }
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        for (int v = 0; v < kV; ++v) {
          g[r][v] = dy.value(g[r][v], sign[r][v]);
          sum[v] += A(g[r][v]);
          products[v] += A(g[r][v]) * (A(in[r][v]) - m[v]);
        }
        if (kept) store_columns<kV, kPacked>(kept + at + r * step, g[r]);
      }
    }
    for (int v = 0; v < kV; ++v) {
      total[0][v] += double(sum[v]);
      total[1][v] += double(products[v]);
    }
  }

  template <int kV>
  __device__ void finish(const Pack<Acc<T>, kV>&, int, double, double (&)[2]) const {}
};

template <class A>
struct InverseStd {
  const A* var;
  int64_t c;
  double eps;
  __device__ double operator()(int64_t batch, int64_t channel) const {
    return double(inverse_std(eps, var[batch * c + channel]));
  }
};

// A block per batch and group. dw and db, where not null, are those of groups of one channel in one
// batch.
template <int kThreads, class A>
__global__ void __launch_bounds__(kThreads)
    group_lines(NormShape s, ColumnPlan plan, const double* parts, const A* var, const A* w,
                bool fixed, Line<A>* lines, A* dw, A* db) {
  auto& scratch = shared<TotalScratch<kThreads>>();
  const int64_t size = s.c / s.groups, first = blockIdx.x * size;
  const double* part = parts + first * plan.blocks * 2;
  const auto weight = [&](int64_t i) { return w ? double(w[(first + i) % s.c]) : 1; };
  double sum = 0, products = 0;
  for (int64_t i = threadIdx.x; i < size * plan.blocks; i += kThreads) {
    const double factor = size == 1 ? 1 : weight(i / plan.blocks);
    sum += factor * part[2 * i];
    products += factor * part[2 * i + 1];
  }
  sum = block_reduce<kThreads>(sum, scratch.sums, Plus<double>{});
  products = block_reduce<kThreads>(products, scratch.sums, Plus<double>{});
  if (threadIdx.x != 0) return;
  const double d = double(inverse_std(s.eps, var[first]));
  if (dw) dw[first] = A(products * d);
  if (db) db[first] = A(sum);
  const double share = (size == 1 ? weight(0) : 1) / (double(s.rows) * double(size));
  lines[blockIdx.x] = {fixed ? A(0) : A(-d * d * d * products * share),
                       fixed ? A(0) : A(-d * sum * share)};
}

template <class T, bool kMasked, int kV, bool kPacked>
__global__ void __launch_bounds__(kColumnThreads)
    input_gradient_kernel(ColumnPlan plan, NormShape s, const T* x, Gradient<T, kMasked> dy,
                          Affine<Acc<T>> affine, const Line<Acc<T>>* lines, T* dx) {
  using A = Acc<T>;
  auto& coefficients = shared<Coefficients<A, 4, kV>>();
  const ColumnPlace place(plan);
  fill_coefficients<kV>(plan, place, [&](int i, int64_t c) {
    const int64_t at = place.batch * plan.c + c;
    const Line<A> line = lines[at / (s.c / s.groups)];
    coefficients.row[0][i] = affine.mean[at];
    coefficients.row[1][i] = inverse_std(s.eps, affine.var[at]) * (affine.w ? affine.w[c] : A(1));
    coefficients.row[2][i] = line.slope;
    coefficients.row[3][i] = line.offset;
  });
  if (!place.inside) return;
  A k[4][kV];  // mean, scale, slope, offset
  coefficients.load(int(threadIdx.x) % plan.width, k);
  place.for_rows<kRows>(plan, [&](auto count, int64_t row) {
    const int64_t at = place.at(plan, row), step = plan.step();
    Pack<T, kV> in[count.value], g[count.value], sign[count.value];
#pragma unroll
    for (int r = 0; r < count.value; ++r) {
      in[r] = load_columns<kV, kPacked>(x + at + r * step);
      dy.template load<kPacked>(at + r * step, g[r], sign[r]);
    }
#pragma unroll
    for (int r = 0; r < count.value; ++r) {
      for (int v = 0; v < kV; ++v)
        in[r][v] = T(A(dy.value(g[r][v], sign[r][v])) * k[1][v] +
                     (A(in[r][v]) - k[0][v]) * k[2][v] + k[3][v]);
      store_columns<kV, kPacked>(dx + at + r * step, in[r]);
    }
  });
}

template <class T, bool kMasked>
void input_gradient(const Exec& exec, const NormShape& s, const T* x,
                    const Gradient<T, kMasked>& dy, const Affine<Stat<T>>& affine,
                    const Line<Acc<T>>* lines, T* dx) {
  const ColumnPlan plan = norm_plan<T>(s, kRows);
  with_pack<T>(s.c, aligned(x, dy.dy, dy.mask, dx), [&](auto pack, auto packed) {
    launch(exec, input_gradient_kernel<T, kMasked, pack.value, packed.value>, plan.grid(),
           dim3(kColumnThreads), sizeof(Coefficients<Acc<T>, 4, pack.value>), plan, s, x, dy,
           affine, lines, dx);
  });
}

template <class T>
void norm_backward(const Exec& exec, const NormShape& s, const T* x, const T* dy, const T* mask,
                   const Stat<T>* mean, const Stat<T>* var, const Stat<T>* w, bool fixed, T* dx,
                   Stat<T>* dw, Stat<T>* db, T* dmasked) {
  const ColumnPlan plan = norm_plan<T>(s);
  double* parts = static_cast<double*>(exec.workspace);
  Line<Acc<T>>* lines = reinterpret_cast<Line<Acc<T>>*>(parts + column_parts(plan, 2));
  const bool packed = aligned(x, dy, mask, dmasked);
  const Gradient<T, true> masked{dy, mask};
  const Gradient<T, false> plain{dmasked ? dmasked : dy, nullptr};
  if (mask)
    sum_columns<T>(exec, plan, packed, GradientTerms<T, true>{x, mean, masked, dmasked}, parts);
  else
    sum_columns<T>(exec, plan, packed, GradientTerms<T, false>{x, mean, {dy, nullptr}, dmasked},
                   parts);
  const bool alone = s.batches == 1 && s.groups == s.c;  // a group's sums are its parameters' too
  if (!alone)
    sum_parameter_gradients(exec, plan, parts, InverseStd<Stat<T>>{var, s.c, s.eps}, dw, db);
  if (dx || alone)
    with_total_threads(s.c / s.groups * plan.blocks, [&](auto threads) {
      launch(exec, group_lines<threads.value, Stat<T>>, dim3(unsigned(s.batches * s.groups)),
             dim3(threads.value), sizeof(TotalScratch<threads.value>), s, plan, parts, var, w,
             fixed, lines, alone ? dw : nullptr, alone ? db : nullptr);
    });
  if (!dx) return;
  const Affine<Stat<T>> affine{mean, var, w, nullptr};
  if (mask && !dmasked)
    input_gradient(exec, s, x, masked, affine, lines, dx);
  else
    input_gradient(exec, s, x, plain, affine, lines, dx);
}

template <class T>
void add(Ops<T>& table) {
  table.norm_workspace = norm_workspace<T>;
  table.norm_statistics = norm_statistics<T>;
  table.norm_apply = norm_apply<T>;
  table.norm_backward = norm_backward<T>;
}

}  // namespace

CONVGRAD_STEM(norm)

}  // namespace convgrad::cuda
