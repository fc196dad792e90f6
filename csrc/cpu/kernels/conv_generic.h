// The generic convolution: any shape, any type, one pixel at a time. It is what the fast kernels
// are compared with, and all that float64 uses.
//
// Padding means zeros: a tap outside adds 0 * w, which is NaN where w is infinite or NaN. The fast
// kernels, which read zeros there, do the same.
#pragma once
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

// The sum of a[i] * b[i]; a may be null and stands for zeros then.
template <class T>
T dot(const T* a, const T* b, int64_t n) {
  Vec<T> acc = {};
  T sum = 0;
  int64_t i = 0;
  if (a == nullptr) {
    for (; i + kLanes<T> <= n; i += kLanes<T>) acc += load(b + i) * T(0);
    for (; i < n; ++i) sum += b[i] * T(0);
  } else {
    for (; i + kLanes<T> <= n; i += kLanes<T>) acc += load(a + i) * load(b + i);
    for (; i < n; ++i) sum += a[i] * b[i];
  }
  for (int lane = 0; lane < kLanes<T>; ++lane) sum += acc[lane];
  return sum;
}

// The epilogue of the `count` channels of one pixel, in place; `at` is its first element's number.
template <class T>
void finish_pixel(const Epilogue<T>& e, int64_t at, int64_t count, T* y) {
  for (int64_t k = 0; k < count; ++k) {
    if (e.bias) y[k] += e.bias[k];
    if (e.relu && y[k] < 0) y[k] = 0;
    if (e.mask && e.mask[at + k] <= 0) y[k] = 0;
  }
}

// All output channels of one pixel; x is the image's first element.
template <class T>
void forward_pixel(const ConvShape& s, const int64_t o[3], const T* x, const T* w, T* y) {
  const int64_t gc = s.group_in_c(), gk = s.group_out_c();
  for (int64_t k = 0; k < s.out_c; ++k) y[k] = 0;
  for (int64_t tap = 0; tap < s.taps(); ++tap) {
    const int64_t t[3] = {tap / (s.ker[1] * s.ker[2]), tap / s.ker[2] % s.ker[1], tap % s.ker[2]};
    int64_t pixel = 0;
    bool inside = true;
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t at = o[axis] * s.stride[axis] - s.pad[axis] + t[axis] * s.dil[axis];
      inside = at >= 0 && at < s.in[axis];
      if (!inside) break;
      pixel = pixel * s.in[axis] + at;
    }
    for (int64_t k = 0; k < s.out_c; ++k)
      y[k] += dot(inside ? x + pixel * s.in_c + k / gk * gc : nullptr,
                  w + (k * s.taps() + tap) * gc, gc);
  }
}

template <class T>
void forward_generic(const Exec& exec, const ConvShape& s, const T* x, const T* w,
                     const Epilogue<T>& epilogue, T* y) {
  parallel_for(exec, s.n * s.out[0] * s.out[1], s.macs(), [&](int64_t row, int) {
    const int64_t n = row / (s.out[0] * s.out[1]);
    int64_t o[3] = {row / s.out[1] % s.out[0], row % s.out[1], 0};
    for (; o[2] < s.out[2]; ++o[2]) {
      const int64_t at = (row * s.out[2] + o[2]) * s.out_c;
      forward_pixel(s, o, x + n * s.in_pixels() * s.in_c, w, y + at);
      finish_pixel(epilogue, at, s.out_c, y + at);
    }
  });
}

// All input channels of one pixel: gathers every output pixel whose window covers it. dy is the
// image's first element. Windows that would begin outside count as gradients of zero.
template <class T>
void backward_input_pixel(const ConvShape& s, const int64_t i[3], const T* dy, const T* w, T* dx) {
  const int64_t gc = s.group_in_c(), gk = s.group_out_c();
  for (int64_t c = 0; c < s.in_c; ++c) dx[c] = 0;
  for (int64_t tap = 0; tap < s.taps(); ++tap) {
    const int64_t t[3] = {tap / (s.ker[1] * s.ker[2]), tap / s.ker[2] % s.ker[1], tap % s.ker[2]};
    int64_t pixel = 0;
    bool inside = true, aligned = true;
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t at = i[axis] + s.pad[axis] - t[axis] * s.dil[axis];
      const int64_t o = at / s.stride[axis];
      aligned = aligned && at % s.stride[axis] == 0;
      inside = inside && at >= 0 && o < s.out[axis];
      pixel = pixel * s.out[axis] + (inside ? o : 0);
    }
    if (!aligned) continue;
    for (int64_t k = 0; k < s.out_c; ++k) {
      const T g = inside ? dy[pixel * s.out_c + k] : T(0);
      const T* row = w + (k * s.taps() + tap) * gc;
      T* out = dx + k / gk * gc;
      for (int64_t c = 0; c < gc; ++c) out[c] += g * row[c];
    }
  }
}

template <class T>
void backward_input_generic(const Exec& exec, const ConvShape& s, const T* dy, const T* w,
                            const Epilogue<T>& epilogue, T* dx) {
  parallel_for(exec, s.n * s.in[0] * s.in[1], s.macs(), [&](int64_t row, int) {
    const int64_t n = row / (s.in[0] * s.in[1]);
    int64_t i[3] = {row / s.in[1] % s.in[0], row % s.in[1], 0};
    for (; i[2] < s.in[2]; ++i[2]) {
      const int64_t at = (row * s.in[2] + i[2]) * s.in_c;
      backward_input_pixel(s, i, dy + n * s.out_pixels() * s.out_c, w, dx + at);
      finish_pixel(epilogue, at, s.in_c, dx + at);
    }
  });
}

}  // namespace
}  // namespace convgrad::cpu
