// Winograd's convolution F(4x4, 3x3) of a pass with 3x3 taps at stride 1, of any padding: about a
// quarter of the multiplications. With depth, the taps along it are summed among the transformed
// tiles: each slice is transformed once and serves all of them.
//
//   conv_winograd_transform.h  tiles and weights into the domain of the frequencies, and back
//   conv_winograd_gemm.h       the products there
//   conv_winograd.h            the plan, its workspace, and the loops over blocks of tiles
//
// Error for normally distributed inputs and weights, `terms` = channels * taps along the depth:
// max |y - exact| <= (32 + 6 sqrt(terms)) eps max |exact|, some ten times that of a plain sum.
// Inputs in {-1, 0, 1} and weights in 576 * {-1, 0, 1} give exact results as long as the sums stay
// below 2^24. NaN and infinity reach the whole of the 4x4 tiles that see them, as NaN.
#pragma once
#include "ahead.h"
#include "conv_pass.h"
#include "conv_plan.h"
#include "conv_winograd_gemm.h"
#include "conv_winograd_transform.h"
#include "gemm.h"
#include "parallel.h"

namespace convgrad::cpu {
namespace {

constexpr int64_t kMaxWinogradWeights = 16 << 20;  // elements, transformed
constexpr int64_t kWinogradBytes = 200 << 10;      // of a block in both domains: stays in L2
constexpr int64_t kMaxDepthTaps = 7;
constexpr int64_t kWeightDepth = 32;  // input channels of the weights that are one item
constexpr int64_t kMinTiles = 12, kMaxTiles = 24;  // per block

// An item is a block of tiles, numbered through all images, and a range of output slices. It goes
// through the range by steps of one slice, or of two, which then share the vectors of a product
// (`pair`): a vector of 16 lanes holds 2 slices x 8 channels. The transformed input slices of a
// step lie in a ring of slots, so that the next step only adds its new ones. Everything follows
// from the shape.
struct WinogradPlan {
  Pass pass;
  int64_t tiles[2], count;         // of an image's rows and columns, of all images
  int64_t block, blocks;           // tiles per item
  int64_t depth, ranges;           // output slices per item
  int64_t pair, slots;             // output slices, and slices of the ring, per step
  int64_t width;                   // channels of a row of products: pair * dst_c in whole vectors
  int64_t u_next, v_next, m_next;  // elements from one frequency to the next
  int64_t u_size, zeros;           // elements: weights, a row of zeros
  int64_t slot, m_size;            // elements per thread: a slot, products (0: in the slot's place)

  constexpr int64_t items() const { return blocks * ranges; }
  constexpr int64_t scratch() const { return slots * slot + m_size; }
};

constexpr bool is_unit_stride(const Axis& a) {
  return a.src_step == 1 && a.dst_step == 1 && a.dst_first == 0 && a.count == a.dst;
}
constexpr bool has_three_taps(const Axis& a) {
  return is_unit_stride(a) && a.taps == 3 && a.tap_step == 1;
}
inline bool can_winograd(const Pass& p) {
  const Axis& d = p.axis[0];
  return p.groups == 1 && p.src_c > 0 && p.bias_c == p.dst_c && has_three_taps(p.axis[1]) &&
         has_three_taps(p.axis[2]) && is_unit_stride(d) && (d.taps == 1 || d.tap_step == 1) &&
         d.taps >= 1 && d.taps <= kMaxDepthTaps && (d.taps + 1) * p.src_c <= kTermBlock &&
         p.dst_c <= kTermBlock &&
         kFrequencies * (d.taps + 1) * p.src_c * p.dst_c <= kMaxWinogradWeights;
}

// Whether it beats the direct kernels (measured on AVX2 and AVX-512): enough channels to pay for
// the transforms of tiles, of which most is used, and enough pixels to pay for those of the
// weights.
inline bool is_winograd_faster(const Pass& p) {
  const bool deep = p.axis[0].taps > 1;
  const int64_t used = p.axis[1].count * p.axis[2].count;
  const int64_t computed = ceil_div(p.axis[1].count, kTileOut) *
                           ceil_div(p.axis[2].count, kTileOut) * kTileOut * kTileOut;
  return min_of(p.src_c, p.dst_c) >= (deep ? 8 : 16) && 4 * used >= 3 * computed &&
         p.n * p.positions() >= 512;
}

template <class T>
WinogradPlan plan_winograd(const Pass& p) {
  // A line between frequencies: a power of two between them would put all into one set of the
  // cache.
  constexpr int64_t kLine = 64 / sizeof(T);
  const auto spaced = [](int64_t size) { return ceil_div(size, kLine) * kLine + kLine; };
  WinogradPlan plan{};
  plan.pass = p;
  for (int i = 0; i < 2; ++i) plan.tiles[i] = ceil_div(p.axis[1 + i].count, kTileOut);
  plan.count = p.n * plan.tiles[0] * plan.tiles[1];
  const int64_t slices = p.axis[0].count, taps = p.axis[0].taps;
  plan.pair = slices > 1 && taps > 1 && 2 * p.dst_c <= kLanes<T> ? 2 : 1;
  plan.slots = taps + plan.pair - 1;
  plan.width = ceil_div(plan.pair * p.dst_c, kLanes<T>) * kLanes<T>;

  const int64_t tile_bytes =
      kFrequencies * (plan.slots * p.src_c + plan.width) * static_cast<int64_t>(sizeof(T));
  const int64_t fit = min_of(kMaxTiles, max_of(kMinTiles, kWinogradBytes / tile_bytes));
  plan.block = even_piece(plan.count, min_of(fit, max_of(kMinTiles, plan.count / kItems)));
  plan.blocks = ceil_div(plan.count, plan.block);
  plan.depth = even_piece(slices, max_of(2 * plan.pair, slices * plan.blocks / kItems));
  plan.depth = ceil_div(plan.depth, plan.pair) * plan.pair;
  plan.ranges = ceil_div(slices, plan.depth);

  plan.u_next = spaced(plan.slots * p.src_c * plan.width);
  plan.v_next = spaced(plan.block * p.src_c);
  plan.m_next = spaced(plan.block * plan.width);
  plan.u_size = kFrequencies * plan.u_next;
  plan.slot = kFrequencies * plan.v_next;
  const bool in_place = plan.slots == 1 && plan.width == p.src_c && plan.width <= 2 * kLanes<T>;
  plan.m_size = in_place ? 0 : kFrequencies * plan.m_next;
  plan.zeros = spaced(kTileIn * p.src_c);
  return plan;
}

template <class T>
int64_t winograd_workspace(const WinogradPlan& plan, int threads) {
  return (plan.u_size + plan.zeros + threads * plan.scratch()) * static_cast<int64_t>(sizeof(T));
}

template <class T>
struct WinogradCall {
  WinogradPlan plan;
  const T *src, *w;
  Epilogue<T> epilogue;
  T *dst, *u, *zeros, *scratch;  // zeros: a row of pixels under a tile
};

// Calls block(W, c) for blocks of the c channels; one may be done twice.
template <class T, class Block>
inline void for_channel_blocks(int64_t c, const Block& block) {
  if constexpr (kLanes<T> == 16) {
    if (c % 16 != 0 && c % 8 == 0) {
      for (int64_t at = 0; at < c; at += 8) block(Width<8>{}, at);
      return;
    }
  }
  for_channels<T>(c, true, block);
}

// ---- weights ----

// The vectors of row: first the pairs of them, then a single one.
template <class T>
int64_t panel_vectors(const WinogradPlan& plan, int64_t first) {
  return min_of(2, plan.width / kLanes<T> - first);
}

// w of one tap, `lanes` output channels and `depth` input channels, to u[c * width + lane].
template <class T>
void pack_weights(const Pass& p, const T* w, int64_t lanes, int64_t depth, int64_t width, T* u) {
  int64_t lane = 0;
  if (p.w_src == 1)  // each output channel's weights lie together
    for (; lane + 4 <= lanes; lane += 4)
      pack_four_rows(w + lane * p.w_dst, p.w_dst, depth, width, u + lane);
  for (int64_t c = 0; c < depth; ++c)
    for (int64_t l = lane; l < lanes; ++l) u[c * width + l] = w[c * p.w_src + l * p.w_dst];
}

// Input channels [c, c + depth) of one vector of output channels and one slice of the ring: first
// the 9 taps, to the places of frequencies 0 to 8, then all frequencies in place. The lanes of the
// slice q of a pair have tap slice - q.
template <class T>
void transform_weights(const WinogradCall<T>& call, int64_t vector, int64_t slice, int64_t c,
                       int64_t depth) {
  constexpr int64_t L = kLanes<T>;
  const WinogradPlan& plan = call.plan;
  const Pass& p = plan.pass;
  const int64_t first = vector / 2 * 2, width = panel_vectors<T>(plan, first) * L;
  T* u = call.u + first * L * plan.slots * p.src_c + (slice * p.src_c + c) * width +
         (vector - first) * L;
  for (int64_t t = 0; t < 9; ++t) {
    T* plane = u + t * plan.u_next;
    for (int64_t i = 0; i < depth; ++i) store(plane + i * width, Vec<T>{});
    for (int64_t q = 0; q < plan.pair; ++q) {
      const int64_t tap = slice - q, from = max_of(q * p.dst_c, vector * L);
      const int64_t lanes = min_of((q + 1) * p.dst_c, (vector + 1) * L) - from;
      if (tap < 0 || tap >= p.axis[0].taps || lanes <= 0) continue;
      const T* w =
          call.w + p.w_offset(tap, t / 3, t % 3) + c * p.w_src + (from - q * p.dst_c) * p.w_dst;
      pack_weights(p, w, lanes, depth, width, plane + from - vector * L);
    }
  }
  for (int64_t i = 0; i < depth; ++i, u += width) {
    Vec<T> g[9];
    CONVGRAD_UNROLL
    for (int t = 0; t < 9; ++t) g[t] = load(u + t * plan.u_next);
    transform_weight<T, L>(g, u, plan.u_next);
  }
}

// ---- inputs ----

// Where a tile lies.
struct TileAt {
  int64_t n, i, j;
};
inline TileAt tile_at(const WinogradPlan& plan, int64_t tile) {
  const int64_t row = tile / plan.tiles[1];
  return {row / plan.tiles[0], row % plan.tiles[0], tile % plan.tiles[1]};
}
inline void next_tile(const WinogradPlan& plan, TileAt& at) {
  if (++at.j < plan.tiles[1]) return;
  at.j = 0;
  if (++at.i < plan.tiles[0]) return;
  at.i = 0;
  ++at.n;
}

// The pixels of a slice from row y and column x on; rows outside are the call's zeros.
template <class T>
InputTile<T> input_tile(const WinogradCall<T>& call, const T* slice, int64_t y, int64_t x) {
  const Axis &h = call.plan.pass.axis[1], &w = call.plan.pass.axis[2];
  InputTile<T> tile;
  tile.col = call.plan.pass.src_c;
  tile.from = max_of(0, -x);
  tile.to = min_of(kTileIn, w.src - x);
  for (int64_t i = 0; i < kTileIn; ++i) {
    const bool inside = y + i >= 0 && y + i < h.src;
    tile.rows[i] = inside ? slice + ((y + i) * w.src + x) * tile.col : call.zeros;
  }
  return tile;
}

// `count` tiles of one slice of src, to a slot of v.
template <class T>
void transform_slice(const WinogradCall<T>& call, TileAt at, int64_t count, int64_t d, T* v) {
  const WinogradPlan& plan = call.plan;
  const Axis *a = plan.pass.axis, &h = a[1], &w = a[2];
  const int64_t c = plan.pass.src_c;
  for (int64_t t = 0; t < count; ++t, next_tile(plan, at), v += c) {
    const T* slice = call.src + (at.n * a[0].src + d) * h.src * w.src * c;
    const InputTile<T> tile =
        input_tile(call, slice, h.src_first + kTileOut * at.i, w.src_first + kTileOut * at.j);
    const bool whole = tile.from == 0 && tile.to == kTileIn;
    for_channel_blocks<T>(c, [&](auto width, int64_t k) {
      constexpr int W = width.value;
      if (whole)
        transform_input<T, W, true>(tile, k, v + k, plan.v_next);
      else
        transform_input<T, W, false>(tile, k, v + k, plan.v_next);
    });
  }
}

// ---- memory ahead of its use (ahead.h) ----

// The rows under `count` tiles from `tile` on, in slice d of `slices` of `size` rows each: a tile
// covers `rows` of them from 4 i + first on.
struct RowRange {
  int64_t begin, end;
};
inline RowRange rows_of_tiles(const WinogradPlan& plan, int64_t tile, int64_t count, int64_t d,
                              int64_t slices, int64_t size, int64_t first, int64_t rows) {
  const TileAt a = tile_at(plan, tile), b = tile_at(plan, tile + count - 1);
  return {(a.n * slices + d) * size + max_of(0, kTileOut * a.i + first),
          (b.n * slices + d) * size + min_of(size, kTileOut * b.i + first + rows)};
}

// The src under the block of tiles from `tile` on, in slice d; nothing where there is none.
template <class T>
void add_inputs(const WinogradCall<T>& call, int64_t tile, int64_t d, Ahead& ahead) {
  const WinogradPlan& plan = call.plan;
  const Axis *a = plan.pass.axis, &h = a[1], &w = a[2];
  if (tile >= plan.count || d < 0 || d >= a[0].src) return;
  const RowRange rows = rows_of_tiles(plan, tile, min_of(plan.block, plan.count - tile), d,
                                      a[0].src, h.src, h.src_first, kTileIn);
  ahead.add(call.src, rows.begin, rows.end, w.src * plan.pass.src_c);
}

// What step z of an item writes, and what the step after it reads: the next slice, or the next
// block of tiles, which the same thread is likely to get.
template <class T>
Ahead ahead_of(const WinogradCall<T>& call, int64_t tile, int64_t z, int64_t begin, int64_t end) {
  const WinogradPlan& plan = call.plan;
  const Axis *a = plan.pass.axis, &h = a[1], &w = a[2];
  Ahead ahead;
  const RowRange out =
      rows_of_tiles(plan, tile, min_of(plan.block, plan.count - tile), z, a[0].dst, h.dst, 0, 4);
  const int64_t row = w.dst * plan.pass.dst_c;
  ahead.add(call.dst, out.begin, out.end, row);
  if (call.epilogue.mask) ahead.add(call.epilogue.mask, out.begin, out.end, row);
  if (z + plan.pair < end)
    add_inputs(call, tile, a[0].src_first + z + plan.slots, ahead);
  else
    add_inputs(call, tile + plan.block, a[0].src_first + begin, ahead);
  return ahead;
}

// ---- products ----

// Slices [from, to) of the ring, of which the first is in slot `first`, times their weights.
template <class T>
void multiply_slices(const WinogradPlan& plan, int64_t tiles, int64_t first, int64_t from,
                     int64_t to, const T* v, const T* u, T* m, Ahead ahead) {
  constexpr int L = kLanes<T>;
  const int64_t c = plan.pass.src_c, panels = ceil_div(plan.width, 2 * L);
  int64_t slice[kMaxDepthTaps + 1];
  for (int64_t s = from; s < to; ++s) slice[s - from] = (first + s) % plan.slots * plan.slot;
  const MultiplyArgs args = {slice, to - from, c, plan.width};
  ahead.cut(kFrequencies * panels * pieces_of<T>(tiles, panel_vectors<T>(plan, 0)));
  for (int64_t f = 0; f < kFrequencies; ++f) {
    for (int64_t k = 0; k < plan.width / L; k += 2) {
      const int64_t vectors = panel_vectors<T>(plan, k);
      const T* panel = u + f * plan.u_next + k * L * plan.slots * c + from * c * vectors * L;
      const T* rows = v + f * plan.v_next;
      T* out = m + f * plan.m_next + k * L;
      if (vectors == 2)
        multiply_tiles<Multiply2<T>>(args, tiles, rows, panel, out, ahead);
      else
        multiply_tiles<Multiply1<T>>(args, tiles, rows, panel, out, ahead);
    }
  }
}

// ---- outputs ----

// `count` tiles of one slice of dst from m.
template <class T>
void write_slice(const WinogradCall<T>& call, TileAt at, int64_t count, int64_t d, const T* m) {
  const WinogradPlan& plan = call.plan;
  const Pass& p = plan.pass;
  const Axis *a = p.axis, &h = a[1], &w = a[2];
  const Epilogue<T>& e = call.epilogue;
  for (int64_t t = 0; t < count; ++t, next_tile(plan, at), m += plan.width) {
    const int64_t y = kTileOut * at.i, x = kTileOut * at.j;
    const int64_t pixel = ((at.n * a[0].dst + d) * h.dst + y) * w.dst + x;
    for_channel_blocks<T>(p.dst_c, [&](auto width, int64_t k) {
      const int64_t first = pixel * p.dst_c + k;
      const OutputTile<T> to = {call.dst + first, e.mask ? e.mask + first : nullptr,
                                w.dst * p.dst_c,  p.dst_c,
                                h.dst - y,        w.dst - x};
      transform_output<T, width.value>(m + k, plan.m_next, e.bias ? e.bias + k : nullptr, e.relu,
                                       to);
    });
  }
}

template <class T>
void run_winograd_item(const WinogradCall<T>& call, int64_t item, int thread) {
  const WinogradPlan& plan = call.plan;
  const Axis& d = plan.pass.axis[0];
  T* v = call.scratch + thread * plan.scratch();
  T* m = plan.m_size == 0 ? v : v + plan.slots * plan.slot;
  const int64_t block = item % plan.blocks * plan.block;
  const int64_t tiles = min_of(plan.block, plan.count - block);
  const int64_t begin = item / plan.blocks * plan.depth, end = min_of(begin + plan.depth, d.count);
  const TileAt at = tile_at(plan, block);
  int64_t filled = 0;  // slices of src transformed, from the first one that this item sees
  for (int64_t z = begin; z < end; z += plan.pair) {
    const int64_t src = d.src_first + z, seen = z - begin;
    // Slices of the ring that lie inside src.
    const int64_t from = min_of(plan.slots, max_of(0, -src));
    const int64_t to = max_of(from, min_of(plan.slots, d.src - src));
    for (filled = max_of(filled, seen + from); filled < seen + to; ++filled)
      transform_slice(call, at, tiles, d.src_first + begin + filled,
                      v + filled % plan.slots * plan.slot);
    multiply_slices(plan, tiles, seen % plan.slots, from, to, v, call.u, m,
                    ahead_of(call, block, z, begin, end));
    for (int64_t q = 0; q < plan.pair && z + q < end; ++q)
      write_slice(call, at, tiles, z + q, m + q * plan.pass.dst_c);
  }
}

template <class T>
void run_winograd(const Exec& exec, const Pass& p, const T* src, const T* w,
                  const Epilogue<T>& epilogue, T* dst) {
  WinogradCall<T> call;
  call.plan = plan_winograd<T>(p);
  const WinogradPlan& plan = call.plan;
  call.src = src;
  call.w = w;
  call.epilogue = epilogue;
  call.dst = dst;
  call.u = static_cast<T*>(exec.workspace);
  call.zeros = call.u + plan.u_size;
  call.scratch = call.zeros + plan.zeros;
  __builtin_memset(call.zeros, 0, static_cast<size_t>(plan.zeros) * sizeof(T));
  const int64_t vectors = plan.width / kLanes<T>, cuts = ceil_div(p.src_c, kWeightDepth);
  parallel_for(exec, vectors * plan.slots * cuts, plan.u_size, [&](int64_t i, int) {
    const int64_t c = i % cuts * kWeightDepth;
    transform_weights(call, i / cuts % vectors, i / cuts / vectors, c,
                      min_of(kWeightDepth, p.src_c - c));
  });
  parallel_for(exec, plan.items(), p.macs() / kLanes<T>,
               [&](int64_t item, int thread) { run_winograd_item(call, item, thread); });
}

}  // namespace
}  // namespace convgrad::cpu
