// Locally connected layers: convolution with weights of its own at every output position.
// x (n, in, c), w (k, out, taps, c), b (k, out), y (n, out, k). Each weight serves one position
// alone, so these kernels wait for the weights: one thread per element, in gather form.
#include "cuda/kernels/conv_direct.cuh"

namespace convgrad::cuda {
namespace {

int64_t no_workspace(const ConvShape&, int) { return 0; }

template <class T>
void local_forward(const Exec& exec, const ConvShape& s, const T* x, const T* w, const T* b, T* y) {
  for_each(exec, s.y_size(), [=] __device__(int64_t i) {
    const int64_t k = i % s.out_c, o = i / s.out_c % s.out_pixels();
    const int64_t n = i / (s.out_c * s.out_pixels()), row = k * s.out_pixels() + o;
    const T* image = x + n * s.in_pixels() * s.in_c;
    const T* filter = w + row * s.taps() * s.in_c;
    Acc<T> sum = 0;
    for (int64_t tap = 0; tap < s.taps(); ++tap) {
      const int64_t pixel = tap_pixel(s, o, tap);
      sum += dot<T>(pixel < 0 ? nullptr : image + pixel * s.in_c, filter + tap * s.in_c, 1, s.in_c);
    }
    y[i] = T(b ? sum + Acc<T>(b[row]) : sum);
  });
}

template <class T>
void local_backward_input(const Exec& exec, const ConvShape& s, const T* dy, const T* w, T* dx) {
  for_each(exec, s.x_size(), [=] __device__(int64_t i) {
    const int64_t c = i % s.in_c, pixel = i / s.in_c % s.in_pixels();
    const int64_t n = i / (s.in_c * s.in_pixels()), outs = s.out_pixels();
    const int64_t filter = s.taps() * s.in_c;
    Acc<T> sum = 0;
    for_windows(s, pixel, [&](int64_t tap, int64_t o) {
      if (o < 0) return;
      sum += dot<T>(dy + (n * outs + o) * s.out_c, w + o * filter + tap * s.in_c + c, outs * filter,
                    s.out_c);
    });
    dx[i] = T(sum);
  });
}

// The sum over images of dy[n][i] * x[n][j], images dy_step, resp. x_step apart; x null: of dy.
template <class T>
__device__ Acc<T> image_sum(const ConvShape& s, const T* dy, const T* x) {
  const int64_t dy_step = s.out_pixels() * s.out_c, x_step = s.in_pixels() * s.in_c;
  Acc<T> total = 0;
  for (int64_t n0 = 0; n0 < s.n; n0 += kTermBlock) {
    const int64_t end = n0 + kTermBlock < s.n ? n0 + kTermBlock : s.n;
    Acc<T> sum = 0;
    for (int64_t n = n0; n < end; ++n)
      sum += Acc<T>(dy[n * dy_step]) * (x ? Acc<T>(x[n * x_step]) : Acc<T>(1));
    total += sum;
  }
  return total;
}

template <class T>
void local_backward_weight(const Exec& exec, const ConvShape& s, const T* dy, const T* x, T* dw,
                           T* db) {
  const int64_t outs = s.out_pixels();
  for_each(exec, s.w_size() * outs, [=] __device__(int64_t i) {
    const int64_t c = i % s.in_c, tap = i / s.in_c % s.taps();
    const int64_t o = i / (s.in_c * s.taps()) % outs, k = i / (s.in_c * s.taps() * outs);
    const int64_t pixel = tap_pixel(s, o, tap);
    dw[i] = pixel >= 0 ? T(image_sum<T>(s, dy + o * s.out_c + k, x + pixel * s.in_c + c)) : T(0);
  });
  if (!db) return;
  for_each(exec, s.out_c * outs, [=] __device__(int64_t i) {
    db[i] = T(image_sum<T>(s, dy + i % outs * s.out_c + i / outs, nullptr));
  });
}

template <class T>
void add(Ops<T>& table) {
  table.local_forward_workspace = no_workspace;
  table.local_forward = local_forward<T>;
  table.local_backward_input_workspace = no_workspace;
  table.local_backward_input = local_backward_input<T>;
  table.local_backward_weight_workspace = no_workspace;
  table.local_backward_weight = local_backward_weight<T>;
}

}  // namespace

CONVGRAD_STEM(local)

}  // namespace convgrad::cuda
