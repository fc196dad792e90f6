// Matrix products and column sums. All matrices are row-major.
#include "gemm.h"

namespace convgrad::cpu {
namespace {

// ---- sums of rows: column_sum, and vector times matrix ----

constexpr int64_t kSumBlock = 512;  // rows summed in registers before they are added to the rest

// out (V vectors) = the sum over `rows` rows of scale[r] * x[r * pitch ..]; scale null: all ones.
template <class T, int V>
void sum_row_vectors(int64_t rows, int64_t pitch, const T* scale, const T* x, T* out) {
  constexpr int L = kLanes<T>;
  for (int64_t r0 = 0; r0 < rows; r0 += kSumBlock) {
    Vec<T> acc[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[v] = Vec<T>{};
    const int64_t end = min_of(rows, r0 + kSumBlock);
    if (scale) {
      for (int64_t r = r0; r < end; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) acc[v] += broadcast(scale[r]) * load(x + r * pitch + v * L);
    } else {
      for (int64_t r = r0; r < end; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) acc[v] += load(x + r * pitch + v * L);
    }
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(out + v * L, r0 ? load(out + v * L) + acc[v] : acc[v]);
  }
  if (rows == 0)
    for (int i = 0; i < V * L; ++i) out[i] = 0;
}

// out (cols) = the sum over `rows` rows of scale[r] * x[r * pitch ..].
template <class T>
void sum_rows(int64_t rows, int64_t cols, int64_t pitch, const T* scale, const T* x, T* out) {
  constexpr int L = kLanes<T>;
  int64_t j = 0;
  for (; j + 8 * L <= cols; j += 8 * L) sum_row_vectors<T, 8>(rows, pitch, scale, x + j, out + j);
  for (; j + 2 * L <= cols; j += 2 * L) sum_row_vectors<T, 2>(rows, pitch, scale, x + j, out + j);
  for (; j + L <= cols; j += L) sum_row_vectors<T, 1>(rows, pitch, scale, x + j, out + j);
  for (; j < cols; ++j) {
    T total = 0;
    for (int64_t r0 = 0; r0 < rows; r0 += kSumBlock) {
      T sum = 0;
      for (int64_t r = r0; r < min_of(rows, r0 + kSumBlock); ++r)
        sum += scale ? scale[r] * x[r * pitch + j] : x[r * pitch + j];
      total += sum;
    }
    out[j] = total;
  }
}

// column_sum: chunks of rows, each summed into its own row of the workspace. Narrow rows are summed
// `fold` at a time as one wide row, whose parts are added at the end.
struct ColumnSumPlan {
  int64_t fold, wide, wide_rows, chunks, rows_per_chunk;
};
template <class T>
ColumnSumPlan plan_column_sum(int64_t rows, int64_t c) {
  const int64_t fold = max_of(1, 8 * kLanes<T> / max_of(c, 1));
  const int64_t wide = fold * c, wide_rows = rows / fold;
  const int64_t wanted = min_of(64, max_of(1, wide * wide_rows >> 15));
  const int64_t per_chunk = max_of(1, ceil_div(wide_rows, wanted));
  return {fold, wide, wide_rows, max_of(1, ceil_div(wide_rows, per_chunk)), per_chunk};
}

template <class T>
int64_t column_sum_workspace(int64_t rows, int64_t c, int) {
  const ColumnSumPlan p = plan_column_sum<T>(rows, c);
  return p.chunks * p.wide * static_cast<int64_t>(sizeof(T));
}

template <class T>
void column_sum(const Exec& exec, int64_t rows, int64_t c, const T* x, T* out) {
  const ColumnSumPlan p = plan_column_sum<T>(rows, c);
  T* partial = static_cast<T*>(exec.workspace);
  parallel_for(exec, p.chunks, rows * c, [&](int64_t chunk, int) {
    const int64_t begin = chunk * p.rows_per_chunk;
    sum_rows<T>(min_of(p.rows_per_chunk, p.wide_rows - begin), p.wide, p.wide, nullptr,
                x + begin * p.wide, partial + chunk * p.wide);
  });
  for (int64_t chunk = 1; chunk < p.chunks; ++chunk)
    for (int64_t i = 0; i < p.wide; ++i) partial[i] += partial[chunk * p.wide + i];
  for (int64_t i = 0; i < c; ++i) {
    T sum = partial[i];
    for (int64_t part = 1; part < p.fold; ++part) sum += partial[part * c + i];
    for (int64_t r = p.wide_rows * p.fold; r < rows; ++r) sum += x[r * c + i];
    out[i] = sum;
  }
}

// ---- matrix times vector ----

// out[r] = the dot product of x (n) and row r of R rows.
template <class T, int R>
void dots(int64_t n, const T* matrix, int64_t pitch, const T* x, T* out) {
  constexpr int L = kLanes<T>;
  constexpr int64_t kBlock = 4096;
  T total[R] = {};
  for (int64_t i0 = 0; i0 < n; i0 += kBlock) {
    const int64_t end = min_of(n, i0 + kBlock);
    Vec<T> acc[R][2];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = Vec<T>{};
    int64_t i = i0;
    for (; i + 2 * L <= end; i += 2 * L) {
      const Vec<T> lo = load(x + i), hi = load(x + i + L);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        acc[r][0] += lo * load(matrix + r * pitch + i);
        acc[r][1] += hi * load(matrix + r * pitch + i + L);
      }
    }
    T lanes[R][L];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store(lanes[r], acc[r][0] + acc[r][1]);
    for (int r = 0; r < R; ++r) {
      T sum = 0;
      for (int l = 0; l < L; ++l) sum += lanes[r][l];
      for (int64_t t = i; t < end; ++t) sum += x[t] * matrix[r * pitch + t];
      total[r] += sum;
    }
  }
  for (int r = 0; r < R; ++r) out[r] = total[r];
}

// c (m, 1) or (1, n): the operand that is a vector, the one that is a matrix, and whether the
// matrix's rows are summed (it is (k, count)) or multiplied with the vector (it is (count, k)).
template <class T>
void gemv(const Exec& exec, const GemmShape& s, const T* a, const T* b, const T* bias, T* c) {
  const bool row = s.m == 1;  // c is a row: b is the matrix
  const int64_t count = row ? s.n : s.m;
  const bool summed = row ? !s.trans_b : s.trans_a;
  const int64_t per_item = summed ? 8 * kLanes<T> : 16;
  const int64_t items = ceil_div(count, per_item);
  parallel_for(exec, s.batch * items, s.batch * count * s.k, [&](int64_t item, int) {
    const int64_t i = item / items, begin = item % items * per_item;
    const int64_t end = min_of(begin + per_item, count);
    const T* vector = row ? a + i * s.stride_a : b + i * s.stride_b;
    const T* matrix = row ? b + i * s.stride_b : a + i * s.stride_a;
    T* out = c + i * count;
    if (summed) {
      sum_rows<T>(s.k, end - begin, count, vector, matrix + begin, out + begin);
    } else {
      int64_t r = begin;
      for (; r + 4 <= end; r += 4) dots<T, 4>(s.k, matrix + r * s.k, s.k, vector, out + r);
      for (; r < end; ++r) dots<T, 1>(s.k, matrix + r * s.k, s.k, vector, out + r);
    }
    if (bias)
      for (int64_t r = begin; r < end; ++r) out[r] += bias[row ? r : 0];
  });
}

// ---- matrix times matrix ----

// k is cut into `chunks` where c has too few blocks to occupy many threads. Each chunk sums into a
// c of its own in the workspace: at most 2^20 elements in all.
struct GemmPlan {
  GemmBlock block;
  int64_t rows, cols;  // blocks of c
  int64_t chunks, depth;
};
template <class T>
GemmPlan plan_gemm(const GemmShape& s) {
  const GemmBlock block = gemm_block<T>(s.m, s.n, s.k);
  GemmPlan p = {block, ceil_div(s.m, block.rows), ceil_div(s.n, block.cols), 1, s.k};
  const int64_t blocks = s.batch * p.rows * p.cols;
  if (s.batch == 1 && blocks > 0 && blocks < 16 && s.k >= 4096) {
    const int64_t fit = (int64_t{1} << 20) / (s.m * s.n);
    const int64_t chunks = min_of(min_of(ceil_div(64, blocks), s.k >> 10), fit);
    if (chunks > 1) {
      p.depth = ceil_div(ceil_div(s.k, chunks), kGemmDepth) * kGemmDepth;
      p.chunks = ceil_div(s.k, p.depth);
    }
  }
  return p;
}

// A batch that shares b is one tall product.
GemmShape merged(GemmShape s) {
  if (s.batch > 1 && s.stride_b == 0 && !s.trans_a && s.stride_a == s.m * s.k) {
    s.m *= s.batch;
    s.batch = 1;
  }
  return s;
}

template <class T>
int64_t gemm_workspace(const GemmShape& shape, int threads) {
  const GemmShape s = merged(shape);
  if (s.m == 1 || s.n == 1) return 0;
  const GemmPlan p = plan_gemm<T>(s);
  const int64_t partial = p.chunks > 1 ? p.chunks * ceil_div(s.m * s.n, 16) * 16 : 0;
  return (threads * p.block.scratch + partial) * static_cast<int64_t>(sizeof(T));
}

template <class T>
void gemm(const Exec& exec, const GemmShape& shape, const T* a, const T* b, const T* bias, T* c) {
  const GemmShape s = merged(shape);
  if (s.m == 1 || s.n == 1) return gemv(exec, s, a, b, bias, c);
  const GemmPlan p = plan_gemm<T>(s);
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

template <class T>
void add(Ops<T>& table) {
  table.gemm_workspace = gemm_workspace<T>;
  table.gemm = gemm<T>;
  table.column_sum_workspace = column_sum_workspace<T>;
  table.column_sum = column_sum<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_linear(Ops<float>& table) { add(table); }
void add_linear(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
