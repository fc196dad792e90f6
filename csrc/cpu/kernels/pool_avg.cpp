// Average pooling. x (n, in, c), y (n, out, c).
#include "pool_window.h"

namespace convgrad::cpu {
namespace {

// One window over everything: a sum over pixels, cut into blocks by their number alone.
constexpr int64_t kSumBlock = 1024;
inline bool is_global(const PoolShape& s) {
  bool whole = s.taps() > kList;
  for (int axis = 0; axis < 3; ++axis)
    whole = whole && s.out[axis] == 1 && s.ker[axis] == s.in[axis] && s.pad[axis] == 0 &&
            s.dil[axis] == 1;
  return whole;
}

template <class T>
int64_t avg_pool_forward_workspace(const PoolShape& s, int) {
  if (!is_global(s)) return 0;
  return s.n * ceil_div(s.in_pixels(), kSumBlock) * s.c * static_cast<int64_t>(sizeof(T));
}

// out (c) = the sum of `pixels` pixels of c channels.
template <class T>
inline void sum_pixels(int64_t pixels, int64_t c, const T* x, T* out) {
  if (c == 1) {  // lanes along the signal: a single chain of sums would wait for itself
    Vec<T> acc[4] = {};
    int64_t i = 0;
    for (; i + 4 * kLanes<T> <= pixels; i += 4 * kLanes<T>)
      for (int v = 0; v < 4; ++v) acc[v] += load(x + i + v * kLanes<T>);
    const Vec<T> lanes = (acc[0] + acc[1]) + (acc[2] + acc[3]);
    T sum = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) sum += lanes[lane];
    for (; i < pixels; ++i) sum += x[i];
    *out = sum;
    return;
  }
  for_channels<T>(c, true, [&](auto w, int64_t k) {
    constexpr int W = w.value;
    Lanes<T, W> sum{};
    for (int64_t i = 0; i < pixels; ++i) sum += get<T, W>(x + i * c + k);
    put<T, W>(out + k, sum);
  });
}

template <class T>
void global_forward(const Exec& exec, const PoolShape& s, const T* x, T* y) {
  const int64_t pixels = s.in_pixels(), blocks = ceil_div(pixels, kSumBlock);
  T* partial = static_cast<T*>(exec.workspace);
  parallel_for(exec, s.n * blocks, s.x_size(), [&](int64_t item, int) {
    const int64_t begin = item % blocks * kSumBlock;
    sum_pixels(min_of(kSumBlock, pixels - begin), s.c, x + (item / blocks * pixels + begin) * s.c,
               partial + item * s.c);
  });
  const T count = divisor<T>(s, s.in[0], s.in[1], s.in[2]);
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t c = 0; c < s.c; ++c) {
      T sum = 0;
      for (int64_t b = 0; b < blocks; ++b) sum += partial[(n * blocks + b) * s.c + c];
      y[n * s.c + c] = sum / count;
    }
}

// What window (od, oh, ow) is divided by.
template <class T>
inline T divisor_at(const PoolShape& s, int64_t od, int64_t oh, int64_t ow) {
  if (s.divisor) return static_cast<T>(s.divisor);
  return divisor<T>(s, axis_count(s, 0, window(s, 0, od)), axis_count(s, 1, window(s, 1, oh)),
                    axis_count(s, 2, window(s, 2, ow)));
}
template <class T>
inline T divisor_of(const PoolShape& s, int64_t pixel) {
  pixel %= s.out_pixels();
  return divisor_at<T>(s, pixel / (s.out[1] * s.out[2]), pixel / s.out[2] % s.out[1],
                       pixel % s.out[2]);
}
// Whether it is the same for all windows.
inline bool has_one_divisor(const PoolShape& s) {
  if (s.divisor) return true;
  if (s.adaptive) return false;
  bool one = true;
  for (int axis = 0; axis < 3; ++axis) {
    const Span last = window(s, axis, s.out[axis] - 1);
    one = one && (s.count_pad || s.pad[axis] == 0) && axis_count(s, axis, last) == s.ker[axis];
  }
  return one;
}

template <class T>
void avg_pool_forward(const Exec& exec, const PoolShape& s, const T* x, T* y) {
  if (is_global(s)) return global_forward(exec, s, x, y);
  const bool one = has_one_divisor(s);
  const T common = s.y_size() ? divisor_at<T>(s, 0, 0, 0) : T(1);
  const int64_t more = s.taps() > kList;  // then the sum is divided after its last chunk
  forward_by_windows(
      exec, s,
      [&](const List<int32_t>& list, bool first, int64_t base, int64_t pixel, const Piece& p) {
        const T count = more ? T(1) : one ? common : divisor_of<T>(s, pixel);
        for_channels<T>(p.c, first, [&](auto w, int64_t c) {
          constexpr int W = w.value;
          T* to = y + pixel * s.c + p.c0 + c;
          const T* from = x + (base + p.c0 + c);
          Lanes<T, W> sum = get<T, W>(from + list.offset[0]);
          for (int t = 1; t < list.count; ++t) sum += get<T, W>(from + list.offset[t]);
          if (!first) sum += get<T, W>(to);
          put<T, W>(to, sum / count);
        });
      });
  if (!more) return;
  parallel_pixels(exec, s.n * s.out_pixels(), s.c, 1, [&](const Piece& p) {
    for (int64_t pixel = p.begin; pixel < p.end; ++pixel) {
      const T count = divisor_of<T>(s, pixel);
      for (int64_t c = p.c0; c < p.c0 + p.c; ++c) y[pixel * s.c + c] /= count;
    }
  });
}

template <class T>
void avg_pool_backward(const Exec& exec, const PoolShape& s, const T* dy, T* dx) {
  const bool one = has_one_divisor(s);
  const T common = s.y_size() ? divisor_at<T>(s, 0, 0, 0) : T(1);
  if (windows_are_apart(s)) {
    backward_by_windows(exec, s, dx,
                        [&](const List<int32_t>& list, T* image, int64_t base, int64_t pixel) {
                          const T count = one ? common : divisor_of<T>(s, pixel);
                          for_channels<T>(s.c, true, [&](auto w, int64_t c) {
                            constexpr int W = w.value;
                            const Lanes<T, W> g = get<T, W>(dy + pixel * s.c + c) / count;
                            for (int t = 0; t < list.count; ++t)
                              put<T, W>(image + (base + list.offset[t] + c), g);
                          });
                        });
    return;
  }
  backward_by_inputs<T>(
      exec, s, one,
      [&](int64_t od, int64_t oh, int64_t ow, int64_t, int64_t, int64_t) {
        return one ? common : divisor_at<T>(s, od, oh, ow);
      },
      [&](const List<T>& list, bool first, int64_t base, int64_t pixel, const Piece& p) {
        for_channels<T>(p.c, first, [&](auto w, int64_t c) {
          constexpr int W = w.value;
          T* to = dx + pixel * s.c + p.c0 + c;
          Lanes<T, W> sum{};
          if (one) {
            for (int t = 0; t < list.count; ++t)
              sum += get<T, W>(dy + base + list.offset[t] + p.c0 + c);
            sum /= common;
          } else {
            for (int t = 0; t < list.count; ++t)
              sum += get<T, W>(dy + base + list.offset[t] + p.c0 + c) / list.value[t];
          }
          if (!first) sum += get<T, W>(to);
          put<T, W>(to, sum);
        });
      });
}

template <class T>
void add(Ops<T>& table) {
  table.avg_pool_forward_workspace = avg_pool_forward_workspace<T>;
  table.avg_pool_forward = avg_pool_forward<T>;
  table.avg_pool_backward = avg_pool_backward<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_pool_avg(Ops<float>& table) { add(table); }
void add_pool_avg(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
