// Matrix products and column sums. All matrices are row-major.
#include "cuda/kernels/column_sum.cuh"
#include "cuda/kernels/linear_gemm.cuh"

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

// ---- in tiles ----

struct GemmPlan {
  int64_t tile_m, tile_n;
  SlicePlan cut;
};
GemmPlan plan_gemm(const GemmShape& s) {
  const auto blocks = [&](int64_t tile_m, int64_t tile_n) {
    return s.batch * ceil_div(s.m, tile_m) * ceil_div(s.n, tile_n);
  };
  // 128 x 128 with the rows of both operands contiguous is short of registers.
  const int64_t wide = s.trans_a && !s.trans_b ? 64 : 128;
  const bool large = blocks(128, wide) >= kWave / 2;
  GemmPlan plan{large ? 128 : 64, large ? wide : 64, {}};
  plan.cut =
      plan_slices(blocks(plan.tile_m, plan.tile_n), ceil_div(s.k, kTileK), s.batch * s.m * s.n);
  return plan;
}

// A batch that shares b is one tall product.
GemmShape merged(GemmShape s) {
  if (s.batch > 1 && s.stride_b == 0 && !s.trans_a && s.stride_a == s.m * s.k) {
    s.m *= s.batch;
    s.batch = 1;
  }
  return s;
}

// Whether the tiles' counters suffice, and there is anything to multiply.
template <class T>
bool in_tiles(const GemmShape& s) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  return sizeof(T) == sizeof(float) && s.m * s.n * s.k > 0 && s.m < kLimit && s.n < kLimit &&
         s.k < kLimit && s.batch < 65536 && ceil_div(s.m, 64) * ceil_div(s.n, 64) < kLimit;
}

template <class Tile, Math kMath, Major kMajorA, Major kMajorB, int kChunk>
void run_tiles(const Exec& exec, const GemmShape& s, const SlicePlan& cut, const float* a,
               const float* b, const Epilogue<float>& epilogue, float* c) {
  float* partial = cut.slices > 1 ? static_cast<float*>(exec.workspace) : nullptr;
  const int64_t tiles_n = ceil_div(s.n, Tile::kN);
  const DenseGemm<Tile, kMath, kMajorA, kMajorB, kChunk> gemm = {a,
                                                                 b,
                                                                 c,
                                                                 epilogue,
                                                                 partial,
                                                                 int(s.m),
                                                                 int(s.n),
                                                                 int(s.k),
                                                                 int(s.batch),
                                                                 s.stride_a,
                                                                 s.stride_b,
                                                                 int(tiles_n),
                                                                 int(cut.slices),
                                                                 int(cut.tiles_per_slice)};
  launch_gemm(
      exec,
      dim3(unsigned(ceil_div(s.m, Tile::kM) * tiles_n), unsigned(cut.slices), unsigned(s.batch)),
      gemm);
  if (partial) finish_slices(exec, cut.slices, s.batch * s.m, s.n, partial, epilogue, c);
}

template <Math kMath, Major kMajorA, Major kMajorB>
void run_major(const Exec& exec, const GemmShape& s, const float* a, const float* b,
               const Epilogue<float>& epilogue, float* c) {
  const GemmPlan plan = plan_gemm(s);
  const bool aligned = is_aligned(a) && is_aligned(b) && s.stride_a % 4 == 0 &&
                       s.stride_b % 4 == 0 && (kMajorA == Major::kK ? s.k : s.m) % 4 == 0 &&
                       (kMajorB == Major::kK ? s.k : s.n) % 4 == 0;
  constexpr int kWide = kMajorA == Major::kRows && kMajorB == Major::kRows ? 64 : 128;
  using Large = Tile<128, kWide, 64, 32, kWide == 64 ? 4 : 3, 2>;
  using Small = Tile<64, 64, 32, 32, 4, 2>;
  const auto run = !aligned             ? run_tiles<Small, kMath, kMajorA, kMajorB, 1>
                   : plan.tile_m == 128 ? run_tiles<Large, kMath, kMajorA, kMajorB, 4>
                                        : run_tiles<Small, kMath, kMajorA, kMajorB, 4>;
  run(exec, s, plan.cut, a, b, epilogue, c);
}

template <Math kMath>
void run_math(const Exec& exec, const GemmShape& s, const float* a, const float* b,
              const Epilogue<float>& epilogue, float* c) {
  constexpr Major kK = Major::kK, kRows = Major::kRows;
  const auto run = s.trans_a
                       ? (s.trans_b ? run_major<kMath, kRows, kK> : run_major<kMath, kRows, kRows>)
                       : (s.trans_b ? run_major<kMath, kK, kK> : run_major<kMath, kK, kRows>);
  run(exec, s, a, b, epilogue, c);
}

// ---- the ops ----

template <class T>
int64_t gemm_workspace(const GemmShape& shape, int) {
  const GemmShape s = merged(shape);
  const int64_t slices = in_tiles<T>(s) ? plan_gemm(s).cut.slices : 1;
  return slices > 1 ? slices * s.batch * s.m * s.n * int64_t(sizeof(T)) : 0;
}

template <class T>
void gemm(const Exec& exec, const GemmShape& shape, const T* a, const T* b,
          const Epilogue<T>& epilogue, T* c) {
  const GemmShape s = merged(shape);
  if constexpr (sizeof(T) == sizeof(float))
    if (in_tiles<T>(s))
      return s.tf32 ? run_math<Math::kTf32>(exec, s, a, b, epilogue, c)
                    : run_math<Math::kTf32x3>(exec, s, a, b, epilogue, c);
  gemm_direct(exec, s, a, b, epilogue, c);
}

template <class T>
void column_sum(const Exec& exec, int64_t rows, int64_t c, const T* x, T* out) {
  column_sum_in<T>(exec, rows, c, x, static_cast<Acc<T>*>(exec.workspace), out);
}

template <class T>
void add(Ops<T>& table) {
  table.gemm_workspace = gemm_workspace<T>;
  table.gemm = gemm<T>;
  table.column_sum_workspace = column_sum_workspace<T>;
  table.column_sum = column_sum<T>;
}

}  // namespace

CONVGRAD_STEM(linear)

}  // namespace convgrad::cuda
