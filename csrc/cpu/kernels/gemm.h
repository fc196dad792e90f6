// Matrix products from panels: c (m, n) = a (m, k) b (k, n), any of them transposed.
//
// The product is cut into blocks of c; one block is one work item, computed by one thread: a in
// panels of up to kGemmRows rows and b in panels of two vectors. Panels are read in place where
// that is as fast, else from packed copies in the thread's own scratch, [k][pitch].
// Along k the sum runs in blocks of up to kGemmDepth, each summed in registers and then added to c,
// so the order of every sum follows from k alone.
#pragma once
#include "parallel.h"
#include "row_tile.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

// The largest tile: 14 x 2 accumulators of 32 vector registers, or 6 x 2 of 16.
template <class T>
constexpr int kGemmRows = kVectorBytes == 64 && sizeof(T) == 4 ? 14 : 6;
template <class T>
constexpr int64_t kGemmRowPitch = kGemmRows<T> > 8 ? 16 : 8;  // of packed rows
template <class T>
constexpr int64_t kGemmCols = 2 * kLanes<T>;
constexpr int64_t kGemmDepth = 256;   // k per block: a panel of b (32 KB at most) stays in L1
constexpr int64_t kInPlaceTiles = 2;  // columns that no more tiles read are not worth a copy

// Element (i, j) lies at data[i * row + j * col]; one of the two strides is 1.
template <class T>
struct MatrixView {
  const T* data;
  int64_t row, col;
  MatrixView at(int64_t i, int64_t j) const { return {data + i * row + j * col, row, col}; }
  MatrixView transposed() const { return {data, col, row}; }
};

// The work of a product for parallel_for, in its unit: vectors multiplied, and vectors added. A
// core does two of each at a time.
template <class T>
int64_t gemm_work(const GemmShape& s) {
  return 2 * s.batch * s.m * s.n * max_of(s.k, 1) / kLanes<T>;
}

// The epilogue of one element, c[at] of column j.
template <class T>
T finish(const Epilogue<T>& e, T v, int64_t j, int64_t at) {
  if (e.bias) v += e.bias[j];
  if (e.relu && v < 0) v = 0;
  return e.mask && e.mask[at] <= 0 ? T(0) : v;
}

// Four rows of `depth` elements, `pitch` apart, to dst[j * width + row].
template <class T>
void pack_four_rows(const T* src, int64_t pitch, int64_t depth, int64_t width, T* dst) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  typedef T FourAnywhere
      __attribute__((vector_size(4 * sizeof(T)), aligned(alignof(T)), __may_alias__));
  const auto get = [](const T* p) -> Four { return *reinterpret_cast<const FourAnywhere*>(p); };
  const auto put = [](T* p, Four v) { *reinterpret_cast<FourAnywhere*>(p) = v; };
  const T *r0 = src, *r1 = r0 + pitch, *r2 = r1 + pitch, *r3 = r2 + pitch;
  int64_t j = 0;
  for (; j + 4 <= depth; j += 4) {  // a 4 x 4 transposition
    const Four a = get(r0 + j), b = get(r1 + j), c = get(r2 + j), d = get(r3 + j);
    const Four ab_lo = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    const Four ab_hi = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Four cd_lo = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    const Four cd_hi = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    put(dst + j * width, __builtin_shufflevector(ab_lo, cd_lo, 0, 1, 4, 5));
    put(dst + (j + 1) * width, __builtin_shufflevector(ab_lo, cd_lo, 2, 3, 6, 7));
    put(dst + (j + 2) * width, __builtin_shufflevector(ab_hi, cd_hi, 0, 1, 4, 5));
    put(dst + (j + 3) * width, __builtin_shufflevector(ab_hi, cd_hi, 2, 3, 6, 7));
  }
  for (; j < depth; ++j) {
    T* to = dst + j * width;
    to[0] = r0[j], to[1] = r1[j], to[2] = r2[j], to[3] = r3[j];
  }
}

// As many rows as a vector has lanes, of a number of elements that is a multiple of that, to
// dst[j * width + row].
inline void pack_square(const float* src, int64_t pitch, int64_t depth, int64_t width, float* dst) {
  constexpr int L = kLanes<float>;
  for (int64_t j = 0; j < depth; j += L) {
    Vec<float> v[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) v[i] = load(src + i * pitch + j);
    transpose_to_lanes(v);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) store(dst + (j + i) * width, v[i]);
  }
}

// dst[j * width + i] = src[i * pitch + j] for i < used, j < depth.
template <class T>
void pack_rows(const T* src, int64_t pitch, int64_t used, int64_t depth, int64_t width, T* dst) {
  constexpr int L = kLanes<T>;
  int64_t i = 0;
  if constexpr (__is_same(T, float))
    for (const int64_t whole = depth / L * L; i + L <= used; i += L) {
      pack_square(src + i * pitch, pitch, whole, width, dst + i);
      for (int64_t r = i; r < i + L && whole < depth; r += 4)
        pack_four_rows(src + r * pitch + whole, pitch, depth - whole, width,
                       dst + whole * width + r);
    }
  while (used >= 4 && i < used) {  // the last four rows may repeat some
    i = min_of(i, used - 4);
    pack_four_rows(src + i * pitch, pitch, depth, width, dst + i);
    i += 4;
  }
  for (; i < used; ++i)
    for (int64_t j = 0; j < depth; ++j) dst[j * width + i] = src[i * pitch + j];
}

// dst[j * width + i] = src[j * pitch + i] for i < used, j < depth. Whole vectors: what is copied
// beyond `used` follows in memory, and is never looked at.
template <class T>
void pack_columns(const T* src, int64_t pitch, int64_t used, int64_t depth, int64_t width, T* dst) {
  constexpr int L = kLanes<T>;
  int64_t j = 0;
  for (const int64_t whole = ceil_div(used, L) * L; j < depth; ++j, src += pitch, dst += width) {
    if ((depth - 1 - j) * pitch + used < whole) break;
    for (int64_t i = 0; i < whole; i += L) store(dst + i, load(src + i));
  }
  for (; j < depth; ++j, src += pitch, dst += width)
    for (int64_t i = 0; i < used; i += L)
      store_first(dst + i, load_first(src + i, min_of(L, used - i)), min_of(L, used - i));
}

// Whether tiles may read rows of such a pitch side by side. Rows a large power of two apart share
// few lines of the L1 cache, and would drive each other out.
template <class T>
bool rows_in_place(int64_t pitch) {
  return pitch * int64_t{sizeof(T)} % 2048 != 0;
}

// [0, count) in pieces of at most `most`, as equal as multiples of `unit` can be.
struct Cuts {
  int64_t count, unit, units, pieces;

  Cuts(int64_t n, int64_t most, int64_t multiple)
      : count(n), unit(multiple), units(ceil_div(n, multiple)), pieces(ceil_div(n, most)) {}
  int64_t at(int64_t piece) const { return min_of(count, units * piece / pieces * unit); }
  int64_t size(int64_t piece) const { return at(piece + 1) - at(piece); }
};

// The panels of some rows of src, of `depth` columns: views of src itself if `in_place`, except for
// a last one that is no multiple of `whole` rows, or else packed copies, which pack() makes.
template <class T>
struct GemmPanels {
  MatrixView<T> src;
  Cuts cuts;
  int64_t depth, pitch, packed_from;  // pitch: of a packed panel's columns; its first panel
  T* packed;

  GemmPanels(MatrixView<T> source, Cuts pieces, int64_t whole, int64_t columns, int64_t width,
             bool in_place, T* scratch)
      : src(source),
        cuts(pieces),
        depth(columns),
        pitch(width),
        packed_from(!in_place ? 0 : cuts.pieces - (cuts.count % whole != 0)),
        packed(scratch) {}
  // Where columns are contiguous they are packed some at a time into all panels: one panel after
  // another would read each cache line again for every panel.
  const GemmPanels& pack() const {
    const int64_t step = src.row == 1 ? 16 : max_of(depth, 1);
    for (int64_t j = 0; j < depth; j += step)
      for (int64_t piece = packed_from; piece < cuts.pieces; ++piece)
        pack(piece, j, min_of(step, depth - j));
    return *this;
  }
  void pack(int64_t piece, int64_t j, int64_t columns) const {
    const int64_t first = cuts.at(piece), used = cuts.size(piece);
    const T* from = src.at(first, j).data;
    T* to = panel(piece) + j * pitch;
    if (src.row == 1)
      pack_columns(from, src.col, used, columns, pitch, to);
    else
      pack_rows(from, src.row, used, columns, pitch, to);
  }
  T* panel(int64_t piece) const { return packed + (piece - packed_from) * pitch * depth; }
  MatrixView<T> at(int64_t piece) const {
    if (piece < packed_from) return src.at(cuts.at(piece), 0);
    return {panel(piece), 1, pitch};
  }
};

// A part of c, and its epilogue, whose bias and mask begin where the part does.
template <class T>
struct GemmTarget {
  T* c;
  int64_t pitch, rows, cols;
  Epilogue<T> epilogue;

  GemmTarget at(int64_t i, int64_t j) const {
    return {c + i * pitch + j, pitch, rows - i, cols - j,
            Epilogue<T>{epilogue.bias ? epilogue.bias + j : nullptr, epilogue.relu,
                        epilogue.mask ? epilogue.mask + i * pitch + j : nullptr}};
  }
  GemmTarget at_most(int64_t m, int64_t n) const {
    return {c, pitch, min_of(rows, m), min_of(cols, n), epilogue};
  }
};

// The epilogue of a tile that has just been written.
template <class T>
void finish_tile(const GemmTarget<T>& to) {
  const Epilogue<T> e = to.epilogue;
  for (int64_t i = 0; i < to.rows; ++i) {
    const int64_t at = i * to.pitch;
    int64_t j = 0;
    for (; j + kLanes<T> <= to.cols; j += kLanes<T>) {
      Vec<T> v = load(to.c + at + j);
      if (e.bias) v += load(e.bias + j);
      if (e.relu) v = v < T(0) ? Vec<T>{} : v;
      if (e.mask) v = load(e.mask + at + j) <= T(0) ? Vec<T>{} : v;
      store(to.c + at + j, v);
    }
    for (; j < to.cols; ++j) to.c[at + j] = finish(e, to.c[at + j], j, at + j);
  }
}

// c (rows, cols) = a copy of a tile, or added to c: where a tile reaches beyond c. Not inlined, or
// gcc would not keep gemm_tile's accumulators in registers.
template <class T>
__attribute__((noinline)) void store_partial_tile(const T* tile, int64_t width, bool add, T* c,
                                                  int64_t pitch, int64_t rows, int64_t cols) {
  for (int64_t i = 0; i < rows; ++i, tile += width, c += pitch)
    for (int64_t j = 0; j < cols; j += kLanes<T>) {
      const int64_t left = min_of(kLanes<T>, cols - j);
      const Vec<T> sum = load(tile + j);
      store_first(c + j, add ? sum + load_first(c + j, left) : sum, left);
    }
}

// c (rows, cols) = a tile of M rows and V vectors, or as much of it as that is, or added to c; a
// and b are panels (M, depth) and (V vectors, depth).
template <class T, int M, int V>
void gemm_tile(int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t b_col,
               T* c, int64_t pitch, int64_t rows, int64_t cols, bool add) {
  constexpr int L = kLanes<T>;
  constexpr int kGroups = (M + 2) / 3;  // an address reaches three rows: p, p + row, p + 2 row
  Vec<T> acc[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[m][v] = Vec<T>{};
  const T* row[kGroups];
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) row[g] = a + 3 * g * a_row;
  for (int64_t p = 0; p < depth; ++p, b += b_col) {
    Vec<T> vectors[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) vectors[v] = load(b + v * L);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Vec<T> scale = broadcast(row[m / 3][m % 3 * a_row]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[m][v] += scale * vectors[v];
    }
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) row[g] += a_col;
  }
  if (rows < M || cols < V * L) {
    T tile[M * V * L];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) store(tile + (m * V + v) * L, acc[m][v]);
    return store_partial_tile(tile, V * L, add, c, pitch, min_of(rows, M), min_of(cols, V * L));
  }
  if (add) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[m][v] += load(c + m * pitch + v * L);
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(c + m * pitch + v * L, acc[m][v]);
}

template <class T>
using GemmTile = void (*)(int64_t, const T*, int64_t, int64_t, const T*, int64_t, T*, int64_t,
                          int64_t, int64_t, bool);

// The tile for `rows` rows, at most M, and `cols` columns: of the next even number of rows.
template <class T, int M = kGemmRows<T>>
GemmTile<T> gemm_tile_for(int64_t rows, int64_t cols) {
  if constexpr (M > 2)
    if (rows <= M - 2) return gemm_tile_for<T, M - 2>(rows, cols);
  return cols > kLanes<T> ? gemm_tile<T, M, 2> : gemm_tile<T, M, 1>;
}

// Rows and columns of c per work item, and the scratch one thread needs for it.
struct GemmBlock {
  int64_t rows, cols, depth, row_panels, scratch;  // elements of packed rows, and of all
};
inline Cuts row_blocks(int64_t rows, const GemmBlock& block) { return {rows, block.rows, 2}; }
template <class T>
Cuts col_blocks(int64_t cols, const GemmBlock& block) {
  return {cols, block.cols, kGemmCols<T>};
}
// About 168 x 256, which amortises packing, and less where that gives fewer than `wanted` blocks.
// Rows and columns never change a sum, so they may follow from the number of threads.
template <class T>
GemmBlock gemm_block(int64_t m, int64_t n, int64_t k, int64_t wanted) {
  constexpr int64_t MR = kGemmRows<T>, NR = kGemmCols<T>;
  const int64_t tiles[2] = {max_of(1, ceil_div(m, MR)), max_of(1, ceil_div(n, NR))};
  int64_t blocks[2] = {ceil_div(tiles[0], 168 / MR), ceil_div(tiles[1], max_of(1, 256 / NR))};
  while (blocks[0] * blocks[1] < wanted) {  // one more cut across the side with more tiles
    const int side = tiles[0] * blocks[1] > tiles[1] * blocks[0] ? 0 : 1;
    if (blocks[side] >= tiles[side]) break;
    ++blocks[side];
  }
  GemmBlock block;
  block.rows = ceil_div(max_of(1, ceil_div(m, 2)), blocks[0]) * 2;  // even blocks
  block.cols = ceil_div(tiles[1], blocks[1]) * NR;
  block.depth = ceil_div(ceil_div(max_of(k, 1), max_of(1, ceil_div(k, kGemmDepth))), 16) * 16;
  block.row_panels = ceil_div(block.rows, MR) * kGemmRowPitch<T> * block.depth;
  block.scratch = ceil_div(block.row_panels + block.cols * block.depth, 16) * 16;
  return block;
}

// Columns from `first` on of a b that is packed in blocks of the depth, of `count` columns in all
// with padding.
template <class T>
struct PackedColumns {
  T* data;
  int64_t count, first;
};

// c (rows, cols) = epilogue(a (rows, k) b (k, cols)); rows and cols within `block`. Where b is
// packed, its view says nothing.
template <class T>
void gemm_item(const GemmBlock& block, int64_t k, MatrixView<T> a, MatrixView<T> b,
               const GemmTarget<T>& c, T* scratch, PackedColumns<T> packed = {}) {
  const Cuts row_cuts(c.rows, kGemmRows<T>, 2);
  const Cuts col_cuts(c.cols, kGemmCols<T>, kGemmCols<T>);
  const Epilogue<T>& e = c.epilogue;
  const bool any = e.bias || e.relu || e.mask;
  int64_t k0 = 0;
  do {  // once for k = 0, too: c must be written
    const int64_t depth = min_of(block.depth, k - k0);
    const bool in_place = a.row == 1 ? col_cuts.pieces <= kInPlaceTiles : rows_in_place<T>(a.row);
    const auto rows =
        GemmPanels<T>(a.at(0, k0), row_cuts, 2, depth, kGemmRowPitch<T>, in_place, scratch).pack();
    const bool cols_in_place = !packed.data && b.col == 1 && row_cuts.pieces <= kInPlaceTiles;
    const GemmPanels<T> cols(b.at(k0, 0).transposed(), col_cuts, kLanes<T>, depth, kGemmCols<T>,
                             cols_in_place,
                             packed.data ? packed.data + k0 * packed.count + packed.first * depth
                                         : scratch + block.row_panels);
    if (!packed.data) cols.pack();
    const bool add = k0 > 0;
    k0 += depth;
    for (int64_t col = 0; col < col_cuts.pieces; ++col) {
      const int64_t j = col_cuts.at(col), width = col_cuts.size(col);
      const MatrixView<T> right = cols.at(col);
      for (int64_t row = 0; row < row_cuts.pieces; ++row) {
        const int64_t i = row_cuts.at(row), height = row_cuts.size(row);
        const MatrixView<T> left = rows.at(row);
        gemm_tile_for<T>(height, width)(depth, left.data, left.row, left.col, right.data, right.col,
                                        c.c + i * c.pitch + j, c.pitch, height, width, add);
        if (any && k0 >= k) finish_tile(c.at(i, j).at_most(height, width));
      }
    }
  } while (k0 < k);
}

// k is cut into `chunks` where c is small and k long. Each chunk sums into a c of its own in the
// workspace, at most 2^20 elements in all; the chunks are added in order.
struct GemmPlan {
  GemmBlock block;
  Cuts rows, cols;  // blocks of c
  int64_t chunks, depth;
};

template <class T>
bool cuts_depth(const GemmShape& s) {
  return s.batch == 1 && s.m * s.n > 0 && s.m * s.n <= 1 << 16 && s.k >= 4096;
}
// Blocks of c wanted for more threads than one: as many as have 4 us of work, up to four for each
// thread, or one for each that has 2 us.
template <class T>
int64_t wanted_blocks(const GemmShape& s, int threads) {
  if (threads == 1) return 1;
  const int64_t work = gemm_work<T>(s), per_thread = min_of(4, (work >> 16) / threads);
  return max_of(min_of(threads, work >> 15), per_thread * threads);
}

template <class T>
GemmPlan plan_gemm(const GemmShape& s, int threads) {
  int64_t chunks = 1, depth = s.k;
  if (cuts_depth<T>(s)) {
    chunks = min_of(min_of(64, s.k >> 10), (int64_t{1} << 20) / (s.m * s.n));
    depth = ceil_div(ceil_div(s.k, chunks), kGemmDepth) * kGemmDepth;
    chunks = ceil_div(s.k, depth);
  }
  const int64_t wanted = ceil_div(wanted_blocks<T>(s, threads), max_of(1, s.batch * chunks));
  const GemmBlock block = gemm_block<T>(s.m, s.n, depth, wanted);
  return {block, row_blocks(s.m, block), col_blocks<T>(s.n, block), chunks, depth};
}

template <class T>
int64_t packed_gemm_workspace(const GemmShape& s, int threads) {
  const GemmPlan p = plan_gemm<T>(s, threads);
  const int64_t partial = p.chunks > 1 ? p.chunks * ceil_div(s.m * s.n, 16) * 16 : 0;
  return (threads * p.block.scratch + partial) * static_cast<int64_t>(sizeof(T));
}

template <class T>
void packed_gemm(const Exec& exec, const GemmShape& s, const T* a, const T* b,
                 const Epilogue<T>& epilogue, T* c) {
  const GemmPlan p = plan_gemm<T>(s, exec.threads);
  const MatrixView<T> view_a = {a, s.trans_a ? 1 : s.k, s.trans_a ? s.m : 1};
  const MatrixView<T> view_b = {b, s.trans_b ? 1 : s.n, s.trans_b ? s.k : 1};
  T* scratch = static_cast<T*>(exec.workspace);
  T* partial = scratch + exec.threads * p.block.scratch;
  const int64_t partial_size = ceil_div(s.m * s.n, 16) * 16;
  const int64_t outer = s.batch * p.chunks;  // one of the two is 1
  const int64_t blocks = p.rows.pieces * p.cols.pieces;
  parallel_for(exec, outer * blocks, gemm_work<T>(s), [&](int64_t item, int thread) {
    const int64_t o = item / blocks, row = item / p.cols.pieces % p.rows.pieces;
    const int64_t col = item % p.cols.pieces;
    const int64_t i = p.rows.at(row), j = p.cols.at(col);
    const int64_t k0 = p.chunks > 1 ? o * p.depth : 0;
    MatrixView<T> at_a = view_a.at(i, k0), at_b = view_b.at(k0, j);
    GemmTarget<T> whole = {partial + o * partial_size, s.n, s.m, s.n, {}};
    if (p.chunks == 1) {
      at_a.data += o * s.stride_a;
      at_b.data += o * s.stride_b;
      whole.c = c + o * s.m * s.n;
      whole.epilogue = epilogue;
      if (epilogue.mask) whole.epilogue.mask += o * s.m * s.n;
    }
    gemm_item(p.block, min_of(p.depth, s.k - k0), at_a, at_b,
              whole.at(i, j).at_most(p.rows.size(row), p.cols.size(col)),
              scratch + thread * p.block.scratch);
  });
  if (p.chunks == 1) return;
  parallel_for(exec, s.m, s.m * s.n * p.chunks, [&](int64_t i, int) {
    for (int64_t j = 0; j < s.n; ++j) {
      T sum = partial[i * s.n + j];
      for (int64_t o = 1; o < p.chunks; ++o) sum += partial[o * partial_size + i * s.n + j];
      c[i * s.n + j] = finish(epilogue, sum, j, i * s.n + j);
    }
  });
}

}  // namespace
}  // namespace convgrad::cpu
