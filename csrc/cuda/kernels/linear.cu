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
template <class T>
GemmPlan plan_gemm(const GemmShape& s) {
  const auto blocks = [&](int64_t tile_m, int64_t tile_n) {
    return s.batch * ceil_div(s.m, tile_m) * ceil_div(s.n, tile_n);
  };
  // 128 x 128 with the rows of both float32 operands contiguous is short of registers.
  const int64_t wide = sizeof(T) == sizeof(float) && s.trans_a && !s.trans_b ? 64 : 128;
  const bool large = blocks(128, wide) >= kWave / 2;
  GemmPlan plan{large ? 128 : 64, large ? wide : 64, {}};
  plan.cut =
      plan_slices(blocks(plan.tile_m, plan.tile_n), ceil_div(s.k, kTileK<T>), s.batch * s.m * s.n);
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

// Whether the tiles' counters suffice, and there is anything to multiply. There are no tiles of 16
// bits for both operands transposed, which nothing asks for.
template <class T>
bool in_tiles(const GemmShape& s) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  const bool typed = sizeof(T) == sizeof(float) || (sizeof(T) == 2 && !(s.trans_a && s.trans_b));
  return typed && s.m * s.n * s.k > 0 && s.m < kLimit && s.n < kLimit && s.k < kLimit &&
         s.batch < 65536 && ceil_div(s.m, 64) * ceil_div(s.n, 64) < kLimit;
}

// An operand's matrices, `count` of them one after another or one for all, as they lie: `lines` of
// `length` elements. With whole chunks, lines are `pitch` apart.
template <class T>
struct GemmOperand {
  int64_t count, lines, length, pitch;

  static constexpr GemmOperand make(int64_t batch, int64_t stride, int64_t lines, int64_t length) {
    return {stride == 0 ? 1 : batch, lines, length,
            sizeof(T) == 2 ? ceil_div(length, 8) * 8 : length};
  }
  static constexpr GemmOperand a(const GemmShape& s) {
    return make(s.batch, s.stride_a, s.trans_a ? s.k : s.m, s.trans_a ? s.m : s.k);
  }
  static constexpr GemmOperand b(const GemmShape& s) {
    return make(s.batch, s.stride_b, s.trans_b ? s.n : s.k, s.trans_b ? s.k : s.n);
  }
  constexpr int64_t bytes() const {  // of its padded copy
    return pitch == length ? 0 : part_bytes<T>(count * lines * pitch);
  }
  constexpr int64_t stride() const { return count > 1 ? lines * pitch : 0; }

  // The operand with whole chunks: a copy at `room`, or data itself.
  const T* pad(const Exec& exec, const T* data, char* room) const {
    if (pitch == length) return data;
    T* to = reinterpret_cast<T*>(room);
    pad_rows(exec, count * lines, length, pitch, data, to);
    return to;
  }
};

template <class T>
struct GemmArgs {
  const GemmShape& s;
  const GemmPlan& plan;
  GemmOperand<T> shape_a, shape_b;
  const T *a, *b;
  const Epilogue<T>& epilogue;
  float* partial;
  T* c;
};

template <class T, class Tile, Math kMath, Major kMajorA, Major kMajorB, int kChunk>
void run_tiles(const Exec& exec, const GemmArgs<T>& args) {
  const GemmShape& s = args.s;
  const SlicePlan& cut = args.plan.cut;
  float* partial = cut.slices > 1 ? args.partial : nullptr;
  const int64_t tiles_n = ceil_div(s.n, Tile::kN);
  const DenseGemm<T, Tile, kMath, kMajorA, kMajorB, kChunk> gemm = {args.a,
                                                                    args.b,
                                                                    args.c,
                                                                    args.epilogue,
                                                                    partial,
                                                                    int(s.m),
                                                                    int(s.n),
                                                                    int(s.k),
                                                                    int(s.batch),
                                                                    int(args.shape_a.pitch),
                                                                    int(args.shape_b.pitch),
                                                                    args.shape_a.stride(),
                                                                    args.shape_b.stride(),
                                                                    int(tiles_n),
                                                                    int(cut.slices),
                                                                    int(cut.tiles_per_slice)};
  launch_gemm(
      exec,
      dim3(unsigned(ceil_div(s.m, Tile::kM) * tiles_n), unsigned(cut.slices), unsigned(s.batch)),
      gemm);
  if (partial) finish_slices(exec, cut.slices, s.batch * s.m, s.n, partial, args.epilogue, args.c);
}

template <Math kMath, Major kMajorA, Major kMajorB>
void run_major(const Exec& exec, const GemmArgs<float>& args) {
  const bool aligned = is_aligned(args.a) && is_aligned(args.b) && args.shape_a.pitch % 4 == 0 &&
                       args.shape_b.pitch % 4 == 0;
  constexpr int kWide = kMajorA == Major::kRows && kMajorB == Major::kRows ? 64 : 128;
  using Large = Tile<128, kWide, 64, 32, kWide == 64 ? 4 : 3, 2>;
  using Small = Tile<64, 64, 32, 32, 4, 2>;
  const auto run = !aligned                  ? run_tiles<float, Small, kMath, kMajorA, kMajorB, 1>
                   : args.plan.tile_m == 128 ? run_tiles<float, Large, kMath, kMajorA, kMajorB, 4>
                                             : run_tiles<float, Small, kMath, kMajorA, kMajorB, 4>;
  run(exec, args);
}
template <Math kMath>
void run_math(const Exec& exec, const GemmArgs<float>& args) {
  constexpr Major kK = Major::kK, kRows = Major::kRows;
  const GemmShape& s = args.s;
  const auto run = s.trans_a
                       ? (s.trans_b ? run_major<kMath, kRows, kK> : run_major<kMath, kRows, kRows>)
                       : (s.trans_b ? run_major<kMath, kK, kK> : run_major<kMath, kK, kRows>);
  run(exec, args);
}

template <class T, Major kMajorA, Major kMajorB>
void run_major_16(const Exec& exec, const GemmArgs<T>& args) {
  args.plan.tile_m == 128
      ? run_tiles<T, Tile<128, 128, 64, 64, 3, 2>, Math::k16, kMajorA, kMajorB, 8>(exec, args)
      : run_tiles<T, Tile<64, 64, 32, 32, 4, 2>, Math::k16, kMajorA, kMajorB, 8>(exec, args);
}
template <class T>
void run_16(const Exec& exec, const GemmArgs<T>& args) {
  constexpr Major kK = Major::kK, kRows = Major::kRows;
  const GemmShape& s = args.s;
  const auto run = s.trans_a   ? run_major_16<T, kRows, kRows>
                   : s.trans_b ? run_major_16<T, kK, kK>
                               : run_major_16<T, kK, kRows>;
  run(exec, args);
}

// ---- the ops ----

// The workspace: partial sums, a and b with whole chunks; each may be missing.
template <class T>
int64_t partial_bytes(const GemmShape& s, const GemmPlan& plan) {
  return plan.cut.slices > 1 ? part_bytes<float>(plan.cut.slices * s.batch * s.m * s.n) : 0;
}
template <class T>
int64_t gemm_workspace(const GemmShape& shape, int) {
  const GemmShape s = merged(shape);
  if (!in_tiles<T>(s)) return 0;
  return partial_bytes<T>(s, plan_gemm<T>(s)) + GemmOperand<T>::a(s).bytes() +
         GemmOperand<T>::b(s).bytes();
}

template <class T>
void gemm_tiles(const Exec& exec, const GemmShape& s, const T* a, const T* b,
                const Epilogue<T>& epilogue, T* c) {
  const GemmPlan plan = plan_gemm<T>(s);
  const auto shape_a = GemmOperand<T>::a(s), shape_b = GemmOperand<T>::b(s);
  char* room = static_cast<char*>(exec.workspace);
  float* partial = reinterpret_cast<float*>(room);
  room += partial_bytes<T>(s, plan);
  a = shape_a.pad(exec, a, room);
  b = shape_b.pad(exec, b, room + shape_a.bytes());
  const GemmArgs<T> args = {s, plan, shape_a, shape_b, a, b, epilogue, partial, c};
  if constexpr (sizeof(T) == 2)
    run_16(exec, args);
  else
    s.tf32 ? run_math<Math::kTf32>(exec, args) : run_math<Math::kTf32x3>(exec, args);
}

template <class T>
void gemm(const Exec& exec, const GemmShape& shape, const T* a, const T* b,
          const Epilogue<T>& epilogue, T* c) {
  const GemmShape s = merged(shape);
  if constexpr (sizeof(T) <= sizeof(float))
    if (in_tiles<T>(s)) return gemm_tiles(exec, s, a, b, epilogue, c);
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
