// Version 6: the same product with copies that nobody waits for.
//
// cp.async brings 16 bytes from global to shared memory without a register in between; zeros where
// the source is outside. Three stages: while the threads multiply slice t, slices t + 1 and t + 2
// are on their way. One barrier per slice: behind it slice t is there for all, and nobody reads
// slice t - 1 any more, whose stage is filled next. A thread may have to copy four channels of one
// pixel at once, so x lies in shared memory pixel by pixel, and a thread reads four terms of a
// pixel.
//
// Version 7 is the library's own, csrc/cuda/kernels/mma_tile.cuh: this pipeline, with the products
// by tensor cores.
#pragma once
#include "cuda/ptx.cuh"
#include "sums.cuh"

namespace convgrad::cuda::lab {

struct Pipeline {
  static constexpr int kSlice = 16, kStages = 3, kTile = Sums<8>::kTile;
  struct Stage {
    alignas(16) float x[kTile][kSlice + 4];  // the pitch puts the rows of a warp in different banks
    float w[kSlice][kTile];
  };
  Stage stage[kStages];
};

// What one thread copies of a slice: four terms of two pixels' windows, four weights of two terms.
struct Copies {
  static constexpr int kTile = Pipeline::kTile;
  const Conv& s;
  Pixel upper, lower;  // 64 apart
  Term term;
  int line, channel;  // of the weights

  __device__ explicit Copies(const Conv& s)
      : s(s),
        upper(s, int(blockIdx.x) * kTile + int(threadIdx.x) / 4),
        lower(s, int(blockIdx.x) * kTile + int(threadIdx.x) / 4 + 64),
        term(s, int(threadIdx.x) % 4 * 4),
        line(int(threadIdx.x) / 32),
        channel(int(blockIdx.y) * kTile + int(threadIdx.x) % 32 * 4) {}

  // Begins to copy the next slice.
  __device__ void begin(Pipeline::Stage& to) {
    const int row = int(threadIdx.x) / 4, column = int(threadIdx.x) % 4 * 4;
    copy(&to.x[row][column], term.of(s, upper));
    copy(&to.x[row + 64][column], term.of(s, lower));
    copy(&to.w[threadIdx.x / 32][threadIdx.x % 32 * 4], weights(line));
    copy(&to.w[threadIdx.x / 32 + 8][threadIdx.x % 32 * 4], weights(line + 8));
    term.advance(s, Pipeline::kSlice);
    line += Pipeline::kSlice;
  }
  __device__ const float* weights(int at) const {
    return at < s.terms() && channel < s.k ? s.weight + int64_t{at} * s.k + channel : nullptr;
  }
  __device__ void copy(float* to, const float* from) const {
    copy_async<16>(to, from ? from : s.x, from != nullptr);
  }
};

__device__ inline void multiply(Sums<8>& sums, const Pipeline::Stage& stage) {
#pragma unroll 1
  for (int k = 0; k < Pipeline::kSlice; k += 4) {
    Pack<float, 4> x[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = load_pack<4>(&stage.x[sums.row(i)][k]);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const Pack<float, 4> w[2] = {load_pack<4>(&stage.w[k + e][sums.column(0)]),
                                   load_pack<4>(&stage.w[k + e][sums.column(4)])};
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) sums.v[i][j] += x[i][e] * w[j / 4][j % 4];
    }
  }
}

__global__ void __launch_bounds__(kTileThreads) pipeline(Conv s) {
  constexpr int kStages = Pipeline::kStages;
  auto& stage = shared<Pipeline>().stage;
  const int slices = (s.terms() + Pipeline::kSlice - 1) / Pipeline::kSlice;
  Copies copies(s);
  Sums<8> sums;
  for (int t = 0; t < kStages - 1; ++t) {
    if (t < slices) copies.begin(stage[t]);
    copy_async_commit();  // a group per slice, empty or not, so that they can be counted
  }
  for (int t = 0; t < slices; ++t) {
    copy_async_wait<kStages - 2>();
    __syncthreads();
    const int next = t + kStages - 1;
    if (next < slices) copies.begin(stage[next % kStages]);
    copy_async_commit();
    multiply(sums, stage[t % kStages]);
  }
  sums.store(s);
}

inline void run_pipeline(const Exec& exec, const Conv& s) {
  launch(exec, pipeline, Sums<8>::grid(s), dim3(kTileThreads), sizeof(Pipeline), s);
}

}  // namespace convgrad::cuda::lab
