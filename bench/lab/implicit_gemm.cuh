// Version 5: the convolution as the matrix product that it is: y (pixels, k) = windows (pixels,
// r r c) times weights (r r c, k), the windows being read where they lie in x.
//
// The loop runs over the r r c terms and no longer over taps and channels: three channels and 3 x 3
// taps are 27 terms, in slices of 8, where version 4 multiplies 9 times 16. The next slice is
// loaded into registers while this one is multiplied. And tiles of 128 x 128, 8 x 8 sums per
// thread: 16 numbers for 64 multiply-adds.
#pragma once
#include "sums.cuh"

namespace convgrad::cuda::lab {

struct ImplicitGemm {
  static constexpr int kSlice = 8;
  alignas(16) float x[kSlice][Sums<8>::kTile];
  float w[kSlice][Sums<8>::kTile];
};

// What one thread fetches of a slice: four terms of a pixel's window, four weights of one term.
struct Fetched {
  static constexpr int kTile = Sums<8>::kTile;
  float x[4], w[4];

  __device__ void load(const Conv& s, const Pixel& pixel, Term term, int first) {
    const int line = first + int(threadIdx.x) / 32;
    const int channel = int(blockIdx.y) * kTile + int(threadIdx.x) % 32 * 4;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float* at = term.of(s, pixel);
      x[e] = at ? *at : 0;
      term.advance(s, 1);
      const bool weight = line < s.terms() && channel + e < s.k;
      w[e] = weight ? s.weight[int64_t{line} * s.k + channel + e] : 0;
    }
  }
  __device__ void store(ImplicitGemm& tile) const {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      tile.x[threadIdx.x / kTile * 4 + e][threadIdx.x % kTile] = x[e];
      tile.w[threadIdx.x / 32][threadIdx.x % 32 * 4 + e] = w[e];
    }
  }
};

__global__ void __launch_bounds__(kTileThreads) implicit_gemm(Conv s) {
  using S = Sums<8>;
  constexpr int kSlice = ImplicitGemm::kSlice;
  auto& tile = shared<ImplicitGemm>();
  const Pixel pixel(s, int(blockIdx.x) * S::kTile + int(threadIdx.x) % S::kTile);
  Term term(s, int(threadIdx.x) / S::kTile * 4);
  Fetched fetched;
  S sums;
  fetched.load(s, pixel, term, 0);
  for (int first = 0; first < s.terms(); first += kSlice) {
    __syncthreads();
    fetched.store(tile);
    __syncthreads();
    term.advance(s, kSlice);
    fetched.load(s, pixel, term, first + kSlice);
#pragma unroll
    for (int e = 0; e < kSlice; ++e) sums.add(tile.x[e], tile.w[e]);
  }
  sums.store(s);
}

inline void run_implicit_gemm(const Exec& exec, const Conv& s) {
  launch(exec, implicit_gemm, Sums<8>::grid(s), dim3(kTileThreads), sizeof(ImplicitGemm), s);
}

}  // namespace convgrad::cuda::lab
