// Average pooling. x (n, in, c), y (n, out, c).
#include "cuda/kernels/pool_window.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kThreads = 256;

// What an average is divided by, one axis's share of it.
__device__ inline int64_t axis_count(const Pool& s, int axis, const Span& w) {
  if (s.adaptive || !s.count_pad) return w.size();
  const int64_t room = s.in[axis] + s.pad[axis] - w.first;
  return s.ker[axis] < room ? s.ker[axis] : room;
}
template <class A>
__device__ A divisor(const Pool& s, const Span& d, const Span& h, const Span& w) {
  if (s.divisor) return A(s.divisor);
  return A(axis_count(s, 0, d) * axis_count(s, 1, h) * axis_count(s, 2, w));
}

// Windows of many taps, if they are few, are cut into parts of about so many taps.
constexpr int64_t kPartTaps = 2048, kFewWindows = 1024;
int64_t parts_of(const PoolShape& s) {
  if (s.taps() <= kManyTaps) return 1;
  const int64_t most = kFewWindows / std::max<int64_t>(s.n * s.out_pixels(), 1);
  return std::max<int64_t>(std::min(ceil_div(s.taps(), kPartTaps), most), 1);
}

template <class T>
int64_t avg_pool_forward_workspace(const PoolShape& s, int) {
  const int64_t parts = parts_of(s);
  return parts == 1 ? 0 : s.y_size() * parts * int64_t(sizeof(Acc<T>));
}

// One thread per pack of y.
template <class T, int W>
__global__ void __launch_bounds__(kThreads, 3)
    avg_forward(Pool s, Divider by_packs, int64_t items, const T* __restrict__ x,
                T* __restrict__ y) {
  for (int64_t i = thread_index(); i < items; i += thread_count()) {
    const Place p = place_of(i, s.by_out, by_packs, W);
    const Span d = window(s, 0, p.d), h = window(s, 1, p.h), w = window(s, 2, p.w);
    const T* image = x + p.n * s.in_pixels() * s.c + p.c;
    Acc<T> sum[W] = {};
    for_taps(s, d, h, w, image, [&](const T* at, int32_t) {
      Acc<T> v[W];
      load_values<W>(at, v);
#pragma unroll
      for (int j = 0; j < W; ++j) sum[j] += v[j];
    });
    const Acc<T> count = divisor<Acc<T>>(s, d, h, w);
#pragma unroll
    for (int j = 0; j < W; ++j) sum[j] /= count;
    store_values<W>(y + i * W, sum);
  }
}

template <class T, int W>
struct WideSums {
  Acc<T> sum[kWideThreads][W];
};
// One block per window, group of channels and part of the taps: y, or the part's sums where there
// are several, (parts, n, out, c).
template <class T, int W>
__global__ void __launch_bounds__(kWideThreads)
    avg_forward_wide(Pool s, WideShape wide, const T* __restrict__ x, T* __restrict__ y,
                     Acc<T>* __restrict__ partial) {
  auto& sums = shared<WideSums<T, W>>().sum;
  const int me = int(threadIdx.x), lane = me % wide.lanes;
  for (int64_t item = blockIdx.x; item < wide.items; item += gridDim.x) {
    int64_t rest = item;
    const int64_t part = wide.by_parts.split(rest);
    const Place p = place_of(rest, s.by_out, wide.by_groups, wide.lanes);
    const int64_t c = (p.c + lane) * W, pixel = wide.by_groups.quotient(rest);
    const Span d = window(s, 0, p.d), h = window(s, 1, p.h), w = window(s, 2, p.w);
    const T* image = x + p.n * s.in_pixels() * s.c + c;
    LongSum<Acc<T>, W> sum;
    if (c < s.c)
      for_shared_taps(s, wide, d, h, w, part, [&](int64_t at, int64_t) {
        Acc<T> v[W];
        load_values<W>(image + at * s.c, v);
        sum.add(v);
      });
    sum.fold();
    __syncthreads();  // sums may still be read
#pragma unroll
    for (int j = 0; j < W; ++j) sums[me][j] = sum.total[j];
    for (int step = kWideThreads / 2; step >= wide.lanes; step /= 2) {
      __syncthreads();
      if (me >= step) continue;
#pragma unroll
      for (int j = 0; j < W; ++j) sums[me][j] += sums[me + step][j];
    }
    if (me >= wide.lanes || c >= s.c) continue;
    const int64_t to = pixel * s.c + c;
    if (wide.parts > 1) {
#pragma unroll
      for (int j = 0; j < W; ++j) partial[part * s.y_size() + to + j] = sums[me][j];
      continue;
    }
    const Acc<T> count = divisor<Acc<T>>(s, d, h, w);
    Acc<T> result[W];
#pragma unroll
    for (int j = 0; j < W; ++j) result[j] = sums[me][j] / count;
    store_values<W>(y + to, result);
  }
}

// y = the average whose sum `parts` (parts, n, out, c) make.
template <class T>
void add_parts(const Exec& exec, const Pool& s, int64_t parts, const Acc<T>* partial, T* y) {
  const Divider by_c(s.c);
  const int64_t size = s.y_size();
  for_each(exec, size, [=] __device__(int64_t i) {
    const Place p = place_of(i, s.by_out, by_c, 1);
    Acc<T> sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * size + i];
    y[i] = T(sum / divisor<Acc<T>>(s, window(s, 0, p.d), window(s, 1, p.h), window(s, 2, p.w)));
  });
}

template <class T>
void avg_pool_forward(const Exec& exec, const PoolShape& s, const T* x, T* y) {
  if (s.y_size() == 0) return;
  auto* partial = static_cast<Acc<T>*>(exec.workspace);
  const int64_t parts = parts_of(s);
  with_width<T>(are_packs<T>(s.c, x, y), [&](auto width) {
    constexpr int W = decltype(width)::value;
    const int64_t packs = s.c / W;
    if (s.taps() > kManyTaps) {
      const WideShape wide(s, packs, parts);
      launch(exec, avg_forward_wide<T, W>, wide.grid(), dim3(kWideThreads), sizeof(WideSums<T, W>),
             Pool(s), wide, x, y, partial);
      return;
    }
    const int64_t items = s.n * s.out_pixels() * packs;
    launch(exec, avg_forward<T, W>, grid_for(items, kThreads), dim3(kThreads), 0, Pool(s),
           Divider(packs), items, x, y);
  });
  if (parts > 1) add_parts(exec, Pool(s), parts, partial, y);
}

// The divisor where it is the same for all windows, else 0.
int64_t common_divisor(const PoolShape& s) {
  if (s.divisor || s.adaptive) return s.divisor;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t overhang = (s.out[axis] - 1) * s.stride[axis] + s.ker[axis] - s.in[axis];
    if (!s.count_pad && s.pad[axis] > 0) return 0;
    if (overhang > (s.count_pad ? 2 : 1) * s.pad[axis]) return 0;
  }
  return s.taps();
}

// One thread per pack of dx, over the windows that cover it. common: the divisor of all windows, 0
// if they differ.
template <class T, int W>
__global__ void __launch_bounds__(kThreads, 3)
    avg_backward(Pool s, Divider by_packs, int64_t items, Acc<T> common, const T* __restrict__ dy,
                 T* __restrict__ dx) {
  for (int64_t i = thread_index(); i < items; i += thread_count()) {
    const Place p = place_of(i, s.by_in, by_packs, W);
    const T* image = dy + p.n * s.out_pixels() * s.c + p.c;
    LongSum<Acc<T>, W> sum;
    for_covering(s, p.d, p.h, p.w, [&](const Covering& o) {
      Acc<T> g[W];
      load_values<W>(image + o.pixel * s.c, g);
      if (common == Acc<T>(0)) {
        const Acc<T> count =
            divisor<Acc<T>>(s, window(s, 0, o.d), window(s, 1, o.h), window(s, 2, o.w));
#pragma unroll
        for (int j = 0; j < W; ++j) g[j] /= count;
      }
      sum.add(g);
    });
    sum.fold();
    if (common != Acc<T>(0)) {
#pragma unroll
      for (int j = 0; j < W; ++j) sum.total[j] /= common;
    }
    store_values<W>(dx + i * W, sum.total);
  }
}

template <class T>
void avg_pool_backward(const Exec& exec, const PoolShape& s, const T* dy, T* dx) {
  if (s.x_size() == 0) return;
  with_width<T>(are_packs<T>(s.c, dy, dx), [&](auto width) {
    constexpr int W = decltype(width)::value;
    const int64_t items = s.x_size() / W;
    launch(exec, avg_backward<T, W>, grid_for(items, kThreads), dim3(kThreads), 0, Pool(s),
           Divider(s.c / W), items, Acc<T>(common_divisor(s)), dy, dx);
  });
}

template <class T>
void add(Ops<T>& table) {
  table.avg_pool_forward_workspace = avg_pool_forward_workspace<T>;
  table.avg_pool_forward = avg_pool_forward<T>;
  table.avg_pool_backward = avg_pool_backward<T>;
}

}  // namespace

CONVGRAD_STEM(pool_avg)

}  // namespace convgrad::cuda
