// Moving data: strided copies (layout conversion, cat, narrow), constant padding, rows
// by index and their adjoint.
#include <bit>

#include "cuda/kernels/move_index.cuh"
#include "cuda/packs.cuh"
#include "strided.h"

namespace convgrad::cuda {
namespace {

// ---- strided copy ----

// The axes of a copy, in units of its elements, which may be packs. Item i of them lies, in C order
// of the axes, at src and dst.
struct Axes {
  int rank;
  int64_t count;  // of all items
  int64_t src_stride[kMaxRank], dst_stride[kMaxRank];
  Divider by_size[kMaxRank];

  explicit Axes(const StridedShape& s) : rank(s.rank), count(1) {
    for (int i = 0; i < rank; ++i) {
      count *= s.size[i];
      src_stride[i] = s.src_stride[i];
      dst_stride[i] = s.dst_stride[i];
      by_size[i] = Divider(std::max<int64_t>(s.size[i], 1));
    }
  }
  __device__ void find(int64_t i, int64_t& src, int64_t& dst) const {
    src = dst = 0;
    for (int axis = rank - 1; axis >= 0; --axis) {
      const int64_t at = by_size[axis].split(i);
      src += at * src_stride[axis];
      dst += at * dst_stride[axis];
    }
  }
};

template <class E>
void copy_items(const Exec& exec, const Axes& axes, const E* src, E* dst) {
  for_each(exec, axes.count, [=] __device__(int64_t i) {
    int64_t from, to;
    axes.find(i, from, to);
    dst[to] = src[from];
  });
}

// A plane whose rows are neighbours in src and whose columns are neighbours in dst goes through
// shared memory by square tiles, so that both sides are read and written in runs.
constexpr int kTile = 32;
template <class T>
struct TransposeTile {
  T at[kTile][kTile + 1];  // one more, for different banks
};
struct Plane {
  int64_t rows, cols, src_col, dst_row;
  int64_t col_tiles, tiles;  // tiles: of all planes
  Divider by_col_tiles, by_row_tiles;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    transpose(Plane p, Axes planes, const T* __restrict__ src, T* __restrict__ dst) {
  auto& tile = shared<TransposeTile<T>>().at;
  const int x = int(threadIdx.x) % kTile, y = int(threadIdx.x) / kTile;
  constexpr int kStep = kThreads / kTile;
  for (int64_t item = blockIdx.x; item < p.tiles; item += gridDim.x) {
    int64_t plane = item, from, to;
    const int64_t c0 = p.by_col_tiles.split(plane) * kTile;
    const int64_t r0 = p.by_row_tiles.split(plane) * kTile;
    planes.find(plane, from, to);
    __syncthreads();  // the tile may still be read
    for (int c = y; c < kTile; c += kStep)
      if (r0 + x < p.rows && c0 + c < p.cols)
        tile[c][x] = src[from + r0 + x + (c0 + c) * p.src_col];
    __syncthreads();
    for (int r = y; r < kTile; r += kStep)
      if (r0 + r < p.rows && c0 + x < p.cols) dst[to + (r0 + r) * p.dst_row + c0 + x] = tile[x][r];
  }
}

// The axis of s whose neighbours are neighbours in src, if that makes planes worth transposing, or
// -1. The last axis is that of dst.
int transposed_axis(const StridedShape& s) {
  constexpr int64_t kWorth = kTile / 2;
  const int last = s.rank - 1;
  if (s.rank < 2 || s.dst_stride[last] != 1 || s.size[last] < kWorth) return -1;
  for (int i = 0; i < last; ++i)
    if (s.src_stride[i] == 1 && s.size[i] >= kWorth) return i;
  return -1;
}

template <class T>
void copy_transposed(const Exec& exec, StridedShape s, int axis, const T* src, T* dst) {
  const int last = --s.rank;
  Plane p{};
  p.cols = s.size[last];
  p.src_col = s.src_stride[last];
  for (int i = axis; i + 1 < last; ++i) swap_axes(s, i, i + 1);
  --s.rank;
  p.rows = s.size[s.rank];
  p.dst_row = s.dst_stride[s.rank];
  const Axes planes(s);
  const int64_t row_tiles = ceil_div(p.rows, kTile);
  p.col_tiles = ceil_div(p.cols, kTile);
  p.tiles = planes.count * row_tiles * p.col_tiles;
  p.by_col_tiles = Divider(p.col_tiles);
  p.by_row_tiles = Divider(row_tiles);
  launch(exec, transpose<T>, dim3(unsigned(std::min(p.tiles, kMaxBlocks))), dim3(kThreads),
         sizeof(TransposeTile<T>), p, planes, src, dst);
}

// Whether the copy is one of whole packs, and then the copy of packs.
template <class T>
bool into_packs(StridedShape& s, const T* src, T* dst) {
  constexpr int W = kPack<T>;
  const int last = s.rank - 1;
  if (s.rank == 0 || s.src_stride[last] != 1 || s.dst_stride[last] != 1) return false;
  bool whole = are_packs<T>(s.size[last], src, dst);
  for (int i = 0; i < last; ++i)
    whole = whole && s.src_stride[i] % W == 0 && s.dst_stride[i] % W == 0;
  if (!whole) return false;
  s.size[last] /= W;
  for (int i = 0; i < last; ++i) {
    s.src_stride[i] /= W;
    s.dst_stride[i] /= W;
  }
  return true;
}

template <class T>
const Pack<T, kPack<T>>* packs_at(const T* p) {
  return reinterpret_cast<const Pack<T, kPack<T>>*>(p);
}
template <class T>
Pack<T, kPack<T>>* packs_at(T* p) {
  return reinterpret_cast<Pack<T, kPack<T>>*>(p);
}

template <class T>
void copy_words(const Exec& exec, const StridedShape& given, const T* src, T* dst) {
  StridedShape s = simplified(given);
  const int axis = transposed_axis(s);
  if (axis >= 0) return copy_transposed(exec, s, axis, src, dst);
  if (into_packs(s, src, dst)) return copy_items(exec, Axes(s), packs_at(src), packs_at(dst));
  copy_items(exec, Axes(s), src, dst);
}
template <class T>
void copy(const Exec& exec, const StridedShape& s, const T* src, T* dst) {
  copy_words(exec, s, words(src), words(dst));
}

// ---- conversion ----

template <class From, class To>
void convert(const Exec& exec, int64_t n, const From* x, To* y) {
  for_each(exec, n, [=] __device__(int64_t i) { y[i] = To(x[i]); });
}

// ---- matrices side by side ----

// Some of the parts, which go to the kernel with its parameters: one row of blocks each.
constexpr int kParts = 64;
template <class E>
struct Parts {
  struct Part {
    E* data;
    int64_t cols, first;  // its columns, and where they begin in the wide matrix
    Divider by_cols;
  } part[kParts];
};

// wide = the parts (kJoin), which are only read, or the parts = wide.
template <bool kJoin, class E>
__global__ void __launch_bounds__(kThreads)
    move_columns(Parts<E> parts, int64_t rows, int64_t pitch, E* wide) {
  const auto& part = parts.part[blockIdx.y];
  for (int64_t i = thread_index(); i < rows * part.cols; i += thread_count()) {
    int64_t row = i;
    const int64_t col = part.by_cols.split(row);
    E& at = wide[row * pitch + part.first + col];
    if constexpr (kJoin)
      at = part.data[i];
    else
      part.data[i] = at;
  }
}

// The same for matrices of `width` elements per E.
template <bool kJoin, class E, class T>
void move_columns_as(const Exec& exec, int64_t rows, int64_t count, const int64_t* cols,
                     T* const* data, int64_t pitch, T* wide) {
  constexpr int64_t kWidth = sizeof(E) / sizeof(T);
  int64_t first = 0;
  for (int64_t done = 0; done < count; done += kParts) {
    const int64_t n = std::min<int64_t>(count - done, kParts);
    Parts<E> parts{};
    int64_t widest = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t c = cols[done + i] / kWidth;
      parts.part[i] = {reinterpret_cast<E*>(data[done + i]), c, first,
                       Divider(std::max<int64_t>(c, 1))};
      first += c;
      widest = std::max(widest, c);
    }
    launch(exec, move_columns<kJoin, E>, dim3(grid_for(rows * widest, kThreads).x, unsigned(n)),
           dim3(kThreads), 0, parts, rows, pitch / kWidth, reinterpret_cast<E*>(wide));
  }
}

template <bool kJoin, class T>
void move_columns_any(const Exec& exec, int64_t rows, int64_t count, const int64_t* cols,
                      T* const* data, T* wide) {
  int64_t pitch = 0;
  bool packs = are_packs<T>(0, wide);
  for (int64_t i = 0; i < count; ++i) {
    pitch += cols[i];
    packs = packs && are_packs<T>(cols[i], data[i]);
  }
  if (packs)
    move_columns_as<kJoin, Pack<T, kPack<T>>>(exec, rows, count, cols, data, pitch, wide);
  else
    move_columns_as<kJoin, T>(exec, rows, count, cols, data, pitch, wide);
}

template <class T>
void join_columns(const Exec& exec, int64_t rows, int64_t count, const int64_t* cols,
                  const T* const* parts, T* wide) {
  using W = Word<T>;
  move_columns_any<true, W>(exec, rows, count, cols,
                            reinterpret_cast<W* const*>(const_cast<T* const*>(parts)), words(wide));
}
template <class T>
void split_columns(const Exec& exec, int64_t rows, int64_t count, const int64_t* cols,
                   const T* wide, T* const* parts) {
  using W = Word<T>;
  move_columns_any<false, W>(exec, rows, count, cols, reinterpret_cast<W* const*>(parts),
                             words(const_cast<T*>(wide)));
}

// ---- constant padding ----

// Lengths along the last axis are in units of the elements, which may be packs.
struct PadAxes {
  int rank;
  int64_t count;  // of y
  int64_t in[kMaxRank], low[kMaxRank];
  Divider by_out[kMaxRank];

  PadAxes(const PadShape& s, int width) : rank(s.rank), count(1) {
    for (int i = 0; i < rank; ++i) {
      const int unit = i == rank - 1 ? width : 1;
      in[i] = s.in[i] / unit;
      low[i] = s.low[i] / unit;
      count *= s.out[i] / unit;
      by_out[i] = Divider(std::max<int64_t>(s.out[i] / unit, 1));
    }
  }
  // Where item i of y lies in x; -1 outside.
  __device__ int64_t find(int64_t i) const {
    int64_t at = 0, pitch = 1;
    bool inside = true;
    for (int axis = rank - 1; axis >= 0; --axis) {
      const int64_t from = by_out[axis].split(i) - low[axis];
      inside = inside && from >= 0 && from < in[axis];
      at += from * pitch;
      pitch *= in[axis];
    }
    return inside ? at : -1;
  }
};

template <int W, class T>
void pad_packs(const Exec& exec, const PadShape& s, const T* x, T value, T* y) {
  const PadAxes axes(s, W);
  for_each(exec, axes.count, [=] __device__(int64_t i) {
    const int64_t from = axes.find(i);
    Pack<T, W> v;
#pragma unroll
    for (int j = 0; j < W; ++j) v[j] = value;
    if (from >= 0) v = load_pack<W>(x + from * W);
    store_pack(y + i * W, v);
  });
}
template <class T>
void pad_words(const Exec& exec, const PadShape& s, const T* x, T value, T* y) {
  const int last = s.rank - 1;
  const bool packs =
      are_packs<T>(s.out[last], x, y) && s.in[last] % kPack<T> == 0 && s.low[last] % kPack<T> == 0;
  if (packs) return pad_packs<kPack<T>>(exec, s, x, value, y);
  pad_packs<1>(exec, s, x, value, y);
}
template <class T>
void pad_constant(const Exec& exec, const PadShape& s, const T* x, T value, T* y) {
  pad_words(exec, s, words(x), std::bit_cast<Word<T>>(value), words(y));
}

template <class T>
void add(Ops<T>& table) {
  table.copy = copy<T>;
  table.from_float = convert<float, T>;
  table.to_float = convert<T, float>;
  table.join_columns = join_columns<T>;
  table.split_columns = split_columns<T>;
  table.pad_constant = pad_constant<T>;
  table.find_outside = find_outside;
  table.index_rows = index_rows<T>;
  table.index_add = index_add<T>;
}

}  // namespace

CONVGRAD_STEM(move)

}  // namespace convgrad::cuda
