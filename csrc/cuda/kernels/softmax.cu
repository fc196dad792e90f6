// Softmax and its logarithm along the middle axis of x (outer, n, inner).
#include <cmath>
#include <limits>

#include "cuda/packs.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kThreads = 256;

// The larger; a where b is NaN. A NaN in a row comes out of its sum.
template <class T>
struct Larger {
  __device__ T operator()(T a, T b) const { return b > a ? b : a; }
};
template <class T>
constexpr T kLowest = -std::numeric_limits<T>::infinity();

// One element of a result, and the term of the sum it needs.
template <class T>
struct Forward {
  bool log;
  T top, sum, log_sum;

  __device__ T term(T x) const { return std::exp(x - top); }
  __device__ void set_sum(T s) {
    sum = s;
    log_sum = log ? std::log(s) : T(0);
  }
  __device__ T result(T x) const { return log ? (x - top) - log_sum : std::exp(x - top) / sum; }
};
template <class T>
struct Backward {
  bool log;
  T sum;

  __device__ T term(T y, T dy) const { return log ? dy : dy * y; }
  __device__ T result(T y, T dy) const { return log ? dy - std::exp(y) * sum : y * (dy - sum); }
};

// ---- rows of up to 1,024: kLanes lanes of a warp hold a row, kPer elements each ----

constexpr int64_t kShortRow = 1024;

// What `combine` makes of v over each kLanes neighbouring lanes, in each of them.
template <int kLanes, class T, class Combine>
__device__ T lanes_reduce(T v, Combine combine) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2)
    v = combine(v, __shfl_xor_sync(0xffffffffu, v, step));
  return v;
}

template <class T, int kLanes, int kPer>
__global__ void __launch_bounds__(kThreads)
    forward_short(bool log, int64_t rows, int n, const T* __restrict__ x, T* __restrict__ y) {
  const int64_t row = thread_index() / kLanes;  // the whole warp stays for the shuffles
  const int lane = int(threadIdx.x) % kLanes;
  const int64_t at = row * n;
  Acc<T> v[kPer];
  Forward<Acc<T>> f{log, kLowest<Acc<T>>, 0, 0};
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    const int i = lane + k * kLanes;
    v[k] = row < rows && i < n ? Acc<T>(x[at + i]) : kLowest<Acc<T>>;
    f.top = Larger<Acc<T>>{}(f.top, v[k]);
  }
  f.top = lanes_reduce<kLanes>(f.top, Larger<Acc<T>>{});
  Acc<T> sum = 0;
#pragma unroll
  for (int k = 0; k < kPer; ++k) sum += lane + k * kLanes < n ? f.term(v[k]) : Acc<T>(0);
  f.set_sum(lanes_reduce<kLanes>(sum, Plus<Acc<T>>{}));
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    const int i = lane + k * kLanes;
    if (row < rows && i < n) y[at + i] = T(f.result(v[k]));
  }
}

template <class T, int kLanes, int kPer>
__global__ void __launch_bounds__(kThreads)
    backward_short(bool log, int64_t rows, int n, const T* __restrict__ y, const T* __restrict__ dy,
                   T* __restrict__ dx) {
  const int64_t row = thread_index() / kLanes;
  const int lane = int(threadIdx.x) % kLanes;
  const int64_t at = row * n;
  Acc<T> v[kPer], g[kPer];
  Backward<Acc<T>> f{log, 0};
  Acc<T> sum = 0;
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    const int i = lane + k * kLanes;
    const bool inside = row < rows && i < n;
    v[k] = inside ? Acc<T>(y[at + i]) : Acc<T>(0);
    g[k] = inside ? Acc<T>(dy[at + i]) : Acc<T>(0);
    sum += f.term(v[k], g[k]);
  }
  f.sum = lanes_reduce<kLanes>(sum, Plus<Acc<T>>{});
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    const int i = lane + k * kLanes;
    if (row < rows && i < n) dx[at + i] = T(f.result(v[k], g[k]));
  }
}

// ---- longer rows: a block each ----

template <class T>
struct RowScratch {
  T value[kThreads / kWarp];
};
// The sum of term(i) over a row of n by a block.
template <class T, class Term>
__device__ T row_sum(int64_t n, T (&scratch)[kThreads / kWarp], const Term& term) {
  LongSum<T, 1> sum;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    const T v[1] = {term(i)};
    sum.add(v);
  }
  sum.fold();
  return block_reduce<kThreads>(sum.total[0], scratch, Plus<T>{});
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_long(bool log, int64_t rows, int64_t n, const T* __restrict__ all_x,
                 T* __restrict__ all_y) {
  auto& scratch = shared<RowScratch<Acc<T>>>().value;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* x = all_x + row * n;
    T* y = all_y + row * n;
    Forward<Acc<T>> f{log, kLowest<Acc<T>>, 0, 0};
    for (int64_t i = threadIdx.x; i < n; i += kThreads)
      f.top = Larger<Acc<T>>{}(f.top, Acc<T>(x[i]));
    f.top = block_reduce<kThreads>(f.top, scratch, Larger<Acc<T>>{});
    f.set_sum(row_sum(n, scratch, [&](int64_t i) { return f.term(Acc<T>(x[i])); }));
    for (int64_t i = threadIdx.x; i < n; i += kThreads) y[i] = T(f.result(Acc<T>(x[i])));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_long(bool log, int64_t rows, int64_t n, const T* __restrict__ all_y,
                  const T* __restrict__ all_dy, T* __restrict__ all_dx) {
  auto& scratch = shared<RowScratch<Acc<T>>>().value;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T *y = all_y + row * n, *dy = all_dy + row * n;
    T* dx = all_dx + row * n;
    Backward<Acc<T>> f{log, 0};
    f.sum = row_sum(n, scratch, [&](int64_t i) { return f.term(Acc<T>(y[i]), Acc<T>(dy[i])); });
    for (int64_t i = threadIdx.x; i < n; i += kThreads)
      dx[i] = T(f.result(Acc<T>(y[i]), Acc<T>(dy[i])));
  }
}

// ---- an axis that is not the last: neighbouring threads are neighbours of the inner axis ----

// A block holds `columns` columns, each shared by kThreads / columns threads.
template <class T>
struct ColumnScratch {
  T value[kThreads];
};
template <class T, class Combine>
__device__ T column_reduce(T v, int columns, T (&scratch)[kThreads], Combine combine) {
  const int me = int(threadIdx.x);
  __syncthreads();  // scratch may still be read from the call before
  scratch[me] = v;
  for (int step = kThreads / 2; step >= columns; step /= 2) {
    __syncthreads();
    if (me < step) scratch[me] = combine(scratch[me], scratch[me + step]);
  }
  __syncthreads();
  return scratch[me % columns];
}

struct Columns {
  int64_t n, inner, count;  // count: outer * inner
  int per_block;
  Divider by_inner;

  Columns(int64_t outer, int64_t n_, int64_t inner_)
      : n(n_), inner(inner_), count(outer * inner_), by_inner(inner_) {
    // Enough threads per column to shorten a long one, enough columns to read 128 bytes at once.
    const int most = kThreads / power_of_two(count, kWarp);
    per_block = kThreads / power_of_two(std::max<int64_t>(n / 8, 1), most);
  }
  int64_t blocks() const { return ceil_div(count, per_block); }
  // Where column i begins.
  __device__ int64_t begin(int64_t i) const {
    int64_t outer = i;
    const int64_t at = by_inner.split(outer);
    return outer * n * inner + at;
  }
};
// fn(offset) for this thread's share of the column at `begin`, offset < size.
template <class Fn>
__device__ void for_column(const Columns& s, bool inside, int64_t begin, const Fn& fn) {
  if (!inside) return;
  for (int64_t i = int(threadIdx.x) / s.per_block; i < s.n; i += kThreads / s.per_block)
    fn(begin + i * s.inner);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_columns(bool log, Columns s, int64_t blocks, const T* __restrict__ x,
                    T* __restrict__ y) {
  auto& scratch = shared<ColumnScratch<Acc<T>>>().value;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t column = block * s.per_block + int(threadIdx.x) % s.per_block;
    const bool inside = column < s.count;
    const int64_t begin = s.begin(column);
    Forward<Acc<T>> f{log, kLowest<Acc<T>>, 0, 0};
    for_column(s, inside, begin,
               [&](int64_t at) { f.top = Larger<Acc<T>>{}(f.top, Acc<T>(x[at])); });
    f.top = column_reduce(f.top, s.per_block, scratch, Larger<Acc<T>>{});
    LongSum<Acc<T>, 1> sum;
    for_column(s, inside, begin, [&](int64_t at) {
      const Acc<T> v[1] = {f.term(Acc<T>(x[at]))};
      sum.add(v);
    });
    sum.fold();
    f.set_sum(column_reduce(sum.total[0], s.per_block, scratch, Plus<Acc<T>>{}));
    for_column(s, inside, begin, [&](int64_t at) { y[at] = T(f.result(Acc<T>(x[at]))); });
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_columns(bool log, Columns s, int64_t blocks, const T* __restrict__ y,
                     const T* __restrict__ dy, T* __restrict__ dx) {
  auto& scratch = shared<ColumnScratch<Acc<T>>>().value;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t column = block * s.per_block + int(threadIdx.x) % s.per_block;
    const bool inside = column < s.count;
    const int64_t begin = s.begin(column);
    Backward<Acc<T>> f{log, 0};
    LongSum<Acc<T>, 1> sum;
    for_column(s, inside, begin, [&](int64_t at) {
      const Acc<T> v[1] = {f.term(Acc<T>(y[at]), Acc<T>(dy[at]))};
      sum.add(v);
    });
    sum.fold();
    f.sum = column_reduce(sum.total[0], s.per_block, scratch, Plus<Acc<T>>{});
    for_column(s, inside, begin,
               [&](int64_t at) { dx[at] = T(f.result(Acc<T>(y[at]), Acc<T>(dy[at]))); });
  }
}

// ---- which of them ----

// fn(lanes, elements per lane) for rows of n <= kShortRow, as compile-time constants. More lanes or
// elements than needed change no bit: types of 16 bits have fewer kernels.
template <class T, class Fn>
void with_row_lanes(int64_t n, const Fn& fn) {
  if constexpr (sizeof(T) == 2) {
    if (n <= 8) return fn(Width<8>{}, Width<1>{});
    if (n <= 32) return fn(Width<32>{}, Width<1>{});
    if (n <= 128) return fn(Width<32>{}, Width<4>{});
    fn(Width<32>{}, Width<32>{});
  } else {
    if (n <= 1) return fn(Width<1>{}, Width<1>{});
    if (n <= 2) return fn(Width<2>{}, Width<1>{});
    if (n <= 4) return fn(Width<4>{}, Width<1>{});
    if (n <= 8) return fn(Width<8>{}, Width<1>{});
    if (n <= 16) return fn(Width<16>{}, Width<1>{});
    if (n <= 32) return fn(Width<32>{}, Width<1>{});
    if (n <= 64) return fn(Width<32>{}, Width<2>{});
    if (n <= 128) return fn(Width<32>{}, Width<4>{});
    if (n <= 256) return fn(Width<32>{}, Width<8>{});
    if (n <= 512) return fn(Width<32>{}, Width<16>{});
    fn(Width<32>{}, Width<32>{});
  }
}
inline dim3 row_grid(int64_t rows) { return dim3(unsigned(std::min(rows, kMaxBlocks))); }

template <class T>
void softmax_forward(const Exec& exec, bool log, int64_t outer, int64_t n, int64_t inner,
                     const T* x, T* y) {
  if (outer * n * inner == 0) return;
  if (inner > 1) {
    const Columns s(outer, n, inner);
    launch(exec, forward_columns<T>, row_grid(s.blocks()), dim3(kThreads),
           sizeof(ColumnScratch<Acc<T>>), log, s, s.blocks(), x, y);
  } else if (n > kShortRow) {
    launch(exec, forward_long<T>, row_grid(outer), dim3(kThreads), sizeof(RowScratch<Acc<T>>), log,
           outer, n, x, y);
  } else {
    with_row_lanes<T>(n, [&](auto lanes, auto per) {
      constexpr int kLanes = decltype(lanes)::value;
      launch(exec, forward_short<T, kLanes, decltype(per)::value>,
             dim3(unsigned(ceil_div(outer * kLanes, kThreads))), dim3(kThreads), 0, log, outer,
             int(n), x, y);
    });
  }
}

template <class T>
void softmax_backward(const Exec& exec, bool log, int64_t outer, int64_t n, int64_t inner,
                      const T* y, const T* dy, T* dx) {
  if (outer * n * inner == 0) return;
  if (inner > 1) {
    const Columns s(outer, n, inner);
    launch(exec, backward_columns<T>, row_grid(s.blocks()), dim3(kThreads),
           sizeof(ColumnScratch<Acc<T>>), log, s, s.blocks(), y, dy, dx);
  } else if (n > kShortRow) {
    launch(exec, backward_long<T>, row_grid(outer), dim3(kThreads), sizeof(RowScratch<Acc<T>>), log,
           outer, n, y, dy, dx);
  } else {
    with_row_lanes<T>(n, [&](auto lanes, auto per) {
      constexpr int kLanes = decltype(lanes)::value;
      launch(exec, backward_short<T, kLanes, decltype(per)::value>,
             dim3(unsigned(ceil_div(outer * kLanes, kThreads))), dim3(kThreads), 0, log, outer,
             int(n), y, dy, dx);
    });
  }
}

template <class T>
void add(Ops<T>& table) {
  table.softmax_forward = softmax_forward<T>;
  table.softmax_backward = softmax_backward<T>;
}

}  // namespace

CONVGRAD_STEM(softmax)

}  // namespace convgrad::cuda
