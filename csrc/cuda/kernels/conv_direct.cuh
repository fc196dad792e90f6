// The plain convolution: any shape, any type, one thread per output element, neighbouring threads
// on neighbouring channels. It is what the fast kernels are compared with, and all that float64
// uses.
//
// Padding means zeros: a tap outside adds 0 * w, which is NaN where w is infinite or NaN. The fast
// kernels, which read zeros there, do the same.
#pragma once
#include "cuda/kernels/finish.cuh"

namespace convgrad::cuda {
namespace {

// The sum of a[i] * b[i * b_step] over i < n, in blocks of terms; a may be null and stands for
// zeros then.
template <class T>
__device__ Acc<T> dot(const T* a, const T* b, int64_t b_step, int64_t n) {
  Acc<T> total = 0;
  for (int64_t i0 = 0; i0 < n; i0 += kTermBlock) {
    const int64_t end = i0 + kTermBlock < n ? i0 + kTermBlock : n;
    Acc<T> sum = 0;
    for (int64_t i = i0; i < end; ++i)
      sum += (a ? Acc<T>(a[i]) : Acc<T>(0)) * Acc<T>(b[i * b_step]);
    total += sum;
  }
  return total;
}

// The pixel of the image that a tap reads at output position o, or -1 where that is outside.
__device__ inline int64_t tap_pixel(const ConvShape& s, int64_t o, int64_t tap) {
  const int64_t at[3] = {o / (s.out[1] * s.out[2]), o / s.out[2] % s.out[1], o % s.out[2]};
  const int64_t t[3] = {tap / (s.ker[1] * s.ker[2]), tap / s.ker[2] % s.ker[1], tap % s.ker[2]};
  int64_t pixel = 0;
  bool inside = true;
  for (int i = 0; i < 3; ++i) {
    const int64_t in = at[i] * s.stride[i] - s.pad[i] + t[i] * s.dil[i];
    inside = inside && in >= 0 && in < s.in[i];
    pixel = pixel * s.in[i] + in;
  }
  return inside ? pixel : -1;
}

// fn(tap, pixel): for each tap that reaches input pixel `i` from a whole multiple of the stride,
// the output pixel whose window that is, or -1 where the window would begin outside.
template <class F>
__device__ void for_windows(const ConvShape& s, int64_t i, F fn) {
  const int64_t at[3] = {i / (s.in[1] * s.in[2]), i / s.in[2] % s.in[1], i % s.in[2]};
  for (int64_t tap = 0; tap < s.taps(); ++tap) {
    const int64_t t[3] = {tap / (s.ker[1] * s.ker[2]), tap / s.ker[2] % s.ker[1], tap % s.ker[2]};
    int64_t pixel = 0;
    bool inside = true, aligned = true;
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t from = at[axis] + s.pad[axis] - t[axis] * s.dil[axis];
      const int64_t o = from / s.stride[axis];
      aligned = aligned && from % s.stride[axis] == 0;
      inside = inside && from >= 0 && o < s.out[axis];
      pixel = pixel * s.out[axis] + o;
    }
    if (aligned) fn(tap, inside ? pixel : -1);
  }
}

template <class T>
void forward_direct(const Exec& exec, const ConvShape& s, const T* x, const T* w,
                    const Epilogue<T>& epilogue, T* y) {
  for_each(exec, s.y_size(), [=] __device__(int64_t i) {
    const int64_t k = i % s.out_c, o = i / s.out_c % s.out_pixels();
    const int64_t n = i / (s.out_c * s.out_pixels());
    const int64_t c = s.group_in_c(), group = k / s.group_out_c();
    const T* image = x + n * s.in_pixels() * s.in_c + group * c;
    const T* filter = w + k * s.taps() * c;
    Acc<T> sum = 0;
    for (int64_t tap = 0; tap < s.taps(); ++tap) {
      const int64_t pixel = tap_pixel(s, o, tap);
      sum += dot<T>(pixel < 0 ? nullptr : image + pixel * s.in_c, filter + tap * c, 1, c);
    }
    y[i] = T(finish(epilogue, sum, k, i));
  });
}

template <class T>
void backward_input_direct(const Exec& exec, const ConvShape& s, const T* dy, const T* w,
                           const Epilogue<T>& epilogue, T* dx) {
  for_each(exec, s.x_size(), [=] __device__(int64_t i) {
    const int64_t channel = i % s.in_c, pixel = i / s.in_c % s.in_pixels();
    const int64_t n = i / (s.in_c * s.in_pixels());
    const int64_t c = s.group_in_c(), k = s.group_out_c(), group = channel / c;
    const T* image = dy + n * s.out_pixels() * s.out_c + group * k;
    const T* filters = w + group * k * s.taps() * c + channel % c;
    Acc<T> sum = 0;
    for_windows(s, pixel, [&](int64_t tap, int64_t o) {
      sum += dot<T>(o < 0 ? nullptr : image + o * s.out_c, filters + tap * c, s.taps() * c, k);
    });
    dx[i] = T(finish(epilogue, sum, channel, i));
  });
}

}  // namespace
}  // namespace convgrad::cuda
