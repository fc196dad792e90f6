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

// dst[j * width + i] = src(i, j) for i < used, j < depth; zero for used <= i < width.
template <class T>
void pack_panel(MatrixView<T> src, int64_t used, int64_t depth, int64_t width, T* dst) {
  if (src.row == 1) {  // a column of the panel is contiguous
    for (int64_t j = 0; j < depth; ++j, dst += width) {
      const T* from = src.data + j * src.col;
      for (int64_t i = 0; i < used; ++i) dst[i] = from[i];
      for (int64_t i = used; i < width; ++i) dst[i] = 0;
    }
    return;
  }
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  typedef T FourAnywhere
      __attribute__((vector_size(4 * sizeof(T)), aligned(alignof(T)), __may_alias__));
  const auto get = [](const T* p) -> Four { return *reinterpret_cast<const FourAnywhere*>(p); };
  const auto put = [](T* p, Four v) { *reinterpret_cast<FourAnywhere*>(p) = v; };
  int64_t i = 0;
  for (; i + 4 <= used; i += 4) {  // four rows, transposed four columns at a time
    const T* r0 = src.data + i * src.row;
    const T *r1 = r0 + src.row, *r2 = r1 + src.row, *r3 = r2 + src.row;
    T* to = dst + i;
    int64_t j = 0;
    for (; j + 4 <= depth; j += 4) {
      const Four a = get(r0 + j), b = get(r1 + j), c = get(r2 + j), d = get(r3 + j);
      const Four ab_lo = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      const Four ab_hi = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Four cd_lo = __builtin_shufflevector(c, d, 0, 4, 1, 5);
      const Four cd_hi = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      put(to + j * width, __builtin_shufflevector(ab_lo, cd_lo, 0, 1, 4, 5));
      put(to + (j + 1) * width, __builtin_shufflevector(ab_lo, cd_lo, 2, 3, 6, 7));
      put(to + (j + 2) * width, __builtin_shufflevector(ab_hi, cd_hi, 0, 1, 4, 5));
      put(to + (j + 3) * width, __builtin_shufflevector(ab_hi, cd_hi, 2, 3, 6, 7));
    }
    for (; j < depth; ++j) {
      T* out = to + j * width;
      out[0] = r0[j], out[1] = r1[j], out[2] = r2[j], out[3] = r3[j];
    }
  }
  for (; i < width; ++i)
    for (int64_t j = 0; j < depth; ++j)
      dst[j * width + i] = i < used ? src.data[i * src.row + j] : T(0);
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
template <class T>
GemmBlock gemm_block(int64_t m, int64_t n, int64_t k) {
  constexpr int64_t NR = kGemmCols<T>;
  // 96 x 256 amortises packing; smaller blocks where there would be too few for many threads.
  int64_t rows = 16 * kGemmRows, cols = max_of(256, NR);
  while (rows > 4 * kGemmRows && ceil_div(m, rows) * ceil_div(n, cols) < 16) {
    if (cols > 4 * NR)
      cols /= 2;
    else
      rows /= 2;
  }
  rows = min_of(rows, max_of(m, 1));
  cols = min_of(cols, max_of(ceil_div(n, NR) * NR, NR));
  const int64_t depth = min_of(k, kGemmDepth);
  const int64_t a_size = ceil_div(rows * depth, 16) * 16;  // whole cache lines
  return {rows, cols, a_size + ceil_div(cols * depth, 16) * 16};
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
    for (int64_t i = 0; i < rows; i += MR)
      pack_panel(a.at(i, k0), min_of(MR, rows - i), depth, min_of(MR, rows - i),
                 packed_a + i * depth);
    for (int64_t j = 0; j < cols; j += NR)
      pack_panel(b.at(k0, j).transposed(), min_of(NR, cols - j), depth, NR, packed_b + j * depth);
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

}  // namespace
}  // namespace convgrad::cpu
