// Sums over the rows of a matrix x (rows, c) -> out (c): chunks of rows, each summed into its own
// row of the workspace, which a second kernel adds up in order. All bounds follow from the shape.
#pragma once
#include "cuda/kernels/finish.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kSumThreads = 256;
constexpr int64_t kSumChunks = 132 * 2;        // at most, for each block of columns
constexpr int64_t kSumLeastRowsPerThread = 8;  // otherwise a chunk costs more than it saves

// A block of threads is `lanes` rows of `columns` columns; lane l of a chunk sums its rows l, l +
// lanes, ... Then the lanes' sums are added in order.
struct ColumnSumPlan {
  int64_t columns, column_blocks, lanes, chunks, rows_per_chunk;
};
inline ColumnSumPlan plan_column_sum(int64_t rows, int64_t c) {
  ColumnSumPlan p;
  p.columns = std::max<int64_t>(1, std::min<int64_t>(c, kSumThreads));
  p.column_blocks = ceil_div(c, p.columns);
  p.lanes = kSumThreads / p.columns;
  const int64_t wanted = ceil_div(rows, p.lanes * kSumLeastRowsPerThread);
  p.chunks = std::max<int64_t>(1, std::min(wanted, kSumChunks));
  p.rows_per_chunk = ceil_div(rows, p.chunks);
  return p;
}

template <class T>
int64_t column_sum_workspace(int64_t rows, int64_t c, int) {
  return plan_column_sum(rows, c).chunks * c * int64_t(sizeof(Acc<T>));
}

template <class T>
struct ColumnSumShared {
  Acc<T> sums[kSumThreads];
};

// Block (column block, chunk): partial[chunk][column].
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    column_sum_chunk(ColumnSumPlan p, int64_t rows, int64_t c, const T* x, Acc<T>* partial) {
  auto& s = shared<ColumnSumShared<T>>();
  const int64_t lane = threadIdx.x / p.columns;
  const int64_t column = blockIdx.x * p.columns + threadIdx.x % p.columns;
  const int64_t begin = blockIdx.y * p.rows_per_chunk;
  const int64_t end = begin + p.rows_per_chunk < rows ? begin + p.rows_per_chunk : rows;
  Acc<T> total = 0;
  if (lane < p.lanes && column < c)
    for (int64_t r0 = begin + lane; r0 < end; r0 += kTermBlock * p.lanes) {
      const int64_t stop = r0 + kTermBlock * p.lanes < end ? r0 + kTermBlock * p.lanes : end;
      Acc<T> sum = 0;
      for (int64_t r = r0; r < stop; r += p.lanes) sum += Acc<T>(x[r * c + column]);
      total += sum;
    }
  s.sums[threadIdx.x] = total;
  __syncthreads();
  if (lane > 0 || column >= c) return;
  for (int64_t l = 1; l < p.lanes; ++l) total += s.sums[l * p.columns + threadIdx.x];
  partial[blockIdx.y * c + column] = total;
}

// out[i] = the sum of part[chunk * pitch + i] over `chunks`, in order. The parts are few; in
// double, adding them costs no accuracy.
template <class T>
void sum_chunks(const Exec& exec, int64_t chunks, int64_t pitch, int64_t n, const Acc<T>* part,
                T* out) {
  for_each(exec, n, [=] __device__(int64_t i) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += double(part[chunk * pitch + i]);
    out[i] = T(sum);
  });
}

// `partial`: column_sum_workspace bytes.
template <class T>
void column_sum_in(const Exec& exec, int64_t rows, int64_t c, const T* x, Acc<T>* partial, T* out) {
  const ColumnSumPlan p = plan_column_sum(rows, c);
  launch(exec, column_sum_chunk<T>, dim3(unsigned(p.column_blocks), unsigned(p.chunks)),
         dim3(kSumThreads), sizeof(ColumnSumShared<T>), p, rows, c, x, partial);
  sum_chunks<T>(exec, p.chunks, c, c, partial, out);
}

}  // namespace
}  // namespace convgrad::cuda
