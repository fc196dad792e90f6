// backward_weight of 3x3 taps at stride 1 by Winograd's algorithm, the adjoint of F(4x4, 3x3) in
// the weights (conv_winograd_transform.h):
//
//   dw = G^T [ sum over tiles of (B^T d B) . (A dy A^T) ] G,
//
// with 4x4 tiles of dy and the 6x6 tiles d of x below them: 36 products for each pair of channels
// and tile instead of 144. For each frequency the sum is a matrix product over tiles. With depth,
// each slice of x is transformed once and meets the slices of dy of all its taps.
//
// A work item is some blocks of tiles, numbered through all images, and a range of slices of dy. It
// sums blocks of at most kMaxBlock tiles in registers, adds them up in the domain of the
// frequencies, and puts its own dw into the workspace; the items' are added in order. db is the sum
// of the frequency (1, 1), which for dy is the plain sum of a tile.
//
// Error for normally distributed x and dy: max |dw - exact| <= 64 eps max |exact|, whatever the
// number of pixels (20 to 34 eps measured from 64 to 262144 of them). Small whole numbers give
// exact results as long as 576 dw and the sums stay below 2^24. NaN and infinity reach all taps of
// their channels.
#pragma once
#include "conv_backward_weight.h"
#include "conv_backward_weight_kernels.h"
#include "conv_winograd.h"

namespace convgrad::cpu {
namespace {

// ---- dy: A dy A^T ----

// Two elements of A y: 0 and 5, 1 and 2, or 3 and 4.
template <InputRows R, class V>
inline __attribute__((always_inline)) void gradient_pair(const V (&y)[4], V* first, V* second) {
  if constexpr (R == InputRows::k05) {
    *first = y[0];
    *second = y[3];
  } else if constexpr (R == InputRows::k12) {
    const V even = y[0] + y[2], odd = y[1] + y[3];
    *first = even + odd;
    *second = even - odd;
  } else {
    const V even = y[0] + 4 * y[2], odd = 2 * y[1] + 8 * y[3];
    *first = even + odd;
    *second = even - odd;
  }
}

template <class T, int W>
inline __attribute__((always_inline)) void put_gradient_row(const Lanes<T, W> (&y)[4], T* z,
                                                            int64_t pitch) {
  Lanes<T, W> out[6];
  gradient_pair<InputRows::k05>(y, &out[0], &out[5]);
  gradient_pair<InputRows::k12>(y, &out[1], &out[2]);
  gradient_pair<InputRows::k34>(y, &out[3], &out[4]);
  CONVGRAD_UNROLL
  for (int j = 0; j < 6; ++j) put<T, W>(z + j * pitch, out[j]);
}

template <class T, int W, InputRows R>
inline __attribute__((always_inline)) void transform_gradient_rows(const T* dy, int64_t row,
                                                                   int64_t col, T* z,
                                                                   int64_t pitch) {
  constexpr int kFirst = R == InputRows::k05 ? 0 : R == InputRows::k12 ? 1 : 3;
  constexpr int kSecond = R == InputRows::k05 ? 5 : kFirst + 1;
  Lanes<T, W> a[4], b[4];
  CONVGRAD_UNROLL
  for (int j = 0; j < 4; ++j) {
    Lanes<T, W> y[4];
    CONVGRAD_UNROLL
    for (int i = 0; i < 4; ++i) y[i] = get<T, W>(dy + i * row + j * col);
    gradient_pair<R>(y, &a[j], &b[j]);
  }
  put_gradient_row<T, W>(a, z + 6 * kFirst * pitch, pitch);
  put_gradient_row<T, W>(b, z + 6 * kSecond * pitch, pitch);
}

// A dy A^T of the 4x4 pixels at dy, to z[frequency * pitch].
template <class T, int W>
inline void transform_gradient(const T* dy, int64_t row, int64_t col, T* z, int64_t pitch) {
  transform_gradient_rows<T, W, InputRows::k05>(dy, row, col, z, pitch);
  transform_gradient_rows<T, W, InputRows::k12>(dy, row, col, z, pitch);
  transform_gradient_rows<T, W, InputRows::k34>(dy, row, col, z, pitch);
}

// ---- dw: G^T m G ----

// 24 G^T m: whole numbers stay whole numbers.
template <class V>
inline __attribute__((always_inline)) void reduce_weight(const V (&m)[6], V (&out)[3]) {
  const V near = m[1] + m[2], far = m[3] + m[4];
  out[0] = 6 * m[0] - 4 * near + far;
  out[1] = 2 * (m[3] - m[4]) - 4 * (m[1] - m[2]);
  out[2] = 24 * m[5] + 4 * (far - near);
}

// G^T m G of m[frequency * pitch], to dw[kh * row + kw * col].
template <class T>
inline void transform_sums(const T* m, int64_t pitch, T* dw, int64_t row, int64_t col) {
  Vec<T> half[3][6];
  CONVGRAD_UNROLL
  for (int j = 0; j < 6; ++j) {
    Vec<T> column[6], out[3];
    CONVGRAD_UNROLL
    for (int i = 0; i < 6; ++i) column[i] = load(m + (6 * i + j) * pitch);
    reduce_weight(column, out);
    CONVGRAD_UNROLL
    for (int i = 0; i < 3; ++i) half[i][j] = out[i];
  }
  CONVGRAD_UNROLL
  for (int i = 0; i < 3; ++i) {
    Vec<T> out[3];
    reduce_weight(half[i], out);
    CONVGRAD_UNROLL
    for (int j = 0; j < 3; ++j) store(dw + i * row + j * col, out[j] * T(1. / 576));
  }
}

// ---- the plan ----

// Whether it beats the direct kernels (measured on AVX2 and AVX-512): whole vectors of output
// channels, or three slices to each transformed one; tiles of which most is used, and enough of
// them to pay for the sums' transform.
template <class T>
bool is_winograd_weight_faster(const ConvShape& s) {
  const int64_t used = s.out[1] * s.out[2];
  const int64_t computed =
      ceil_div(s.out[1], kTileOut) * ceil_div(s.out[2], kTileOut) * kTileOut * kTileOut;
  return s.in_c >= 8 && s.out_c >= (s.ker[0] > 1 ? 8 : kLanes<T>) && 4 * used >= 3 * computed &&
         s.n * s.out_pixels() >= 256;
}

constexpr int64_t kMinBlock = 16, kMaxBlock = 64;  // tiles summed in registers
constexpr int64_t kDwBlockBytes = 512 << 10;       // of a block in both domains: stays in L2

struct WinogradDwPlan {
  WinogradPlan tiles;  // pass, tiles, count, block, v_next, slot and zeros: of the transform of x
  DwPlan sums;         // how the items' dw lie in the workspace; its chunks are the items
  int64_t blocks, blocks_per_item;  // of tiles
  int64_t depth, ranges;            // slices of dy per item
  int64_t width;                    // output channels in whole vectors
  int64_t z_next, m_next;           // elements from one frequency to the next
  int64_t z_size, m_size, edge;     // elements

  int64_t scratch() const { return tiles.slots * tiles.slot + z_size + m_size + edge; }
};

template <class T>
WinogradDwPlan plan_winograd_backward_weight(const ConvShape& s) {
  constexpr int64_t L = kLanes<T>, kLine = 64 / sizeof(T);
  const auto spaced = [](int64_t size) { return ceil_div(size, kLine) * kLine + kLine; };
  WinogradDwPlan p{};
  WinogradPlan& tiles = p.tiles;
  tiles.pass = forward_pass(s);
  for (int i = 0; i < 2; ++i) tiles.tiles[i] = ceil_div(s.out[1 + i], kTileOut);
  tiles.count = s.n * tiles.tiles[0] * tiles.tiles[1];
  tiles.slots = s.ker[0];
  p.width = ceil_div(s.out_c, L) * L;

  const int64_t tile_bytes =
      kFrequencies * (tiles.slots * s.in_c + p.width) * static_cast<int64_t>(sizeof(T));
  const int64_t fit = min_of(kMaxBlock, max_of(kMinBlock, kDwBlockBytes / tile_bytes));
  p.blocks = max_of(1, ceil_div(tiles.count, fit));
  tiles.block = ceil_div(tiles.count, p.blocks);

  DwPlan& sums = p.sums;
  sums.groups = 1;
  sums.in_c = s.in_c;
  sums.out_c = s.out_c;
  sums.width = min_of(p.width, 2 * L);
  sums.blocks = ceil_div(p.width, sums.width);
  sums.rows = 3 * s.in_c;
  sums.tap_sets = 3 * s.ker[0];
  sums.partial = ceil_div(sums.units() * sums.unit_size() + sums.blocks * sums.width, 16) * 16;

  // Items: at most 32 of at least 128 tiles, or where there are too few for two, at most 4 of at
  // least 24; together at most 2^21 elements (or one item's).
  const int64_t total = tiles.count * s.out[0];
  const int64_t fair = total >= 256 ? min_of(32, total / 128) : min_of(4, total / 24);
  const int64_t wanted = max_of(1, min_of(fair, (int64_t{1} << 21) / sums.partial));
  p.blocks_per_item = ceil_div(p.blocks, wanted);
  const int64_t columns = ceil_div(p.blocks, p.blocks_per_item);
  p.depth = max_of(1, ceil_div(s.out[0], max_of(1, wanted / columns)));
  p.ranges = ceil_div(s.out[0], p.depth);
  sums.chunks = columns * p.ranges;

  tiles.v_next = spaced(tiles.block * s.in_c);
  tiles.slot = kFrequencies * tiles.v_next;
  p.z_next = spaced(tiles.block * p.width);
  p.z_size = kFrequencies * p.z_next;
  p.m_next = spaced(s.in_c * p.width);
  p.m_size = s.ker[0] * kFrequencies * p.m_next;
  tiles.zeros = spaced(kTileIn * s.in_c);
  p.edge = spaced(kTileOut * kTileOut * s.out_c);
  return p;
}

template <class T>
int64_t winograd_backward_weight_workspace(const WinogradDwPlan& p, int threads) {
  return (p.sums.chunks * p.sums.partial + p.tiles.zeros + threads * p.scratch()) *
         static_cast<int64_t>(sizeof(T));
}

// ---- an item ----

template <class T>
struct WinogradDwItem {
  const ConvShape& s;
  const WinogradDwPlan& p;
  const WinogradCall<T>& x;
  const T* dy;
  T *v, *z, *m, *edge;  // slots of transformed x, transformed dy, sums, one tile of dy
};

// The 4x4 pixels from row h and column w of a slice of dy, zeros where that is outside.
template <class T>
void copy_gradient_edge(const ConvShape& s, const T* slice, int64_t h, int64_t w, T* out) {
  const int64_t k = s.out_c, used = min_of(kTileOut, s.out[2] - w);
  const auto bytes = [&](int64_t pixels) { return static_cast<size_t>(pixels * k) * sizeof(T); };
  for (int64_t i = 0; i < kTileOut; ++i, out += kTileOut * k) {
    const int64_t inside = h + i < s.out[1] ? used : 0;
    __builtin_memcpy(out, slice + ((h + i) * s.out[2] + w) * k, bytes(inside));
    __builtin_memset(out + inside * k, 0, bytes(kTileOut - inside));
  }
}

// `count` tiles of one slice of dy, to z.
template <class T>
void transform_gradient_slice(const WinogradDwItem<T>& item, TileAt at, int64_t count, int64_t d) {
  const ConvShape& s = item.s;
  const int64_t k = s.out_c;
  T* z = item.z;
  for (int64_t t = 0; t < count; ++t, next_tile(item.p.tiles, at), z += item.p.width) {
    const T* slice = item.dy + (at.n * s.out[0] + d) * s.out[1] * s.out[2] * k;
    const int64_t h = kTileOut * at.i, w = kTileOut * at.j;
    const bool inside = h + kTileOut <= s.out[1] && w + kTileOut <= s.out[2];
    if (!inside) copy_gradient_edge(s, slice, h, w, item.edge);
    const T* from = inside ? slice + (h * s.out[2] + w) * k : item.edge;
    const int64_t row = (inside ? s.out[2] : kTileOut) * k;
    for_channel_blocks<T>(k, [&](auto width, int64_t c) {
      transform_gradient<T, width.value>(from + c, row, k, z + c, item.p.z_next);
    });
  }
}

// What the step after slice o of a block reads: the next slice, or the next block.
template <class T>
Ahead ahead_of(const WinogradDwItem<T>& item, int64_t block, int64_t o, int64_t begin,
               int64_t end) {
  const ConvShape& s = item.s;
  const WinogradPlan& plan = item.p.tiles;
  const bool same = o + 1 < end;
  const int64_t tile = (same ? block : block + 1) * plan.block;
  Ahead ahead;
  if (tile >= plan.count) return ahead;
  const int64_t first = plan.pass.axis[0].src_first;
  add_inputs(item.x, tile, first + (same ? o + plan.slots : begin), ahead);
  const RowRange rows = rows_of_tiles(plan, tile, min_of(plan.block, plan.count - tile),
                                      same ? o + 1 : begin, s.out[0], s.out[1], 0, kTileOut);
  ahead.add(item.dy, rows.begin, rows.end, s.out[2] * s.out_c);
  return ahead;
}

// One frequency and one or two vectors of output channels; the input channels cut as evenly as can
// be.
template <class Tiles, class T>
void multiply_rows(const Walk& walk, int64_t c, const T* v, const T* z, T* m, int64_t width,
                   Ahead& ahead) {
  const int64_t pieces = ceil_div(c, Tiles::kMost), each = c / pieces, longer = c % pieces;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t count = each + (piece < longer);
    ahead.fetch();
    Tiles::kByRows[count - 1](walk, v, z, m, width);
    v += count;
    m += count * width;
  }
}

// m += v^T z, for each frequency: a matrix (c, k), summed over tiles.
template <class T>
void multiply_tiles(const WinogradDwItem<T>& item, int64_t tiles, const T* v, T* m, Ahead& ahead) {
  constexpr int L = kLanes<T>;
  const WinogradDwPlan& p = item.p;
  const int64_t c = item.s.in_c;
  const Walk walk = {{1, 1, 1, tiles}, {0, 0, 0, c}, {0, 0, 0, p.width}, 0, 0};
  const T* z = item.z;
  for (int64_t f = 0; f < kFrequencies; ++f) {
    for (int64_t k = 0; k < p.width; k += 2 * L)
      if (p.width - k > L)
        multiply_rows<DwTiles2<T>>(walk, c, v, z + k, m + k, p.width, ahead);
      else
        multiply_rows<DwTiles1<T, L, 1>>(walk, c, v, z + k, m + k, p.width, ahead);
    v += p.tiles.v_next;
    z += p.z_next;
    m += p.m_next;
  }
}

// bias (width) += the sums of dy over `count` tiles.
template <class T>
void add_gradient_sums(const WinogradDwItem<T>& item, int64_t count, T* bias) {
  constexpr int64_t kPlainSum = 6 + 1;  // the frequency whose row and column of A are ones
  const WinogradDwPlan& p = item.p;
  const T* z = item.z + kPlainSum * p.z_next;
  for (int64_t k = 0; k < p.width; k += kLanes<T>) {
    Vec<T> sum = {};
    for (int64_t t = 0; t < count; ++t) sum += load(z + t * p.width + k);
    store(bias + k, load(bias + k) + sum);
  }
}

// Slices [begin, end) of dy for one block of tiles.
template <class T>
void sum_block(const WinogradDwItem<T>& item, int64_t block, int64_t begin, int64_t end, T* bias) {
  const WinogradDwPlan& p = item.p;
  const WinogradPlan& plan = p.tiles;
  const Axis& d = plan.pass.axis[0];
  const int64_t first = block * plan.block, count = min_of(plan.block, plan.count - first);
  const TileAt at = tile_at(plan, first);
  int64_t filled = 0;  // slices of x transformed, from the first one that this range sees
  for (int64_t o = begin; o < end; ++o) {
    const int64_t src = d.src_first + o, seen = o - begin;
    const int64_t from = min_of(plan.slots, max_of(0, -src));  // taps inside x
    const int64_t to = max_of(from, min_of(plan.slots, d.src - src));
    for (filled = max_of(filled, seen + from); filled < seen + to; ++filled)
      transform_slice(item.x, at, count, d.src_first + begin + filled,
                      item.v + filled % plan.slots * plan.slot);
    transform_gradient_slice(item, at, count, o);
    if (bias) add_gradient_sums(item, count, bias);
    Ahead ahead = ahead_of(item, block, o, begin, end);
    const int64_t panels = ceil_div(p.width, 2 * kLanes<T>);
    ahead.cut((to - from) * kFrequencies * panels * ceil_div(item.s.in_c, DwTiles2<T>::kMost));
    for (int64_t tap = from; tap < to; ++tap)
      multiply_tiles(item, count, item.v + (seen + tap) % plan.slots * plan.slot,
                     item.m + tap * kFrequencies * p.m_next, ahead);
  }
}

// The item's dw, in units as add_chunks wants them.
template <class T>
void write_sums(const WinogradDwItem<T>& item, T* sums) {
  constexpr int L = kLanes<T>;
  const WinogradDwPlan& p = item.p;
  const DwPlan& to = p.sums;
  const int64_t c = item.s.in_c;
  for (int64_t kd = 0; kd < item.s.ker[0]; ++kd)
    for (int64_t i = 0; i < c; ++i)
      for (int64_t k = 0; k < p.width; k += L) {
        const int64_t unit = k / to.width * to.tap_sets + 3 * kd;
        transform_sums(item.m + kd * kFrequencies * p.m_next + i * p.width + k, p.m_next,
                       sums + unit * to.unit_size() + i * to.width + k % to.width, to.unit_size(),
                       c * to.width);
      }
}

// The items' sums, to exec.workspace; add_chunks adds them.
template <class T>
void winograd_backward_weight_sums(const Exec& exec, const ConvShape& s, const WinogradDwPlan& p,
                                   const T* dy, const T* x, bool with_bias) {
  WinogradCall<T> call{};
  call.plan = p.tiles;
  call.src = x;
  T* const sums = static_cast<T*>(exec.workspace);
  call.zeros = sums + p.sums.chunks * p.sums.partial;
  __builtin_memset(call.zeros, 0, static_cast<size_t>(p.tiles.zeros) * sizeof(T));
  T* const scratch = call.zeros + p.tiles.zeros;
  parallel_for(exec, p.sums.chunks, s.macs() / kLanes<T>, [&](int64_t index, int thread) {
    WinogradDwItem<T> item = {s, p, call, dy, scratch + thread * p.scratch(), {}, {}, {}};
    item.z = item.v + p.tiles.slots * p.tiles.slot;
    item.m = item.z + p.z_size;
    item.edge = item.m + p.m_size;
    T* const to = sums + index * p.sums.partial;
    T* const bias = to + p.sums.units() * p.sums.unit_size();
    for (int64_t i = 0; i < p.m_size; ++i) item.m[i] = 0;
    for (int64_t k = 0; k < p.sums.blocks * p.sums.width; ++k) bias[k] = 0;
    const int64_t begin = index % p.ranges * p.depth, end = min_of(begin + p.depth, s.out[0]);
    const int64_t first = index / p.ranges * p.blocks_per_item;
    const int64_t last = min_of(first + p.blocks_per_item, p.blocks);
    for (int64_t block = first; block < last; ++block)
      sum_block(item, block, begin, end, with_bias ? bias : nullptr);
    write_sums(item, to);
  });
}

}  // namespace
}  // namespace convgrad::cpu
