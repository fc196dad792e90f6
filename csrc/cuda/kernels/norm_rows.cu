// Normalisation of each row of x (rows, c) by its own mean and variance: layer norm. A team of
// threads per row; the parameters' gradients are sums over columns.
#include <cmath>

#include "cuda/kernels/columns.cuh"
#include "cuda/kernels/rows.cuh"

namespace convgrad::cuda {
namespace {

// fn(at, pack) for a team's packs of a row; c is a multiple of kV.
template <int kV, int kLanes, class Fn>
__device__ void for_packs(const Team<kLanes>& team, int64_t c, const Fn& fn) {
  for (int64_t at = team.lane() * kV; at < c; at += kLanes * kV) fn(at);
}

template <class T, int kLanes, int kV, bool kPacked>
__global__ void __launch_bounds__(kRowThreads, 4)
    forward_kernel(int64_t rows, int64_t c, double eps, const T* x, const Acc<T>* w,
                   const Acc<T>* b, T* y, Acc<T>* mean, Acc<T>* inv_std) {
  using A = Acc<T>;
  RowScratch<A>& scratch = shared<RowScratch<A>>();
  const Team<kLanes> team;
  team.for_rows(rows, [&](int64_t row, bool valid) {
    const T* in = x + row * c;
    double sum = 0, squares = 0;
    for_packs<kV>(team, c, [&](int64_t at) {
      const Pack<T, kV> v = load_columns<kV, kPacked>(in + at);
      for (int k = 0; k < kV; ++k) sum += double(v[k]);
    });
    const double m = team.reduce(sum, scratch.sums, Plus<double>{}) / double(c);
    for_packs<kV>(team, c, [&](int64_t at) {
      const Pack<T, kV> v = load_columns<kV, kPacked>(in + at);
      for (int k = 0; k < kV; ++k) squares += (double(v[k]) - m) * (double(v[k]) - m);
    });
    squares = team.reduce(squares, scratch.sums, Plus<double>{});
    if (!valid) return;
    const A scale = A(1 / std::sqrt(squares / double(c) + eps)), shift = A(m);
    for_packs<kV>(team, c, [&](int64_t at) {
      Pack<T, kV> v = load_columns<kV, kPacked>(in + at);
      Pack<A, kV> factor, added;
      if (w) factor = load_columns<kV, kPacked>(w + at);
      if (b) added = load_columns<kV, kPacked>(b + at);
      for (int k = 0; k < kV; ++k) {
        A out = (A(v[k]) - shift) * scale;
        if (w) out *= factor[k];
        if (b) out += added[k];
        v[k] = T(out);
      }
      store_columns<kV, kPacked>(y + row * c + at, v);
    });
    if (team.lane() != 0) return;
    mean[row] = shift;
    inv_std[row] = scale;
  });
}

// dx = d (g - mean(g) - xhat mean(g xhat)), g = w dy, xhat = (x - mean) d.
template <class T, int kLanes, int kV, bool kPacked>
__global__ void __launch_bounds__(kRowThreads)
    input_gradient_kernel(int64_t rows, int64_t c, const T* x, const T* dy, const Acc<T>* mean,
                          const Acc<T>* inv_std, const Acc<T>* w, T* dx) {
  using A = Acc<T>;
  RowScratch<A>& scratch = shared<RowScratch<A>>();
  const Team<kLanes> team;
  team.for_rows(rows, [&](int64_t row, bool valid) {
    const int64_t first = row * c;
    const A m = mean[row], scale = inv_std[row];
    double sum = 0, products = 0;
    const auto weighted = [&](int64_t at, A(&out)[kV]) {
      const Pack<T, kV> g = load_columns<kV, kPacked>(dy + first + at);
      Pack<A, kV> factor;
      if (w) factor = load_columns<kV, kPacked>(w + at);
      for (int k = 0; k < kV; ++k) out[k] = w ? A(g[k]) * factor[k] : A(g[k]);
    };
    for_packs<kV>(team, c, [&](int64_t at) {
      const Pack<T, kV> in = load_columns<kV, kPacked>(x + first + at);
      A g[kV];
      weighted(at, g);
      for (int k = 0; k < kV; ++k) {
        sum += double(g[k]);
        products += double(g[k] * (A(in[k]) - m));
      }
    });
    sum = team.reduce(sum, scratch.sums, Plus<double>{});
    products = team.reduce(products, scratch.sums, Plus<double>{});
    if (!valid) return;
    const double d = double(scale);
    const A offset = A(-d * sum / double(c)), slope = A(-d * d * d * products / double(c));
    for_packs<kV>(team, c, [&](int64_t at) {
      Pack<T, kV> in = load_columns<kV, kPacked>(x + first + at);
      A g[kV];
      weighted(at, g);
      for (int k = 0; k < kV; ++k) in[k] = T(g[k] * scale + (A(in[k]) - m) * slope + offset);
      store_columns<kV, kPacked>(dx + first + at, in);
    });
  });
}

// fn(lanes, pack, packed), integral_constants: how the threads share rows of c elements.
template <class T, class Fn>
void with_row_packs(int64_t c, bool packed, const Fn& fn) {
  with_pack<T>(c, packed, [&](auto pack, auto is_packed) {
    with_team(c, [&](auto lanes) { fn(lanes, pack, is_packed); });
  });
}

template <class T>
void layer_norm_forward(const Exec& exec, int64_t rows, int64_t c, double eps, const T* x,
                        const Stat<T>* w, const Stat<T>* b, T* y, Stat<T>* mean, Stat<T>* inv_std) {
  if (rows == 0) return;
  with_row_packs<T>(c, aligned(x, y, w, b), [&](auto lanes, auto pack, auto packed) {
    launch(exec, forward_kernel<T, lanes.value, pack.value, packed.value>,
           dim3(unsigned(row_blocks(rows, lanes.value))), dim3(kRowThreads),
           sizeof(RowScratch<Acc<T>>), rows, c, eps, x, w, b, y, mean, inv_std);
  });
}

// Sums of dy and of dy xhat per column.
template <class T>
struct ParameterTerms {
  static constexpr int kSums = 2;
  const T *x, *dy;
  const Stat<T>*mean, *inv_std;

  struct Nothing {};
  template <int kV, bool kPacked>
  __device__ Nothing columns(const ColumnPlan&, const ColumnPlace&) const {
    return {};
  }

  template <bool kPacked, int kCount, int kV>
  __device__ void add(const ColumnPlan& plan, const ColumnPlace& place, Nothing, int64_t row,
                      double (&total)[2][kV]) const {
    const int64_t at = place.at(plan, row), step = plan.step();
    using A = Acc<T>;
    A sum[kV] = {}, products[kV] = {};
#pragma unroll 4
    for (int r = 0; r < kCount; ++r) {
      const Pack<T, kV> in = load_columns<kV, kPacked>(x + at + r * step);
      const Pack<T, kV> g = load_columns<kV, kPacked>(dy + at + r * step);
      const int64_t here = row + int64_t{r} * plan.height;
      const A m = mean[here], scale = inv_std[here];
      for (int v = 0; v < kV; ++v) {
        sum[v] += A(g[v]);
        products[v] += A(g[v]) * ((A(in[v]) - m) * scale);
      }
    }
    for (int v = 0; v < kV; ++v) {
      total[0][v] += double(sum[v]);
      total[1][v] += double(products[v]);
    }
  }

  __device__ void finish(Nothing, int, double, double (&)[2]) const {}
};

struct One {
  __device__ double operator()(int64_t, int64_t) const { return 1; }
};

template <class T>
int64_t layer_norm_backward_workspace(int64_t rows, int64_t c, int) {
  if (c == 0) return 0;
  return column_parts(column_plan<T>(1, rows, c), 2) * int64_t{sizeof(double)};
}

template <class T>
void layer_norm_backward(const Exec& exec, int64_t rows, int64_t c, const T* x, const T* dy,
                         const Stat<T>* mean, const Stat<T>* inv_std, const Stat<T>* w, T* dx,
                         Stat<T>* dw, Stat<T>* db) {
  if (c == 0) return;
  if (dx && rows > 0)
    with_row_packs<T>(c, aligned(x, dy, dx, w), [&](auto lanes, auto pack, auto packed) {
      launch(exec, input_gradient_kernel<T, lanes.value, pack.value, packed.value>,
             dim3(unsigned(row_blocks(rows, lanes.value))), dim3(kRowThreads),
             sizeof(RowScratch<Acc<T>>), rows, c, x, dy, mean, inv_std, w, dx);
    });
  if (!dw && !db) return;
  const ColumnPlan plan = column_plan<T>(1, rows, c);
  double* parts = static_cast<double*>(exec.workspace);
  sum_columns<T>(exec, plan, aligned(x, dy), ParameterTerms<T>{x, dy, mean, inv_std}, parts);
  sum_parameter_gradients(exec, plan, parts, One{}, dw, db);
}

template <class T>
void add(Ops<T>& table) {
  table.layer_norm_forward = layer_norm_forward<T>;
  table.layer_norm_backward_workspace = layer_norm_backward_workspace<T>;
  table.layer_norm_backward = layer_norm_backward<T>;
}

}  // namespace

CONVGRAD_STEM(norm_rows)

}  // namespace convgrad::cuda
