// Matrix products and column sums. All matrices are row-major.
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

int64_t gemm_workspace(const GemmShape&, int) { return 0; }

template <class T>
void gemm_row(const GemmShape& s, int64_t m, const T* a, const T* b, const T* bias, T* c) {
  for (int64_t n = 0; n < s.n; ++n) c[n] = bias ? bias[n] : T(0);
  for (int64_t k = 0; k < s.k; ++k) {
    const T scale = s.trans_a ? a[k * s.m + m] : a[m * s.k + k];
    for (int64_t n = 0; n < s.n; ++n) c[n] += scale * (s.trans_b ? b[n * s.k + k] : b[k * s.n + n]);
  }
}

template <class T>
void gemm(const Exec& exec, const GemmShape& s, const T* a, const T* b, const T* bias, T* c) {
  parallel_for(exec, s.batch * s.m, s.batch * s.m * s.n * s.k, [&](int64_t row, int) {
    const int64_t i = row / s.m;
    gemm_row(s, row % s.m, a + i * s.stride_a, b + i * s.stride_b, bias, c + row * s.n);
  });
}

int64_t column_sum_workspace(int64_t, int64_t, int) { return 0; }

template <class T>
void column_sum(const Exec&, int64_t rows, int64_t c, const T* x, T* out) {
  for (int64_t i = 0; i < c; ++i) out[i] = 0;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < c; ++i) out[i] += x[row * c + i];
}

template <class T>
void add(Ops<T>& table) {
  table.gemm_workspace = gemm_workspace;
  table.gemm = gemm<T>;
  table.column_sum_workspace = column_sum_workspace;
  table.column_sum = column_sum<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_linear(Ops<float>& table) { add(table); }
void add_linear(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
