// Matrix products and column sums. All matrices are row-major.
#include "column_sum.h"
#include "gemm.h"
#include "gemm_along_k.h"
#include "gemm_dots.h"

namespace convgrad::cpu {
namespace {

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
void gemv(const Exec& exec, const GemmShape& s, const T* a, const T* b, const Epilogue<T>& epilogue,
          T* c) {
  const bool row = s.m == 1;  // c is a row: b is the matrix
  const int64_t count = row ? s.n : s.m;
  const bool summed = row ? !s.trans_b : s.trans_a;
  const int64_t per_item = summed ? 8 * kLanes<T> : 16;
  const int64_t items = ceil_div(count, per_item);
  parallel_for(exec, s.batch * items, gemm_work<T>(s), [&](int64_t item, int) {
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
    for (int64_t r = begin; r < end; ++r)
      out[r] = finish(epilogue, out[r], row ? r : 0, i * count + r);
  });
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
  if (s.m == 1 || s.n == 1 || dots_pay<T>(s)) return 0;
  return is_along_k<T>(s) ? along_k_workspace<T>(s, threads) : packed_gemm_workspace<T>(s, threads);
}

template <class T>
void gemm(const Exec& exec, const GemmShape& shape, const T* a, const T* b,
          const Epilogue<T>& epilogue, T* c) {
  const GemmShape s = merged(shape);
  if (s.m == 1 || s.n == 1) return gemv(exec, s, a, b, epilogue, c);
  if (dots_pay<T>(s)) return dot_gemm(exec, s, a, b, epilogue, c);
  if constexpr (__is_same(T, float))
    if (is_along_k<T>(s)) return along_k_gemm(exec, s, a, b, epilogue, c);
  packed_gemm(exec, s, a, b, epilogue, c);
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
