// A convolution's weight gradient as a matrix product: dw (k, taps * c) = dy' (k, pixels) times the
// windows of x (pixels, taps * c), which are never laid out in memory. The sum over the pixels of
// all images is cut into slices, whose results are added in order.
//
// Both operands lie with their rows (output channels, resp. input channels) contiguous. A thread
// copies the same four columns (one tap, four channels) of every eighth pixel or so, and counts the
// pixels up without dividing. Of 16-bit arrays whose channels are padded (mma_tile.cuh), the
// columns of the product are too; those of dw are not.
#pragma once
#include "cuda/kernels/mma_tile.cuh"

namespace convgrad::cuda {
namespace {

template <class T, class TileT, Math kMathT, int kChunk>
struct WeightGemm {
  using Element = T;
  using Tile = TileT;
  static constexpr Math kMath = kMathT;
  static constexpr Major kMajorA = Major::kRows, kMajorB = Major::kRows;
  using Map = CopyMap<T, Major::kRows, Tile::kN, Tile::kThreads, kChunk>;

  // Chunks of dy: it is padded to whole ones where x has fewer channels than a chunk.
  static constexpr int kChunkA = sizeof(T) == 2 ? kWhole<T> : kChunk;

  const T *dy, *x;
  T* dw;                       // (groups, rows, taps, own channels); of float32, all slices' too
  float* partial;              // 16 bits: (slices, groups, ...), where K is cut into slices
  int groups, rows, columns;   // of a group: k, taps * channels
  int channels, own_channels;  // c of a group: padded, and of dw
  int taps, dy_rows;           // dy_rows: k of a group in dy, padded
  int images, pixels;          // pixels: of all images
  int dy_pitch, x_pitch;       // elements of a pixel
  int tiles_n, slices, tiles_per_slice;
  int in[3], out[3], ker[3], stride[3], dil[3], pad[3];
  int step[4];  // Map::kStep pixels as (image, d, h, w)

  struct Table {
    Block block;
  };
  struct Loader;
  struct Work;
};

template <class T, class TileT, Math kMathT, int kChunk>
struct WeightGemm<T, TileT, kMathT, kChunk>::Loader {
  const WeightGemm& p;
  const T* x;  // at the thread's channel
  bool any;    // whether its column is one
  int tap[3];  // what its tap adds to a window's first pixel
  int at[4];   // the output pixel it copies next: image, d, h, w

  __device__ Loader(const WeightGemm& p, int group, int column, int tile) : p(p) {
    const int j = column + int(Map::line()), t = j / p.channels;
    any = j < p.columns;
    x = p.x + int64_t{group} * p.channels + j % p.channels;
    tap[0] = t / p.ker[2] / p.ker[1] * p.dil[0] - p.pad[0];
    tap[1] = t / p.ker[2] % p.ker[1] * p.dil[1] - p.pad[1];
    tap[2] = t % p.ker[2] * p.dil[2] - p.pad[2];
    int pixel = tile * kTileK<T> + int(Map::first());
    for (int i = 2; i >= 0; --i) {
      at[i + 1] = pixel % p.out[i];
      pixel /= p.out[i];
    }
    at[0] = pixel;
  }

  __device__ void load(Slice<T, Major::kRows, Tile::kN>& s) {
#pragma unroll 4
    for (int i = 0; i < Map::kCount; ++i) {
      const int d = at[1] * p.stride[0] + tap[0], h = at[2] * p.stride[1] + tap[1];
      const int w = at[3] * p.stride[2] + tap[2];
      const bool inside = any & (at[0] < p.images) & (unsigned(d) < unsigned(p.in[0])) &
                          (unsigned(h) < unsigned(p.in[1])) & (unsigned(w) < unsigned(p.in[2]));
      const int pixel = ((at[0] * p.in[0] + d) * p.in[1] + h) * p.in[2] + w;
      copy_async<kChunk* int(sizeof(T))>(Map::target(s, i), x + int64_t{pixel} * p.x_pitch, inside);
      advance();
    }
  }

  __device__ void advance() {
    int carry = 0;
#pragma unroll
    for (int i = 3; i > 0; --i) {
      at[i] += p.step[i] + carry;
      carry = at[i] >= p.out[i - 1];
      if (carry) at[i] -= p.out[i - 1];
    }
    at[0] += p.step[0] + carry;
  }
};

template <class T, class TileT, Math kMathT, int kChunk>
struct WeightGemm<T, TileT, kMathT, kChunk>::Work {
  const WeightGemm& p;
  Table& table;

  __device__ Work(const WeightGemm& p, Table& table) : p(p), table(table) {
    const int tiles = (p.pixels + kTileK<T> - 1) / kTileK<T>,
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
    return DenseLoader<T, Major::kRows, Tile::kM, Tile::kThreads, kChunkA>(
        p.dy + int64_t{b.group} * p.dy_rows, p.dy_pitch, b.row, p.rows,
        int64_t{b.first_tile} * kTileK<T>, p.pixels);
  }
  __device__ Loader loader_b() const {
    return Loader(p, table.block.group, table.block.column, table.block.first_tile);
  }

  __device__ bool holds(int i, int j) const {
    return table.block.row + i < p.rows && table.block.column + j < p.columns;
  }

  __device__ void store(int i, int j, const Pack<float, 4>& v) const {
    const Block& b = table.block;
    const int64_t line = (int64_t{b.slice} * p.groups + b.group) * p.rows + b.row + i;
    const int column = b.column + j;
    if constexpr (sizeof(T) == sizeof(float))
      store_first(v, p.columns - column, p.dw + line * p.columns + column);
    else if (p.partial)
      store_own(line, column, v, p.partial);
    else
      store_own(line, column, v, p.dw);
  }
  // Without the padding: the four columns are of one tap, as padded channels are a multiple of 4.
  template <class To>
  __device__ void store_own(int64_t line, int column, const Pack<float, 4>& v, To* to) const {
    const int tap = column / p.channels, channel = column % p.channels;
    const int count = p.own_channels - channel;
    if (tap < p.taps && count > 0)
      store_first(v, count, to + (line * p.taps + tap) * p.own_channels + channel);
  }

  __device__ float plain(int i, int j) const {
    const Block& b = table.block;
    const int t = (b.column + j) / p.channels,
              channel = b.group * p.channels + (b.column + j) % p.channels;
    const int tap[3] = {t / p.ker[2] / p.ker[1], t / p.ker[2] % p.ker[1], t % p.ker[2]};
    const int last = b.end_tile * kTileK<T> < p.pixels ? b.end_tile * kTileK<T> : p.pixels;
    float sum = 0;
    for (int pixel = b.first_tile * kTileK<T>; pixel < last && sum == sum; ++pixel) {
      const int o[3] = {pixel / p.out[2] / p.out[1] % p.out[0], pixel / p.out[2] % p.out[1],
                        pixel % p.out[2]};
      int64_t from = pixel / p.out[2] / p.out[1] / p.out[0];
      bool inside = true;
      for (int axis = 0; axis < 3; ++axis) {
        const int at = o[axis] * p.stride[axis] + tap[axis] * p.dil[axis] - p.pad[axis];
        inside = inside && unsigned(at) < unsigned(p.in[axis]);
        from = from * p.in[axis] + at;
      }
      const float g = p.dy[int64_t{pixel} * p.dy_pitch + b.group * p.rows + b.row + i];
      if (inside) sum += g * p.x[from * p.x_pitch + channel];
    }
    return sum;
  }
};

}  // namespace
}  // namespace convgrad::cuda
