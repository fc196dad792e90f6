// Matrix products from panels: c (m, n) = a (m, k) b (k, n), any of them transposed.
//
// The product is cut into blocks of c; one block is one work item, computed by one thread: a in
// panels of up to kGemmRows rows and b in panels of two vectors. Panels are read in place where
// that is as fast, else from packed copies in the thread's own scratch, [k][rows] or [k][2 lanes].
// Along k the sum runs in blocks of up to kGemmDepth, each summed in registers and then added to c,
// so the order of every sum follows from k alone.
#pragma once
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

// The largest tile: 14 x 2 accumulators of 32 vector registers, or 6 x 2 of 16.
template <class T>
constexpr int kGemmRows = kVectorBytes == 64 && sizeof(T) == 4 ? 14 : 6;
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

// dst[j * W + i] = src[j * pitch + i]: whole columns of a panel.
template <class T, int64_t W>
void pack_columns(const T* src, int64_t pitch, int64_t depth, T* dst) {
  for (int64_t j = 0; j < depth; ++j)
    __builtin_memcpy(dst + j * W, src + j * pitch, static_cast<size_t>(W) * sizeof(T));
}

// dst[j * width + i] = src(i, j) for i < used, j < depth; zero for used <= i < width.
template <class T>
void pack_panel(MatrixView<T> src, int64_t used, int64_t depth, int64_t width, T* dst) {
  if (src.row == 1) {  // a column of the panel is contiguous
    if (used == kGemmCols<T> && width == used)
      return pack_columns<T, kGemmCols<T>>(src.data, src.col, depth, dst);
    if (used == kGemmRows<T> && width == used)
      return pack_columns<T, kGemmRows<T>>(src.data, src.col, depth, dst);
    for (int64_t j = 0; j < depth; ++j, dst += width) {
      const T* from = src.data + j * src.col;
      for (int64_t i = 0; i < used; ++i) dst[i] = from[i];
      for (int64_t i = used; i < width; ++i) dst[i] = 0;
    }
    return;
  }
  int64_t i = 0;
  while (used >= 4 && i < used) {  // the last four rows may repeat some
    i = min_of(i, used - 4);
    pack_four_rows(src.data + i * src.row, src.row, depth, width, dst + i);
    i += 4;
  }
  for (; i < width; ++i)
    for (int64_t j = 0; j < depth; ++j)
      dst[j * width + i] = i < used ? src.data[i * src.row + j] : T(0);
}

// The panels of `count` rows of src, `width` at a time, the last one `pad_to` a multiple of that.
// Where columns are contiguous they are packed some at a time into all panels: one panel after
// another would read each cache line again for every panel.
template <class T>
void pack_block(MatrixView<T> src, int64_t count, int64_t depth, int64_t width, int64_t pad_to,
                T* dst) {
  const int64_t step = src.row == 1 ? 16 : max_of(depth, 1);
  for (int64_t j = 0; j < depth; j += step)
    for (int64_t i = 0; i < count; i += width) {
      const int64_t used = min_of(width, count - i), panel = ceil_div(used, pad_to) * pad_to;
      pack_panel(src.at(i, j), used, min_of(step, depth - j), panel, dst + i * depth + j * panel);
    }
}

// Whether tiles may read rows of such a pitch side by side. Rows a large power of two apart share
// few lines of the L1 cache, and would drive each other out.
template <class T>
bool rows_in_place(int64_t pitch) {
  return pitch * int64_t{sizeof(T)} % 2048 != 0;
}

// The panels of `count` rows of src, `width` at a time, of `depth` columns: views of src itself if
// `in_place`, except for a last one that is no multiple of pad_to rows, or else packed copies.
template <class T>
struct GemmPanels {
  MatrixView<T> src;
  int64_t count, depth, width, last, packed_from;  // last: the last panel's width
  T* packed;

  GemmPanels(MatrixView<T> source, int64_t rows, int64_t columns, int64_t panel, int64_t pad,
             bool in_place, T* scratch)
      : src(source),
        count(rows),
        depth(columns),
        width(panel),
        last(ceil_div((rows - 1) % panel + 1, pad) * pad),
        packed_from(!in_place     ? 0
                    : count % pad ? count / width * width
                                  : count),
        packed(scratch) {
    if (packed_from < count)
      pack_block(src.at(packed_from, 0), count - packed_from, depth, width, pad, packed);
  }
  MatrixView<T> at(int64_t i) const {
    if (i < packed_from) return src.at(i, 0);
    return {packed + (i - packed_from) * depth, 1, i + width <= count ? width : last};
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
  int64_t rows, cols, depth, scratch;  // scratch: elements
};
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
  block.rows = ceil_div(tiles[0], blocks[0]) * MR;  // even blocks
  block.cols = ceil_div(tiles[1], blocks[1]) * NR;
  block.depth = ceil_div(k, max_of(1, ceil_div(k, kGemmDepth)));
  block.scratch = ceil_div((block.rows + block.cols) * block.depth + 32, 16) * 16;
  return block;
}

// c (rows, cols) = epilogue(a (rows, k) b (k, cols)); rows and cols within `block`.
template <class T>
void gemm_item(const GemmBlock& block, int64_t k, MatrixView<T> a, MatrixView<T> b, GemmTarget<T> c,
               T* scratch) {
  constexpr int64_t MR = kGemmRows<T>, NR = kGemmCols<T>;
  // Even tiles: 16 rows are 8 + 8, not 14 + 2.
  const int64_t tiles = ceil_div(c.rows, MR), panels = ceil_div(c.cols, NR);
  const int64_t height = ceil_div(ceil_div(c.rows, max_of(tiles, 1)), 2) * 2;
  const Epilogue<T>& e = c.epilogue;
  const bool any = e.bias || e.relu || e.mask;
  int64_t k0 = 0;
  do {  // once for k = 0, too: c must be written
    const int64_t depth = min_of(block.depth, k - k0);
    const bool in_place = a.row == 1 ? panels <= kInPlaceTiles : rows_in_place<T>(a.row);
    const GemmPanels<T> rows(a.at(0, k0), c.rows, depth, height, 2, in_place, scratch);
    const GemmPanels<T> cols(b.at(k0, 0).transposed(), c.cols, depth, NR, kLanes<T>,
                             b.col == 1 && tiles <= kInPlaceTiles,
                             scratch + ceil_div(block.rows * block.depth + 16, 16) * 16);
    const bool add = k0 > 0;
    k0 += depth;
    for (int64_t j = 0; j < c.cols; j += NR) {
      const int64_t used = min_of(NR, c.cols - j);
      const MatrixView<T> col = cols.at(j);
      const GemmTile<T> whole = gemm_tile_for<T>(height, used);
      for (int64_t i = 0; i < c.rows; i += height) {
        const int64_t left = c.rows - i;
        const MatrixView<T> row = rows.at(i);
        const GemmTile<T> tile = left >= height ? whole : gemm_tile_for<T>(left, used);
        tile(depth, row.data, row.row, row.col, col.data, col.col, c.c + i * c.pitch + j, c.pitch,
             min_of(height, left), used, add);
        if (any && k0 >= k) finish_tile(c.at(i, j).at_most(height, used));
      }
    }
  } while (k0 < k);
}

// k is cut into `chunks` where c is small and k long. Each chunk sums into a c of its own in the
// workspace, at most 2^20 elements in all; the chunks are added in order.
struct GemmPlan {
  GemmBlock block;
  int64_t rows, cols;  // blocks of c
  int64_t chunks, depth;
};
template <class T>
GemmPlan plan_gemm(const GemmShape& s, int threads) {
  GemmPlan p{};
  p.chunks = 1;
  p.depth = s.k;
  if (s.batch == 1 && s.m * s.n > 0 && s.m * s.n <= 1 << 16 && s.k >= 4096) {
    const int64_t chunks = min_of(min_of(64, s.k >> 10), (int64_t{1} << 20) / (s.m * s.n));
    p.depth = ceil_div(ceil_div(s.k, chunks), kGemmDepth) * kGemmDepth;
    p.chunks = ceil_div(s.k, p.depth);
  }
  const int64_t wanted = min_of(4 * threads, gemm_work<T>(s) >> 15);
  p.block = gemm_block<T>(s.m, s.n, p.depth, ceil_div(wanted, max_of(1, s.batch * p.chunks)));
  p.rows = ceil_div(s.m, p.block.rows);
  p.cols = ceil_div(s.n, p.block.cols);
  return p;
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
  parallel_for(exec, outer * p.rows * p.cols, gemm_work<T>(s), [&](int64_t item, int thread) {
    const int64_t o = item / (p.rows * p.cols);
    const int64_t i = item / p.cols % p.rows * p.block.rows, j = item % p.cols * p.block.cols;
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
              whole.at(i, j).at_most(p.block.rows, p.block.cols),
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
