// The part of a block's tile of y that one thread holds in registers, from version 4 on.
#pragma once
#include "conv.cuh"

namespace convgrad::cuda::lab {

constexpr int kTileThreads = 256;  // as 16 x 16

// kPer x kPer sums of a tile of 16 kPer pixels x 16 kPer channels: in runs of four, 64 apart, so
// that a warp's reads of 16 bytes lie side by side.
template <int kPer>
struct Sums {
  static constexpr int kTile = 16 * kPer;
  float v[kPer][kPer] = {};

  static __device__ int row(int i) { return int(threadIdx.x) / 16 * 4 + i / 4 * 64 + i % 4; }
  static __device__ int column(int j) { return int(threadIdx.x) % 16 * 4 + j / 4 * 64 + j % 4; }

  // Adds the products of one term: x of the tile's pixels, w of its channels. 2 kPer loads from
  // shared memory, four at once, for kPer^2 multiply-adds.
  __device__ void add(const float (&x)[kTile], const float (&w)[kTile]) {
    Pack<float, 4> a[kPer / 4], b[kPer / 4];
#pragma unroll
    for (int i = 0; i < kPer / 4; ++i) {
      a[i] = load_pack<4>(&x[row(4 * i)]);
      b[i] = load_pack<4>(&w[column(4 * i)]);
    }
#pragma unroll
    for (int i = 0; i < kPer; ++i)
#pragma unroll
      for (int j = 0; j < kPer; ++j) v[i][j] += a[i / 4][i % 4] * b[j / 4][j % 4];
  }

  // Into y, of the block's tile.
  __device__ void store(const Conv& s) const {
#pragma unroll
    for (int i = 0; i < kPer; ++i)
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const int pixel = int(blockIdx.x) * kTile + row(i);
        const int channel = int(blockIdx.y) * kTile + column(j);
        if (pixel < s.pixels() && channel < s.k) s.y[int64_t{pixel} * s.k + channel] = v[i][j];
      }
  }

  static dim3 grid(const Conv& s) {
    return dim3(unsigned(ceil_div(s.pixels(), kTile)), unsigned(ceil_div(s.k, kTile)));
  }
};

}  // namespace convgrad::cuda::lab
