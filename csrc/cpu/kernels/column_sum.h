// Sums over the rows of a matrix, in blocks whose bounds follow from the shape alone.
#pragma once
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

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
  // The parts are few; in double, adding them costs no accuracy.
  for (int64_t i = 0; i < c; ++i) {
    double sum = 0;
    for (int64_t part = 0; part < p.chunks * p.fold; ++part) sum += partial[part * c + i];
    for (int64_t r = p.wide_rows * p.fold; r < rows; ++r) sum += x[r * c + i];
    out[i] = static_cast<T>(sum);
  }
}

}  // namespace
}  // namespace convgrad::cpu
