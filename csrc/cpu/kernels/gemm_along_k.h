// Products whose operands both lie along k, a (m, k) and b (n, k), as a linear layer's: one is read
// in place, row by row, the other packed once, into panels of columns. Where a is the cheaper one
// to pack, c' = b a' is computed, and its blocks are transposed into c.
#pragma once
#include "gemm.h"
#include "row_tile.h"

namespace convgrad::cpu {
namespace {

// Not for double, nor where the sum is cut.
template <class T>
bool is_along_k(const GemmShape& s) {
  return __is_same(T, float) && !s.trans_a && s.trans_b && !cuts_depth<T>(s) &&
         s.batch * s.m * s.n * s.k > 0;
}

// The product as computed: of `rows` rows by `cols` columns, those of c or, swapped, of c'.
struct AlongKPlan {
  bool swapped;
  int64_t rows, cols;
  GemmBlock block;
  Cuts row_blocks, col_blocks;
  int64_t panels, packed,
      scratch;  // panels of columns; elements packed per product, and per thread
};

// Cycles times 2 lanes / k, as measured on Zen 5: lanes multiplied, a core doing two vectors at a
// time, 0.3 per element packed, and 1 per element transposed.
template <class T>
int64_t along_k_cost(const GemmShape& s, bool swapped) {
  constexpr int64_t L = kLanes<T>;
  const int64_t rows = swapped ? s.n : s.m, cols = swapped ? s.m : s.n;
  return rows * ceil_div(cols, L) * L + 2 * L * cols * 3 / 10 +
         (swapped ? 2 * L * rows * cols / s.k : 0);
}

template <class T>
AlongKPlan plan_along_k(const GemmShape& s, int threads) {
  const bool swapped = along_k_cost<T>(s, true) < along_k_cost<T>(s, false);
  const int64_t rows = swapped ? s.n : s.m, cols = swapped ? s.m : s.n;
  const int64_t wanted = ceil_div(wanted_blocks<T>(s, threads), s.batch);
  const GemmBlock block = gemm_block<T>(rows, cols, s.k, wanted);
  const int64_t panels = ceil_div(cols, kGemmCols<T>);
  return {swapped,
          rows,
          cols,
          block,
          row_blocks(rows, block),
          col_blocks<T>(cols, block),
          panels,
          panels * kGemmCols<T> * s.k,
          block.scratch + (swapped ? block.rows * block.cols : 0)};
}

template <class T>
int64_t along_k_workspace(const GemmShape& s, int threads) {
  const AlongKPlan p = plan_along_k<T>(s, threads);
  return (s.batch * p.packed + threads * p.scratch) * static_cast<int64_t>(sizeof(T));
}

// src (batch, cols, k) -> panels of columns, in blocks of the depth.
inline void pack_along_k(const Exec& exec, const GemmShape& s, const AlongKPlan& p,
                         const float* src, int64_t stride, float* packed) {
  constexpr int64_t NR = kGemmCols<float>;
  const int64_t depths = ceil_div(s.k, p.block.depth), items = depths * p.panels;
  parallel_for(exec, s.batch * items, s.batch * p.cols * s.k, [&](int64_t item, int) {
    const int64_t o = item / items, k0 = item / p.panels % depths * p.block.depth;
    const int64_t depth = min_of(p.block.depth, s.k - k0), i = item % p.panels * NR;
    pack_rows(src + o * stride + i * s.k + k0, s.k, min_of(NR, p.cols - i), depth, NR,
              packed + o * p.packed + k0 * p.panels * NR + i * depth);
  });
}

// c = epilogue(the transpose of `tile` (c.cols, c.rows)), whose rows are `pitch` apart and readable
// as whole vectors.
inline void finish_transposed(const float* tile, int64_t pitch, const GemmTarget<float>& c) {
  constexpr int L = kLanes<float>;
  const Epilogue<float>& e = c.epilogue;
  for (int64_t j = 0; j < c.cols; j += L)
    for (int64_t i = 0; i < c.rows; i += L) {
      const int64_t rows = min_of(L, c.rows - i), cols = min_of(L, c.cols - j);
      Vec<float> v[L];
#pragma GCC unroll 16
      for (int r = 0; r < L; ++r) v[r] = load(tile + (j + min_of(r, cols - 1)) * pitch + i);
      transpose_to_lanes(v);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = (i + r) * c.pitch + j;
        Vec<float> out = v[r];
        if (e.bias) out += load_first(e.bias + j, cols);
        if (e.relu) out = out < 0.0f ? Vec<float>{} : out;
        if (e.mask) out = load_first(e.mask + at, cols) <= 0.0f ? Vec<float>{} : out;
        store_first(c.c + at, out, cols);
      }
    }
}

inline void along_k_gemm(const Exec& exec, const GemmShape& s, const float* a, const float* b,
                         const Epilogue<float>& epilogue, float* c) {
  const AlongKPlan p = plan_along_k<float>(s, exec.threads);
  const float *in_rows = p.swapped ? b : a, *in_cols = p.swapped ? a : b;
  const int64_t row_stride = p.swapped ? s.stride_b : s.stride_a;
  float* packed = static_cast<float*>(exec.workspace);
  float* scratch = packed + s.batch * p.packed;
  pack_along_k(exec, s, p, in_cols, p.swapped ? s.stride_a : s.stride_b, packed);
  const int64_t items = p.row_blocks.pieces * p.col_blocks.pieces;
  parallel_for(exec, s.batch * items, gemm_work<float>(s), [&](int64_t item, int thread) {
    const int64_t o = item / items, row = item / p.col_blocks.pieces % p.row_blocks.pieces;
    const int64_t col = item % p.col_blocks.pieces;
    const int64_t i = p.row_blocks.at(row), rows = p.row_blocks.size(row);
    const int64_t j = p.col_blocks.at(col), cols = p.col_blocks.size(col);
    float* own = scratch + thread * p.scratch;
    GemmTarget<float> target = {c + o * s.m * s.n, s.n, s.m, s.n, epilogue};
    if (epilogue.mask) target.epilogue.mask += o * s.m * s.n;
    const auto multiply = [&](const GemmTarget<float>& to) {
      gemm_item(p.block, s.k, {in_rows + o * row_stride + i * s.k, s.k, 1}, {}, to, own,
                {packed + o * p.packed, p.panels * kGemmCols<float>, j});
    };
    if (!p.swapped) return multiply(target.at(i, j).at_most(rows, cols));
    target = target.at(j, i).at_most(cols, rows);
    float* tile = own + p.block.scratch;
    multiply({tile, p.block.cols, rows, cols, {}});
    finish_transposed(tile, p.block.cols, target);
  });
}

}  // namespace
}  // namespace convgrad::cpu
