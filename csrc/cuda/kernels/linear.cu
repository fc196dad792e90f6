// Matrix products and column sums. All matrices are row-major.
#include "cuda/kernels/column_sum.cuh"

namespace convgrad::cuda {
namespace {

// ---- direct: one thread per element ----

template <class T>
void gemm_direct(const Exec& exec, const GemmShape& s, const T* a, const T* b,
                 const Epilogue<T>& epilogue, T* c) {
  for_each(exec, s.batch * s.m * s.n, [=] __device__(int64_t at) {
    const int64_t j = at % s.n, i = at / s.n % s.m, item = at / (s.n * s.m);
    const T* row = a + item * s.stride_a + (s.trans_a ? i : i * s.k);
    const T* column = b + item * s.stride_b + (s.trans_b ? j * s.k : j);
    const int64_t row_step = s.trans_a ? s.m : 1, column_step = s.trans_b ? 1 : s.n;
    Acc<T> total = 0;
    for (int64_t k0 = 0; k0 < s.k; k0 += kTermBlock) {
      const int64_t end = k0 + kTermBlock < s.k ? k0 + kTermBlock : s.k;
      Acc<T> sum = 0;
      for (int64_t k = k0; k < end; ++k)
        sum += Acc<T>(row[k * row_step]) * Acc<T>(column[k * column_step]);
      total += sum;
    }
    c[at] = T(finish(epilogue, total, j, at));
  });
}

// ---- the ops ----

int64_t gemm_workspace(const GemmShape&, int) { return 0; }

template <class T>
void column_sum(const Exec& exec, int64_t rows, int64_t c, const T* x, T* out) {
  column_sum_in<T>(exec, rows, c, x, static_cast<Acc<T>*>(exec.workspace), out);
}

template <class T>
void add(Ops<T>& table) {
  table.gemm_workspace = gemm_workspace;
  table.gemm = gemm_direct<T>;
  table.column_sum_workspace = column_sum_workspace<T>;
  table.column_sum = column_sum<T>;
}

}  // namespace

void add_linear(Ops<float>& table) { add(table); }
void add_linear(Ops<double>& table) { add(table); }

}  // namespace convgrad::cuda
