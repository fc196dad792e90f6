// Matrix products from packed panels: c (m, n) = a (m, k) b (k, n), any of them transposed.
//
// The product is cut into blocks of c; one block is one work item, computed by one thread from its
// own packed copies: a in panels of kGemmRows rows, [k][rows], and b in panels of two vectors,
// [k][2 lanes]. Along k the sum runs in blocks of kGemmDepth, each summed in registers and then
// added to c, so the order of every sum follows from k alone.
#pragma once
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

constexpr int kGemmRows = 6;         // 6 x 2 accumulators of 16 vector registers
constexpr int64_t kGemmDepth = 256;  // k per packed block: a panel pair (22 KB) stays in L1
template <class T>
constexpr int64_t kGemmCols = 2 * kLanes<T>;

// Element (i, j) lies at data[i * row + j * col]; one of the two strides is 1.
template <class T>
struct MatrixView {
  const T* data;
  int64_t row, col;
  MatrixView at(int64_t i, int64_t j) const { return {data + i * row + j * col, row, col}; }
  MatrixView transposed() const { return {data, col, row}; }
};

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
    if (used == kGemmRows && width == used)
      return pack_columns<T, kGemmRows>(src.data, src.col, depth, dst);
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

// Where one tile of c goes: c = init + product, init is c itself, or a bias row, or zero.
template <class T>
struct GemmTarget {
  T* c;
  int64_t pitch, cols;  // cols of the tile that exist
  const T* bias;        // of the tile's first column; null: none
  bool add;             // to what c holds
};

// One tile of M rows and V vectors from panels a [depth][M] and b [depth][b_pitch].
template <class T, int M, int V>
void gemm_tile(int64_t depth, const T* a, const T* b, const GemmTarget<T>& to) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[m][v] = Vec<T>{};
  for (int64_t p = 0; p < depth; ++p, a += M, b += kGemmCols<T>) {
    Vec<T> row[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) row[v] = load(b + v * L);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Vec<T> scale = broadcast(a[m]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) acc[m][v] += scale * row[v];
    }
  }
  if (to.cols == V * L) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        T* c = to.c + m * to.pitch + v * L;
        Vec<T> sum = acc[m][v];
        if (to.add) sum += load(c);
        if (to.bias) sum += load(to.bias + v * L);
        store(c, sum);
      }
    return;
  }
  T tile[M * V * L];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(tile + (m * V + v) * L, acc[m][v]);
  for (int m = 0; m < M; ++m)
    for (int64_t i = 0; i < to.cols; ++i) {
      T sum = tile[m * V * L + i];
      if (to.add) sum += to.c[m * to.pitch + i];
      if (to.bias) sum += to.bias[i];
      to.c[m * to.pitch + i] = sum;
    }
}

template <class T>
using GemmTile = void (*)(int64_t, const T*, const T*, const GemmTarget<T>&);

// The tile for `rows` rows and `cols` columns, 1 <= rows <= kGemmRows, 1 <= cols <= kGemmCols.
template <class T>
GemmTile<T> choose_gemm_tile(int64_t rows, int64_t cols) {
  static constexpr GemmTile<T> kTiles[kGemmRows][2] = {
      {gemm_tile<T, 1, 1>, gemm_tile<T, 1, 2>}, {gemm_tile<T, 2, 1>, gemm_tile<T, 2, 2>},
      {gemm_tile<T, 3, 1>, gemm_tile<T, 3, 2>}, {gemm_tile<T, 4, 1>, gemm_tile<T, 4, 2>},
      {gemm_tile<T, 5, 1>, gemm_tile<T, 5, 2>}, {gemm_tile<T, 6, 1>, gemm_tile<T, 6, 2>}};
  return kTiles[rows - 1][cols > kLanes<T>];
}

// Rows and columns of c per work item, and the scratch one thread needs for it.
struct GemmBlock {
  int64_t rows, cols, scratch;  // scratch: elements
};
// About 96 x 256, which amortises packing, and less where that gives fewer than `wanted` blocks.
// The block size never changes a sum, so it may follow from the number of threads.
template <class T>
GemmBlock gemm_block(int64_t m, int64_t n, int64_t k, int64_t wanted) {
  constexpr int64_t MR = kGemmRows, NR = kGemmCols<T>;
  int64_t rows = 16 * MR, cols = max_of(256, NR);
  while (ceil_div(m, rows) * ceil_div(n, cols) < wanted && cols > 4 * NR) cols /= 2;
  while (ceil_div(m, rows) * ceil_div(n, cols) < wanted && rows > 4 * MR) rows /= 2;
  rows = ceil_div(max_of(m, 1), ceil_div(max_of(m, 1), rows));  // even blocks, of whole tiles
  rows = ceil_div(rows, MR) * MR;
  cols = min_of(cols, max_of(ceil_div(n, NR) * NR, NR));
  const int64_t depth = min_of(k, kGemmDepth);
  return {rows, cols, ceil_div((rows + cols) * depth + 16, 16) * 16};
}

// c (rows, cols; pitch) = bias + a (rows, k) b (k, cols), or added to c; rows and cols within
// `block`.
template <class T>
void gemm_item(const GemmBlock& block, int64_t rows, int64_t cols, int64_t k, MatrixView<T> a,
               MatrixView<T> b, const T* bias, T* c, int64_t pitch, T* scratch) {
  constexpr int64_t MR = kGemmRows, NR = kGemmCols<T>;
  T* packed_a = scratch;
  T* packed_b = scratch + ceil_div(block.rows * min_of(k, kGemmDepth), 16) * 16;
  int64_t k0 = 0;
  do {  // once for k = 0, too: c must be written
    const int64_t depth = min_of(kGemmDepth, k - k0);
    pack_block(a.at(0, k0), rows, depth, MR, 1, packed_a);
    pack_block(b.at(k0, 0).transposed(), cols, depth, NR, NR, packed_b);
    const bool last = k0 + depth >= k;
    for (int64_t j = 0; j < cols; j += NR)
      for (int64_t i = 0; i < rows; i += MR) {
        const int64_t tile_rows = min_of(MR, rows - i), tile_cols = min_of(NR, cols - j);
        const GemmTarget<T> to = {c + i * pitch + j, pitch, tile_cols,
                                  last && bias ? bias + j : nullptr, k0 > 0};
        choose_gemm_tile<T>(tile_rows, tile_cols)(depth, packed_a + i * depth, packed_b + j * depth,
                                                  to);
      }
    k0 += kGemmDepth;
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
  const int64_t wanted = threads > 1 ? ceil_div(4 * threads, max_of(1, s.batch * p.chunks)) : 1;
  p.block = gemm_block<T>(s.m, s.n, p.depth, wanted);
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
void packed_gemm(const Exec& exec, const GemmShape& s, const T* a, const T* b, const T* bias,
                 T* c) {
  const GemmPlan p = plan_gemm<T>(s, exec.threads);
  const MatrixView<T> view_a = {a, s.trans_a ? 1 : s.k, s.trans_a ? s.m : 1};
  const MatrixView<T> view_b = {b, s.trans_b ? 1 : s.n, s.trans_b ? s.k : 1};
  T* scratch = static_cast<T*>(exec.workspace);
  T* partial = scratch + exec.threads * p.block.scratch;
  const int64_t partial_size = ceil_div(s.m * s.n, 16) * 16;
  const int64_t outer = s.batch * p.chunks;  // one of the two is 1
  const int64_t work = s.batch * s.m * s.n * max_of(s.k, 1);
  parallel_for(exec, outer * p.rows * p.cols, work, [&](int64_t item, int thread) {
    const int64_t o = item / (p.rows * p.cols);
    const int64_t i = item / p.cols % p.rows * p.block.rows, j = item % p.cols * p.block.cols;
    const int64_t k0 = p.chunks > 1 ? o * p.depth : 0;
    MatrixView<T> at_a = view_a.at(i, k0), at_b = view_b.at(k0, j);
    T* out = p.chunks > 1 ? partial + o * partial_size : c + o * s.m * s.n;
    if (p.chunks == 1) {
      at_a.data += o * s.stride_a;
      at_b.data += o * s.stride_b;
    }
    gemm_item(p.block, min_of(p.block.rows, s.m - i), min_of(p.block.cols, s.n - j),
              min_of(p.depth, s.k - k0), at_a, at_b, bias && p.chunks == 1 ? bias + j : nullptr,
              out + i * s.n + j, s.n, scratch + thread * p.block.scratch);
  });
  if (p.chunks == 1) return;
  parallel_for(exec, s.m, s.m * s.n * p.chunks, [&](int64_t i, int) {
    for (int64_t j = 0; j < s.n; ++j) {
      T sum = partial[i * s.n + j];
      for (int64_t o = 1; o < p.chunks; ++o) sum += partial[o * partial_size + i * s.n + j];
      c[i * s.n + j] = bias ? sum + bias[j] : sum;
    }
  });
}

}  // namespace
}  // namespace convgrad::cpu
