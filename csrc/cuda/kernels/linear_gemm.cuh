// c (m, n) = epilogue(op(a) op(b)), batched: mma_tile.cuh's product of two matrices that lie in
// memory, each with its K axis or its rows contiguous.
#pragma once
#include "cuda/kernels/mma_tile.cuh"

namespace convgrad::cuda {
namespace {

template <class T, class TileT, Math kMathT, Major kMajorAT, Major kMajorBT, int kChunk>
struct DenseGemm {
  using Element = T;
  using Tile = TileT;
  static constexpr Math kMath = kMathT;
  static constexpr Major kMajorA = kMajorAT, kMajorB = kMajorBT;

  const T *a, *b;
  T* c;
  Epilogue<T> epilogue;
  float* partial;  // (slices, batch, m, n), where K is cut into slices; else null
  int m, n, k, batch;
  int pitch_a, pitch_b;  // elements from line to line, padded
  int64_t stride_a, stride_b;
  int tiles_n, slices, tiles_per_slice;

  struct Table {
    Block block;  // group: of the batch
  };

  struct Work {
    const DenseGemm& p;
    Table& table;

    __device__ Work(const DenseGemm& p, Table& table) : p(p), table(table) {
      const int tiles = (p.k + kTileK<T> - 1) / kTileK<T>,
                first = int(blockIdx.y) * p.tiles_per_slice;
      if (threadIdx.x == 0)
        table.block = {0,
                       int(blockIdx.z),
                       int(blockIdx.y),
                       int(blockIdx.x) / p.tiles_n * Tile::kM,
                       int(blockIdx.x) % p.tiles_n * Tile::kN,
                       first,
                       first + p.tiles_per_slice < tiles ? first + p.tiles_per_slice : tiles};
      __syncthreads();
    }

    __device__ bool any() const { return true; }
    __device__ int tiles() const { return table.block.end_tile - table.block.first_tile; }
    __device__ auto loader_a() const {
      const Block& b = table.block;
      return DenseLoader<T, kMajorA, Tile::kM, Tile::kThreads, kChunk>(
          p.a + b.group * p.stride_a, p.pitch_a, b.row, p.m, int64_t{b.first_tile} * kTileK<T>,
          p.k);
    }
    __device__ auto loader_b() const {
      const Block& b = table.block;
      return DenseLoader<T, kMajorB, Tile::kN, Tile::kThreads, kChunk>(
          p.b + b.group * p.stride_b, p.pitch_b, b.column, p.n, int64_t{b.first_tile} * kTileK<T>,
          p.k);
    }

    __device__ bool holds(int i, int j) const {
      return table.block.row + i < p.m && table.block.column + j < p.n;
    }

    __device__ void store(int i, int j, Pack<float, 4> v) const {
      const Block& b = table.block;
      const int first = b.column + j, count = p.n - first;
      const int64_t item = p.partial ? int64_t{b.slice} * p.batch + b.group : b.group;
      const int64_t at = (item * p.m + b.row + i) * p.n + first;
      if (p.partial) return store_first(v, count, p.partial + at);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (e < count) v[e] = finish(p.epilogue, v[e], first + e, at + e);
      store_first(v, count, p.c + at);
    }

    __device__ float plain(int i, int j) const {
      const Block& at = table.block;
      const int64_t row = at.row + i, column = at.column + j;
      const float* a = p.a + at.group * p.stride_a;
      const float* b = p.b + at.group * p.stride_b;
      const int last = at.end_tile * kTileK<T> < p.k ? at.end_tile * kTileK<T> : p.k;
      float sum = 0;
      for (int64_t k = at.first_tile * kTileK<T>; k < last && sum == sum; ++k)
        sum += a[kMajorA == Major::kK ? row * p.pitch_a + k : k * p.pitch_a + row] *
               b[kMajorB == Major::kK ? column * p.pitch_b + k : k * p.pitch_b + column];
      return sum;
    }
  };
};

}  // namespace
}  // namespace convgrad::cuda
