// Max pooling and unpooling. x (n, in, c), y (n, out, c); the winning tap of each window is kept as
// its number in the window, in 1 byte where the window allows.
#include <limits>
#include <type_traits>

#include "cuda/kernels/pool_window.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kThreads = 256;

// The maxima of W windows so far, and where they are: the first of equal ones, the last NaN.
template <class T, int W>
struct Best {
  Acc<T> v[W];
  int32_t tap[W];

  __device__ void begin(int64_t tap_if_all_are_lowest) {
#pragma unroll
    for (int j = 0; j < W; ++j) {
      v[j] = -std::numeric_limits<Acc<T>>::infinity();
      tap[j] = int32_t(tap_if_all_are_lowest);
    }
  }
  // A tap after all before.
  __device__ void offer(const T* p, int64_t at) {
    Acc<T> x[W];
    load_values<W>(p, x);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const bool take = x[j] > v[j] || x[j] != x[j];
      v[j] = take ? x[j] : v[j];
      tap[j] = take ? int32_t(at) : tap[j];
    }
  }
  // Other taps of the same windows, in any order.
  __device__ void merge(const Best& b) {
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const bool nan = v[j] != v[j], other_nan = b.v[j] != b.v[j];
      const bool more = other_nan || b.v[j] > v[j];
      const bool tie = nan ? other_nan : !other_nan && b.v[j] == v[j];
      const bool take = tie ? (nan ? b.tap[j] > tap[j] : b.tap[j] < tap[j]) : more;
      v[j] = take ? b.v[j] : v[j];
      tap[j] = take ? b.tap[j] : tap[j];
    }
  }
  template <class Tap>
  __device__ void store(T* y, Tap* taps, int64_t to) const {
    store_values<W>(y + to, v);
    if (taps == nullptr) return;
    Pack<Tap, W> numbers;
#pragma unroll
    for (int j = 0; j < W; ++j) numbers[j] = static_cast<Tap>(tap[j]);
    store_pack(taps + to, numbers);
  }
};

__device__ inline int64_t first_tap(const Pool& s, const Span& d, const Span& h, const Span& w) {
  return (d.lo * s.ker[1] + h.lo) * s.ker[2] + w.lo;
}

// One thread per pack of y. Few taps: their numbers fit a byte.
template <class T, int W>
__global__ void __launch_bounds__(kThreads, 3)
    max_forward(Pool s, Divider by_packs, int64_t items, const T* __restrict__ x, T* __restrict__ y,
                uint8_t* __restrict__ tap) {
  for (int64_t i = thread_index(); i < items; i += thread_count()) {
    const Place p = place_of(i, s.by_out, by_packs, W);
    const Span d = window(s, 0, p.d), h = window(s, 1, p.h), w = window(s, 2, p.w);
    const T* image = x + p.n * s.in_pixels() * s.c + p.c;
    Best<T, W> best;
    best.begin(first_tap(s, d, h, w));
    for_taps(s, d, h, w, image, [&](const T* at, int32_t number) { best.offer(at, number); });
    best.store(y, tap, i * W);
  }
}

template <class T, int W>
struct WideMaxima {
  Best<T, W> best[kWideThreads];
};
// One block per window and group of channels.
template <class T, class Tap, int W>
__global__ void __launch_bounds__(kWideThreads)
    max_forward_wide(Pool s, WideShape wide, const T* __restrict__ x, T* __restrict__ y,
                     Tap* __restrict__ tap) {
  Best<T, W>* shared_best = shared<WideMaxima<T, W>>().best;
  const int me = int(threadIdx.x), lane = me % wide.lanes;
  for (int64_t item = blockIdx.x; item < wide.items; item += gridDim.x) {
    const Place p = place_of(item, s.by_out, wide.by_groups, wide.lanes);
    const int64_t c = (p.c + lane) * W;
    const Span d = window(s, 0, p.d), h = window(s, 1, p.h), w = window(s, 2, p.w);
    Best<T, W> best;
    best.begin(first_tap(s, d, h, w));
    const T* image = x + p.n * s.in_pixels() * s.c + c;
    if (c < s.c)
      for_shared_taps(s, wide, d, h, w, 0,
                      [&](int64_t pixel, int64_t at) { best.offer(image + pixel * s.c, at); });
    __syncthreads();  // shared_best may still be read
    shared_best[me] = best;
    for (int step = kWideThreads / 2; step >= wide.lanes; step /= 2) {
      __syncthreads();
      if (me >= step) continue;
      best.merge(shared_best[me + step]);
      shared_best[me] = best;
    }
    if (me < wide.lanes && c < s.c) best.store(y, tap, wide.by_groups.quotient(item) * s.c + c);
  }
}

template <class T, class Tap>
void max_forward_with(const Exec& exec, const PoolShape& s, const T* x, T* y, Tap* tap) {
  if (s.y_size() == 0) return;
  with_width<T>(are_packs<T>(s.c, x, y, tap), [&](auto width) {
    constexpr int W = decltype(width)::value;
    const int64_t packs = s.c / W;
    if constexpr (sizeof(Tap) == 1)
      if (s.taps() <= kManyTaps) {
        const int64_t items = s.n * s.out_pixels() * packs;
        return launch(exec, max_forward<T, W>, grid_for(items, kThreads), dim3(kThreads), 0,
                      Pool(s), Divider(packs), items, x, y, tap);
      }
    const WideShape wide(s, packs, 1);
    launch(exec, max_forward_wide<T, Tap, W>, wide.grid(), dim3(kWideThreads),
           sizeof(WideMaxima<T, W>), Pool(s), wide, x, y, tap);
  });
}

template <class T>
void max_pool_forward(const Exec& exec, const PoolShape& s, const T* x, T* y, void* tap) {
  if (s.tap_bytes() == 1 || tap == nullptr) {
    max_forward_with(exec, s, x, y, static_cast<uint8_t*>(tap));
  } else {
    max_forward_with(exec, s, x, y, static_cast<int32_t*>(tap));
  }
}

// One thread per pack of dx, over the windows that cover it.
template <class T, class Tap, int W>
__global__ void __launch_bounds__(kThreads, 3)
    max_backward(Pool s, Divider by_packs, int64_t items, const T* __restrict__ dy,
                 const Tap* __restrict__ tap, const T* __restrict__ mask, T* __restrict__ dx) {
  for (int64_t i = thread_index(); i < items; i += thread_count()) {
    const Place p = place_of(i, s.by_in, by_packs, W);
    const int64_t image = p.n * s.out_pixels() * s.c + p.c;
    LongSum<Acc<T>, W> sum;
    for_covering(s, p.d, p.h, p.w, [&](const Covering& o) {
      const int64_t from = image + o.pixel * s.c;
      const Pack<Tap, W> at = load_pack<W>(tap + from);
      Acc<T> g[W];
      load_values<W>(dy + from, g);
#pragma unroll
      for (int j = 0; j < W; ++j) g[j] = int32_t(at[j]) == int32_t(o.tap) ? g[j] : Acc<T>(0);
      if (mask != nullptr) {
        Acc<T> m[W];
        load_values<W>(mask + from, m);
#pragma unroll
        for (int j = 0; j < W; ++j) g[j] = m[j] <= Acc<T>(0) ? Acc<T>(0) : g[j];
      }
      sum.add(g);
    });
    sum.fold();
    store_values<W>(dx + i * W, sum.total);
  }
}

template <class T, class Tap>
void max_backward_with(const Exec& exec, const PoolShape& s, const T* dy, const Tap* tap,
                       const T* mask, T* dx) {
  if (s.x_size() == 0) return;
  with_width<T>(are_packs<T>(s.c, dy, tap, mask, dx), [&](auto width) {
    constexpr int W = decltype(width)::value;
    const int64_t items = s.x_size() / W;
    launch(exec, max_backward<T, Tap, W>, grid_for(items, kThreads), dim3(kThreads), 0, Pool(s),
           Divider(s.c / W), items, dy, tap, mask, dx);
  });
}

template <class T>
void max_pool_backward(const Exec& exec, const PoolShape& s, const T* dy, const void* tap,
                       const T* mask, T* dx) {
  if (s.tap_bytes() == 1) {
    max_backward_with(exec, s, dy, static_cast<const uint8_t*>(tap), mask, dx);
  } else {
    max_backward_with(exec, s, dy, static_cast<const int32_t*>(tap), mask, dx);
  }
}

template <class Tap>
void tap_index(const Exec& exec, const PoolShape& shape, const Tap* tap, int64_t* index) {
  if (shape.y_size() == 0) return;
  const Pool s(shape);
  const Divider by_c(s.c), by_row(s.ker[2]), by_plane(s.ker[1] * s.ker[2]);
  for_each(exec, s.y_size(), [=] __device__(int64_t i) {
    const Place p = place_of(i, s.by_out, by_c, 1);
    int64_t kd = tap[i], kh = by_plane.split(kd);
    const int64_t kw = by_row.split(kh);
    const int64_t d = window(s, 0, p.d).first + kd * s.dil[0];
    const int64_t h = window(s, 1, p.h).first + kh * s.dil[1];
    index[i] = (d * s.in[1] + h) * s.in[2] + window(s, 2, p.w).first + kw * s.dil[2];
  });
}

template <class T>
void max_pool_index(const Exec& exec, const PoolShape& s, const void* tap, int64_t* index) {
  if (s.tap_bytes() == 1) {
    tap_index(exec, s, static_cast<const uint8_t*>(tap), index);
  } else {
    tap_index(exec, s, static_cast<const int32_t*>(tap), index);
  }
}

// ---- unpooling: x and index (n, in, c), y (n, out, c) ----

// A number of an input, as large as T but at least 4 bytes, and unsigned for atomicMax().
template <class T>
using Number = std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned>;

// Numbers of the inputs that y's elements get lie in y itself, unless its elements are too small.
template <class T>
int64_t max_unpool_forward_workspace(int64_t n, int64_t out, int64_t c, int) {
  return sizeof(T) < sizeof(Number<T>) ? n * out * c * int64_t{sizeof(Number<T>)} : 0;
}

// Each element first gets the number of the last x that goes there, plus 1, by integer maxima,
// whose order does not matter; then it fetches that x.
template <class T>
void max_unpool_forward(const Exec& exec, int64_t n, int64_t in, int64_t out, int64_t c, const T* x,
                        const int64_t* index, T* y) {
  if (n * out * c == 0) return;
  if (uint64_t(in) >= std::numeric_limits<Number<T>>::max())
    throw std::invalid_argument(std::string("[") + exec.op +
                                "] A plane must have fewer than 2^32 - 1 inputs on CUDA. Got " +
                                std::to_string(in) + ".");
  void* const scratch = sizeof(T) < sizeof(Number<T>) ? exec.workspace : y;
  auto* last = static_cast<Number<T>*>(scratch);
  const Divider by_c(c), by_in(std::max<int64_t>(in, 1)), by_out(out);
  for_each(exec, n * out * c, [=] __device__(int64_t i) { last[i] = 0; });
  ValueError* errors = exec.errors;
  const char* op = exec.op;
  for_each(exec, n * in * c, [=] __device__(int64_t i) {
    if (index[i] < 0 || index[i] >= out) return report(errors, op, index[i], 0, out);
    int64_t image = i;
    const int64_t channel = by_c.split(image), pixel = by_in.split(image);
    atomicMax(last + (image * out + index[i]) * c + channel, Number<T>(pixel + 1));
  });
  for_each(exec, n * out * c, [=] __device__(int64_t i) {
    const auto number = int64_t(last[i]);
    int64_t image = i;
    const int64_t channel = by_c.split(image);
    image = by_out.quotient(image);
    y[i] = number == 0 ? T(0) : x[(image * in + number - 1) * c + channel];
  });
}

template <class T>
void max_unpool_backward(const Exec& exec, int64_t n, int64_t in, int64_t out, int64_t c,
                         const T* dy, const int64_t* index, T* dx) {
  if (n * in * c == 0) return;
  const Divider by_c(c), by_in(in);
  ValueError* errors = exec.errors;
  const char* op = exec.op;
  for_each(exec, n * in * c, [=] __device__(int64_t i) {
    int64_t image = i;
    const int64_t channel = by_c.split(image);
    image = by_in.quotient(image);
    const bool inside = index[i] >= 0 && index[i] < out;
    if (!inside) report(errors, op, index[i], 0, out);
    dx[i] = inside ? dy[(image * out + index[i]) * c + channel] : T(0);
  });
}

template <class T>
void add(Ops<T>& table) {
  table.max_pool_forward = max_pool_forward<T>;
  table.max_pool_backward = max_pool_backward<T>;
  table.max_pool_index = max_pool_index<T>;
  table.max_unpool_forward_workspace = max_unpool_forward_workspace<T>;
  table.max_unpool_forward = max_unpool_forward<T>;
  table.max_unpool_backward = max_unpool_backward<T>;
}

}  // namespace

CONVGRAD_STEM(pool)

}  // namespace convgrad::cuda
