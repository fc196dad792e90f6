// Version 3: what several threads need is fetched once, into shared memory.
//
// A block computes 16 pixels x 16 channels of y. For each tap and each 16 channels of x it copies
// the 16 x 16 numbers of x and the 16 x 16 weights that this takes; every one of them is then used
// by 16 threads. Global memory is read 16 times less; each multiply-add still loads two numbers,
// from shared memory.
#pragma once
#include "conv.cuh"

namespace convgrad::cuda::lab {

constexpr int kSide = 16;
struct SharedTiles {
  float x[kSide][kSide + 1];  // (pixel, channel); the odd pitch puts a column in different banks
  float w[kSide][kSide];      // (channel of x, channel of y)
};

__global__ void __launch_bounds__(kSide* kSide) shared_tiles(Conv s) {
  auto& tile = shared<SharedTiles>();
  const int line = int(threadIdx.x) / kSide, lane = int(threadIdx.x) % kSide;
  const int at = int(blockIdx.x) * kSide + line, channel = int(blockIdx.y) * kSide + lane;
  const Pixel pixel(s, at);
  float sum = 0;
  for (int tap = 0; tap < s.r * s.r; ++tap) {
    const float* x = pixel.under(s, tap / s.r, tap % s.r);
    for (int c = 0; c < s.c; c += kSide) {
      const bool weight = c + line < s.c && channel < s.k;
      __syncthreads();  // the tiles of the step before are no longer read
      tile.x[line][lane] = x && c + lane < s.c ? x[c + lane] : 0;
      tile.w[line][lane] = weight ? s.weight[int64_t{tap * s.c + c + line} * s.k + channel] : 0;
      __syncthreads();  // and now all of these are there
      for (int e = 0; e < kSide; ++e) sum += tile.x[line][e] * tile.w[e][lane];
    }
  }
  if (at < s.pixels() && channel < s.k) s.y[int64_t{at} * s.k + channel] = sum;
}

inline void run_shared_tiles(const Exec& exec, const Conv& s) {
  launch(exec, shared_tiles,
         dim3(unsigned(ceil_div(s.pixels(), kSide)), unsigned(ceil_div(s.k, kSide))),
         dim3(kSide * kSide), sizeof(SharedTiles), s);
}

}  // namespace convgrad::cuda::lab
