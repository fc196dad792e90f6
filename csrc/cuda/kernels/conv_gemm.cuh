// Convolution as a matrix product that is never laid out in memory ("implicit GEMM"). Of a pass
// (conv_pass.h): rows are output positions of all images, columns output channels, and K runs over
// taps and input channels, channels innermost. Forward is one pass; backward_input is one per phase
// of the stride, all in one launch, with the weights flipped and transposed into the workspace
// first.
//
// A block keeps, in shared memory, where each of its rows begins in src; a thread, which tap and
// channel it copies next. So the main loop has no division, and padding is the zero fill of the
// copy.
#pragma once
#include "conv_pass.h"
#include "cuda/kernels/mma_tile.cuh"

namespace convgrad::cuda {
namespace {

constexpr int64_t kMostPasses = 8;  // of a launch: strides of 2 in 3-D
constexpr int kMostTaps = 384;      // 7 x 7 x 7 are 343
constexpr int kLargeTaps = 27;      // what large tiles leave room for: 3 x 3 x 3
constexpr int kOutside = INT32_MIN / 2;

// A pass in 32 bits.
template <class T>
struct GemmPass {
  struct Along {
    int src, dst, count, dst_first, dst_step, src_first, src_step, taps, tap_step;
  } axis[3];
  int taps;
  int rows, k, tiles;  // of the product; k-tiles
  const T* w;          // (groups, dst_c, k)

  __device__ bool holds(int d, int h, int w) const {
    return (unsigned(d) < unsigned(axis[0].src)) & (unsigned(h) < unsigned(axis[1].src)) &
           (unsigned(w) < unsigned(axis[2].src));
  }
};

template <class T, class TileT, Math kMathT, int kChunk>
struct ConvGemm {
  using Element = T;
  using Tile = TileT;
  static constexpr Math kMath = kMathT;
  static constexpr Major kMajorA = Major::kK, kMajorB = Major::kK;

  const T* src;
  T* dst;
  Epilogue<T> epilogue;
  float* partial;  // (slices, rows, columns), where K is cut into slices; else null
  int groups, src_c, dst_c, bias_c;  // src_c: padded
  int tap_step, channel_step;        // kTileK<T> as taps and channels
  int src_pitch, dst_pitch;          // elements of a pixel
  int tiles_n, slices, tiles_per_slice;
  GemmPass<T> pass[kMostPasses];

  struct alignas(16) Place {
    int d, h, w;  // of a row's window, kOutside for a row that is none; of a tap, from there
    int pixel;    // the same in pixels of src, as if they went on beyond the edges
  };
  static constexpr int kTaps = Tile::kLarge ? kLargeTaps : kMostTaps;
  struct Table {
    Place origin[Tile::kM], tap[kTaps];
    int target[Tile::kM];  // the row's pixel in dst, -1 for none
    Block block;
  };

  struct Loader;
  struct Work;
};

template <class T, class TileT, Math kMathT, int kChunk>
struct ConvGemm<T, TileT, kMathT, kChunk>::Loader {
  using Map = CopyMap<T, Major::kK, Tile::kM, Tile::kThreads, kChunk>;
  const ConvGemm& p;
  const Table& table;
  int tap, channel;  // of the thread's next chunk

  __device__ Loader(const ConvGemm& p, const Table& table) : p(p), table(table) {
    const int k = table.block.first_tile * kTileK<T> + int(Map::line());
    tap = k / p.src_c;
    channel = k % p.src_c;
  }

  __device__ void load(Slice<T, Major::kK, Tile::kM>& s) {
    // Read anew, because registers are scarcer than time.
    const GemmPass<T>& pass = p.pass[table.block.pass];
    const T* src = p.src + int64_t{table.block.group} * p.src_c;
    const bool any = tap < pass.taps;
    const Place t = table.tap[any ? tap : 0];
#pragma unroll 2
    for (int i = 0; i < Map::kCount; ++i) {
      const Place o = table.origin[Map::first() + i * Map::kStep];
      const bool inside = any & pass.holds(o.d + t.d, o.h + t.h, o.w + t.w);
      const T* from = src + int64_t{o.pixel + t.pixel} * p.src_pitch;
      copy_async<kChunk* int(sizeof(T))>(Map::target(s, i), from + channel, inside);
    }
    // k += kTileK<T>, without dividing
    tap += p.tap_step;
    channel += p.channel_step;
    if (channel >= p.src_c) {
      channel -= p.src_c;
      ++tap;
    }
  }
};

template <class T, class TileT, Math kMathT, int kChunk>
struct ConvGemm<T, TileT, kMathT, kChunk>::Work {
  const ConvGemm& p;
  Table& table;

  __device__ Work(const ConvGemm& p, Table& table) : p(p), table(table) {
    const int part = int(blockIdx.z) / p.slices, slice = int(blockIdx.z) % p.slices;
    const int tile_m = int(blockIdx.x) / p.tiles_n, tile_n = int(blockIdx.x) % p.tiles_n;
    const int first = slice * p.tiles_per_slice, end = first + p.tiles_per_slice;
    const GemmPass<T>& pass = p.pass[part / p.groups];
    if (threadIdx.x == 0)
      table.block = {part / p.groups,
                     part % p.groups,
                     slice,
                     tile_m * Tile::kM,
                     tile_n * Tile::kN,
                     first,
                     end < pass.tiles ? end : pass.tiles};
    for (int i = int(threadIdx.x); i < Tile::kM; i += Tile::kThreads)
      locate_row(pass, tile_m * Tile::kM + i, i);
    for (int i = int(threadIdx.x); i < pass.taps; i += Tile::kThreads) locate_tap(pass, i);
    __syncthreads();
  }

  // Row m of the product is row i of the tile.
  __device__ void locate_row(const GemmPass<T>& pass, int m, int i) {
    const auto &d = pass.axis[0], &h = pass.axis[1], &w = pass.axis[2];
    const int pw = m % w.count, ph = m / w.count % h.count;
    const int pd = m / w.count / h.count % d.count, n = m / w.count / h.count / d.count;
    Place o = {d.src_first + pd * d.src_step, h.src_first + ph * h.src_step,
               w.src_first + pw * w.src_step, 0};
    o.pixel = ((n * d.src + o.d) * h.src + o.h) * w.src + o.w;
    int target = n * d.dst + d.dst_first + pd * d.dst_step;
    target = target * h.dst + h.dst_first + ph * h.dst_step;
    target = target * w.dst + w.dst_first + pw * w.dst_step;
    const bool none = m >= pass.rows;
    table.origin[i] = none ? Place{kOutside, 0, 0, 0} : o;
    table.target[i] = none ? -1 : target;
  }

  __device__ void locate_tap(const GemmPass<T>& pass, int i) {
    const auto &d = pass.axis[0], &h = pass.axis[1], &w = pass.axis[2];
    Place t = {i / w.taps / h.taps * d.tap_step, i / w.taps % h.taps * h.tap_step,
               i % w.taps * w.tap_step, 0};
    t.pixel = (t.d * h.src + t.h) * w.src + t.w;
    table.tap[i] = t;
  }

  __device__ const GemmPass<T>& pass() const { return p.pass[table.block.pass]; }

  __device__ bool any() const { return table.block.row < pass().rows; }
  __device__ int tiles() const { return table.block.end_tile - table.block.first_tile; }
  __device__ Loader loader_a() const { return Loader(p, table); }
  __device__ auto loader_b() const {
    const Block& b = table.block;
    return DenseLoader<T, Major::kK, Tile::kN, Tile::kThreads, kChunk>(
        pass().w + int64_t{b.group} * p.dst_c * pass().k, pass().k, b.column, p.dst_c,
        int64_t{b.first_tile} * kTileK<T>, pass().k);
  }

  __device__ bool holds(int i, int j) const {
    return table.target[i] >= 0 && table.block.column + j < p.dst_c;
  }

  __device__ void store(int i, int j, Pack<float, 4> v) const {
    const Block& b = table.block;
    const int first = b.column + j;
    if (p.partial) {
      const int64_t at = (int64_t{b.slice} * pass().rows + b.row + i) * p.dst_c + first;
      return store_first(v, p.dst_c - first, p.partial + at);
    }
    const int64_t at = int64_t{table.target[i]} * p.dst_pitch + int64_t{b.group} * p.dst_c + first;
    for (int e = 0; e < 4 && first + e < p.dst_c; ++e)
      v[e] = finish(p.epilogue, v[e], b.group * p.bias_c + (first + e) % p.bias_c, at + e);
    store_first(v, p.dst_c - first, p.dst + at);
  }

  __device__ float plain(int i, int j) const {
    const Block& b = table.block;
    const GemmPass<T>& pass = this->pass();
    const Place o = table.origin[i];
    const float* w = pass.w + (int64_t{b.group} * p.dst_c + b.column + j) * pass.k;
    const int last = b.end_tile * kTileK<T> < pass.k ? b.end_tile * kTileK<T> : pass.k;
    float sum = 0;
    for (int k = b.first_tile * kTileK<T>; k < last && sum == sum; ++k) {
      const Place t = table.tap[k / p.src_c];
      const int64_t pixel = o.pixel + t.pixel;
      const bool inside = pass.holds(o.d + t.d, o.h + t.h, o.w + t.w);
      const int channel = b.group * p.src_c + k % p.src_c;
      sum += (inside ? p.src[pixel * p.src_pitch + channel] : 0.0f) * w[k];
    }
    return sum;
  }
};

}  // namespace
}  // namespace convgrad::cuda
