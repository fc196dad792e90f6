// Version 4: several elements of y per thread, so that what comes from shared memory is used from
// registers several times.
//
// A block computes 64 pixels x 64 channels, each of its 256 threads 4 x 4 of them: eight numbers
// are loaded, by two accesses, for 16 multiply-adds. x lies in shared memory with its pixels side
// by side, so that four of them are one access.
#pragma once
#include "sums.cuh"

namespace convgrad::cuda::lab {

struct Registers {
  static constexpr int kChannels = 16;  // of x, at a time
  alignas(16) float x[kChannels][Sums<4>::kTile];
  float w[kChannels][Sums<4>::kTile];
};

__global__ void __launch_bounds__(kTileThreads) registers(Conv s) {
  using S = Sums<4>;
  auto& tile = shared<Registers>();
  // What this thread copies: four channels of a pixel, every fourth weight of a line's sixteen.
  const int line = int(threadIdx.x) % S::kTile, part = int(threadIdx.x) / S::kTile * 4;
  const Pixel pixel(s, int(blockIdx.x) * S::kTile + line);
  const int channel = int(blockIdx.y) * S::kTile + line;
  S sums;
  for (int tap = 0; tap < s.r * s.r; ++tap) {
    const float* x = pixel.under(s, tap / s.r, tap % s.r);
    for (int first = 0; first < s.c; first += Registers::kChannels) {
      __syncthreads();
#pragma unroll
      for (int e = part; e < part + 4; ++e) {
        const int c = first + e;
        const bool weight = c < s.c && channel < s.k;
        tile.x[e][line] = x && c < s.c ? x[c] : 0;
        tile.w[e][line] = weight ? s.weight[int64_t{tap * s.c + c} * s.k + channel] : 0;
      }
      __syncthreads();
      for (int e = 0; e < Registers::kChannels; ++e) sums.add(tile.x[e], tile.w[e]);
    }
  }
  sums.store(s);
}

inline void run_registers(const Exec& exec, const Conv& s) {
  launch(exec, registers, Sums<4>::grid(s), dim3(kTileThreads), sizeof(Registers), s);
}

}  // namespace convgrad::cuda::lab
