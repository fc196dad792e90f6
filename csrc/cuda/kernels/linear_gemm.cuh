// c (m, n) = epilogue(op(a) op(b)), batched: mma_tile.cuh's product of two matrices that lie in
// memory, each with its K axis or its rows contiguous.
#pragma once
#include "cuda/kernels/mma_tile.cuh"

namespace convgrad::cuda {
namespace {

template <class TileT, Math kMathT, Major kMajorAT, Major kMajorBT, int kChunk>
struct DenseGemm {
  using Tile = TileT;
  static constexpr Math kMath = kMathT;
  static constexpr Major kMajorA = kMajorAT, kMajorB = kMajorBT;

  const float *a, *b;
  float* c;
  Epilogue<float> epilogue;
  float* partial;  // (slices, batch, m, n), where K is cut into slices; else null
  int m, n, k, batch;
  int64_t stride_a, stride_b;
  int tiles_n, slices, tiles_per_slice;

  struct Table {};

  struct Work {
    const DenseGemm& p;
    int item, slice, row, column;  // of the batch; row, column: the tile's first
    int first_k, end_k;

    __device__ Work(const DenseGemm& p, Table&)
        : p(p),
          item(int(blockIdx.z)),
          slice(int(blockIdx.y)),
          row(int(blockIdx.x) / p.tiles_n * Tile::kM),
          column(int(blockIdx.x) % p.tiles_n * Tile::kN) {
      first_k = slice * p.tiles_per_slice * kTileK;
      end_k = first_k + p.tiles_per_slice * kTileK;
      end_k = end_k < p.k ? end_k : p.k;
    }

    __device__ bool any() const { return true; }
    __device__ int tiles() const { return (end_k - first_k + kTileK - 1) / kTileK; }
    __device__ const float* anywhere() const { return p.a; }
    __device__ auto loader_a() const {
      return DenseLoader<kMajorA, Tile::kM, Tile::kThreads, kChunk>(
          p.a + item * p.stride_a, kMajorA == Major::kK ? p.k : p.m, row, p.m, first_k, end_k);
    }
    __device__ auto loader_b() const {
      return DenseLoader<kMajorB, Tile::kN, Tile::kThreads, kChunk>(
          p.b + item * p.stride_b, kMajorB == Major::kK ? p.k : p.n, column, p.n, first_k, end_k);
    }

    __device__ bool holds(int i, int j) const { return row + i < p.m && column + j < p.n; }

    __device__ void store(int i, int j, Pack<float, 4> v) const {
      const int first = column + j, count = p.n - first;
      const int64_t line = (p.partial ? int64_t{slice} * p.batch + item : item) * p.m + row + i;
      const int64_t at = line * p.n + first;
      if (p.partial) return store_first(v, count, p.partial + at);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (e < count) v[e] = finish(p.epilogue, v[e], first + e, at + e);
      store_first(v, count, p.c + at);
    }

    __device__ float plain(int i, int j) const {
      const int64_t at_row = row + i, at_column = column + j;
      const float* a = p.a + item * p.stride_a;
      const float* b = p.b + item * p.stride_b;
      float sum = 0;
      for (int64_t k = first_k; k < end_k && sum == sum; ++k)
        sum += a[kMajorA == Major::kK ? at_row * p.k + k : k * p.m + at_row] *
               b[kMajorB == Major::kK ? at_column * p.k + k : k * p.n + at_column];
      return sum;
    }
  };
};

}  // namespace
}  // namespace convgrad::cuda
