// Versions 1 and 2: one thread per element of y, by the definition of convolution.
#pragma once
#include "conv.cuh"

namespace convgrad::cuda::lab {

constexpr int kDirectThreads = 256;

__device__ inline float direct_sum(const Conv& s, int at, int channel) {
  const Pixel pixel(s, at);
  float sum = 0;
  for (int i = 0; i < s.r; ++i)
    for (int j = 0; j < s.r; ++j) {
      const float* x = pixel.under(s, i, j);
      if (x == nullptr) continue;
      const float* w = s.weight + int64_t{i * s.r + j} * s.c * s.k + channel;
      for (int c = 0; c < s.c; ++c) sum += x[c] * w[int64_t{c} * s.k];
    }
  return sum;
}

// 1. Neighbouring threads are neighbouring pixels, as one would number an image. At every step the
// 32 threads of a warp read 32 numbers that lie c apart, and write 32 that lie k apart: each from a
// 32-byte sector of its own, of which the memory moves all.
__global__ void __launch_bounds__(kDirectThreads) naive(Conv s) {
  const int64_t i = thread_index();
  if (i >= int64_t{s.pixels()} * s.k) return;
  const int pixel = int(i % s.pixels()), channel = int(i / s.pixels());
  s.y[int64_t{pixel} * s.k + channel] = direct_sum(s, pixel, channel);
}

// 2. Neighbouring threads are neighbouring channels of y, which is how the memory lies: a warp
// reads 32 weights side by side, one number of x for all, and writes 32 numbers side by side.
// Nothing but the numbering of the threads has changed. Still, two loads per multiply-add.
__global__ void __launch_bounds__(kDirectThreads) coalesced(Conv s) {
  const int64_t i = thread_index();
  if (i >= int64_t{s.pixels()} * s.k) return;
  s.y[i] = direct_sum(s, int(i / s.k), int(i % s.k));
}

template <auto kKernel>
void run_direct(const Exec& exec, const Conv& s) {
  const int64_t threads = int64_t{s.pixels()} * s.k;
  launch(exec, kKernel, dim3(unsigned(ceil_div(threads, kDirectThreads))), dim3(kDirectThreads), 0,
         s);
}

}  // namespace convgrad::cuda::lab
