// What every version of the lab computes, and how pixels and windows are counted.
#pragma once
#include "cuda/launch.cuh"

namespace convgrad::cuda::lab {

// y (n, h, w, k) = x (n, h, w, c) * weight (r, r, c, k), with zeros around x so that y is as large;
// r is odd. Channels last; the weights lie as a matrix product reads them, K = r r c lines of k.
struct Conv {
  int n, h, w, c, k, r;
  const float *x, *weight;
  float* y;

  __host__ __device__ int pixels() const { return n * h * w; }
  __host__ __device__ int terms() const { return r * r * c; }  // of the sum that an element of y is
};

// A pixel of y, and the window of x around it.
struct Pixel {
  int image, row, column;

  __device__ Pixel(const Conv& s, int at)
      : image(at / s.w / s.h), row(at / s.w % s.h), column(at % s.w) {}

  // The channels of x under tap (i, j); null in the padding, and behind the last pixel.
  __device__ const float* under(const Conv& s, int i, int j) const {
    const int from_row = row + i - s.r / 2, from_column = column + j - s.r / 2;
    const bool inside =
        image < s.n && unsigned(from_row) < unsigned(s.h) && unsigned(from_column) < unsigned(s.w);
    return inside ? s.x + ((int64_t{image} * s.h + from_row) * s.w + from_column) * s.c : nullptr;
  }
};

// One of the r r c numbers of a window: a channel under tap (i, j).
struct Term {
  int i, j, channel;

  __device__ Term(const Conv& s, int at)
      : i(at / s.c / s.r), j(at / s.c % s.r), channel(at % s.c) {}

  // Without a division: these are slow.
  __device__ void advance(const Conv& s, int steps) {
    for (channel += steps; channel >= s.c; channel -= s.c)
      if (++j == s.r) {
        j = 0;
        ++i;
      }
  }
  // Where it is in x for that pixel; null: a zero.
  __device__ const float* of(const Conv& s, const Pixel& pixel) const {
    const float* channels = i < s.r ? pixel.under(s, i, j) : nullptr;
    return channels ? channels + channel : nullptr;
  }
};

}  // namespace convgrad::cuda::lab
