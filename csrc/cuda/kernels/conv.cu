// Convolution: forward and backward_input. x (n, in, c), w (k, taps, c/g), y (n, out, k).
//
//   conv_direct.cuh  any shape and type, one thread per element
//   conv_gemm.cuh    as matrix products
//   mma_tile.cuh     their main loop
//   conv_depthwise.cuh
#include "cuda/kernels/conv_depthwise.cuh"
#include "cuda/kernels/conv_direct.cuh"
#include "cuda/kernels/conv_gemm.cuh"

namespace convgrad::cuda {
namespace {

// ---- what is computed: passes, and how ----

// Forward, or all phases of backward_input.
struct Passes {
  int64_t count;
  Pass pass[kMostPasses];
};
Passes forward_passes(const ConvShape& s) { return {1, {forward_pass(s)}}; }
// At most kMostPasses of them.
Passes backward_passes(const ConvShape& s) {
  Passes p{phases(s), {}};
  for (int64_t i = 0; i < p.count; ++i) p.pass[i] = backward_pass(s, i);
  return p;
}

// Whether positions, pixels and k can be counted in 32 bits, windows beyond the edges included.
bool fits_gemm(const Pass& p) {
  constexpr int64_t kLimit = int64_t{1} << 31;
  int64_t src = 1, dst = 1, overhang = 0;
  for (const Axis& a : p.axis) {
    const int64_t beyond = max_of(0, max_of(-a.src_first, a.src_last() - a.src));
    if (a.src >= kLimit || a.dst >= kLimit || beyond >= kLimit / 4) return false;
    src *= a.src;
    dst *= a.dst;
    overhang = (overhang + beyond) * max_of(1, a.src);
    if (src >= kLimit || dst >= kLimit || overhang >= kLimit / 4) return false;
  }
  return p.taps() <= kMostTaps && p.n * src < kLimit / 2 && p.n * dst < kLimit / 2 &&
         p.taps() * p.src_c < kLimit / 2 && p.groups * max_of(p.src_c, p.dst_c) < kLimit / 2;
}

template <class T>
ConvAlgorithm choose(const ConvShape& s, const Passes& passes) {
  const Pass& p = passes.pass[0];
  const bool empty = s.x_size() == 0 || s.y_size() == 0 || s.taps() == 0;
  if (sizeof(T) != sizeof(float) || empty || s.algorithm == ConvAlgorithm::kGeneric)
    return ConvAlgorithm::kGeneric;
  bool fits = true, short_sums = true;
  for (int64_t i = 0; i < passes.count; ++i) {
    fits = fits && fits_gemm(passes.pass[i]);
    short_sums = short_sums && passes.pass[i].taps() * p.src_c <= kMostFmaTerms;
  }
  // Passes and groups are blocks along z.
  if (!fits || p.groups * passes.count >= 65536) return ConvAlgorithm::kGeneric;
  if (s.algorithm == ConvAlgorithm::kMma) return s.algorithm;
  if (s.algorithm == ConvAlgorithm::kFma && short_sums) return s.algorithm;
  // Its threads, at most one per element, are counted in 32 bits.
  if (is_depthwise(p) && max_of(s.x_size(), s.y_size()) < int64_t{1} << 31)
    return ConvAlgorithm::kDepthwise;
  const bool thin = min_of(p.src_c, p.dst_c) < kLeastGroupChannels;
  return p.groups > 1 && thin ? ConvAlgorithm::kGeneric : ConvAlgorithm::kMma;
}

// ---- weights as the products read them ----

// Whether w is (dst_c, taps, src_c) as it lies.
bool reads_in_place(const Passes& p) {
  return p.pass[0].w_src == 1 && p.pass[0].axis[0].w_step >= 0;
}
constexpr int64_t panel_size(const Pass& p) { return p.groups * p.dst_c * p.taps() * p.src_c; }
// Of all passes, each beginning at a multiple of 16 bytes.
int64_t panels_size(const Passes& p) {
  int64_t size = 0;
  if (!reads_in_place(p))
    for (int64_t i = 0; i < p.count; ++i) size += ceil_div(panel_size(p.pass[i]), 4) * 4;
  return size;
}

// panels: each pass's (groups, dst_c, taps, src_c), of w.
void pack_panels(const Exec& exec, const Passes& passes, const float* w, float* panels) {
  for_each(exec, panels_size(passes), [=] __device__(int64_t at) {
    int64_t i = 0, first = 0;
    for (; i + 1 < passes.count; ++i) {
      const int64_t size = ceil_div(panel_size(passes.pass[i]), 4) * 4;
      if (at < first + size) break;
      first += size;
    }
    const Pass& p = passes.pass[i];
    if (at - first >= panel_size(p)) return;
    const int64_t c = (at - first) % p.src_c, tap = (at - first) / p.src_c % p.taps();
    const int64_t row = (at - first) / p.src_c / p.taps();
    const int64_t tw = tap % p.axis[2].taps, th = tap / p.axis[2].taps % p.axis[1].taps;
    const int64_t td = tap / p.axis[2].taps / p.axis[1].taps;
    panels[at] = w[row / p.dst_c * p.w_group + row % p.dst_c * p.w_dst + c * p.w_src +
                   p.w_offset(td, th, tw)];
  });
}

// ---- passes as matrix products ----

struct GemmPlan {
  int64_t tile_m, tile_n, rows;  // rows: of the longest pass
  SlicePlan cut;
};
GemmPlan plan_gemm(const Passes& passes) {
  const Pass& p = passes.pass[0];
  GemmPlan plan{128, p.dst_c <= 32 ? 32 : p.dst_c <= 64 ? 64 : 128, 0, {}};
  int64_t k_tiles = 0, dst = p.n;
  for (int64_t i = 0; i < passes.count; ++i) {
    plan.rows = max_of(plan.rows, p.n * passes.pass[i].positions());
    k_tiles = max_of(k_tiles, ceil_div(passes.pass[i].taps() * p.src_c, kTileK));
  }
  const auto blocks = [&] {
    return ceil_div(plan.rows, plan.tile_m) * ceil_div(p.dst_c, plan.tile_n) * p.groups *
           passes.count;
  };
  if (plan.tile_n == 128 && blocks() < kWave / 2) plan.tile_m = plan.tile_n = 64;
  // Slices' results lie as dst does, which has to be all of one pass.
  for (const Axis& a : p.axis) dst *= a.dst;
  const bool whole = passes.count == 1 && p.groups == 1 && dst == plan.rows;
  plan.cut = whole ? plan_slices(blocks(), k_tiles, plan.rows * p.dst_c) : SlicePlan{1, k_tiles};
  return plan;
}

int64_t gemm_workspace(const Passes& passes) {
  const GemmPlan plan = plan_gemm(passes);
  const int64_t partial =
      plan.cut.slices > 1 ? plan.cut.slices * plan.rows * passes.pass[0].dst_c : 0;
  return (panels_size(passes) + partial) * int64_t(sizeof(float));
}

GemmPass gemm_pass(const Pass& p, const float* w) {
  GemmPass g{};
  for (int i = 0; i < 3; ++i) {
    const Axis& a = p.axis[i];
    g.axis[i] = {int(a.src),       int(a.dst),      int(a.count), int(a.dst_first), int(a.dst_step),
                 int(a.src_first), int(a.src_step), int(a.taps),  int(a.tap_step)};
  }
  g.rows = int(p.n * p.positions());
  g.k = int(p.taps() * p.src_c);
  g.tiles = int(ceil_div(g.k, kTileK));
  g.taps = int(p.taps());
  g.w = w;
  return g;
}

struct GemmArgs {
  const Passes& passes;
  const GemmPlan& plan;
  const float *src, *w;
  const Epilogue<float>& epilogue;
  float *dst, *workspace;
};

template <class Tile, Math kMath, int kChunk>
void run_tiles(const Exec& exec, const GemmArgs& args) {
  const Pass& p = args.passes.pass[0];
  const SlicePlan& cut = args.plan.cut;
  ConvGemm<Tile, kMath, kChunk> gemm{};
  const bool in_place = reads_in_place(args.passes);
  const float* panel = in_place ? args.w : args.workspace;
  for (int64_t i = 0; i < args.passes.count; ++i) {
    gemm.pass[i] = gemm_pass(args.passes.pass[i], panel);
    panel += ceil_div(panel_size(args.passes.pass[i]), 4) * 4;
  }
  gemm.src = args.src;
  gemm.dst = args.dst;
  gemm.epilogue = args.epilogue;
  gemm.partial = cut.slices > 1 ? args.workspace + panels_size(args.passes) : nullptr;
  gemm.groups = int(p.groups);
  gemm.src_c = int(p.src_c);
  gemm.dst_c = int(p.dst_c);
  gemm.bias_c = int(p.bias_c);
  gemm.tap_step = int(kTileK / p.src_c);
  gemm.channel_step = int(kTileK % p.src_c);
  gemm.src_pitch = int(p.groups * p.src_c);
  gemm.dst_pitch = int(p.groups * p.dst_c);
  gemm.tiles_n = int(ceil_div(p.dst_c, Tile::kN));
  gemm.slices = int(cut.slices);
  gemm.tiles_per_slice = int(cut.tiles_per_slice);
  launch_gemm(exec,
              dim3(unsigned(ceil_div(args.plan.rows, Tile::kM) * gemm.tiles_n), 1,
                   unsigned(args.passes.count * p.groups * cut.slices)),
              gemm);
  if (cut.slices > 1)
    finish_slices(exec, cut.slices, args.plan.rows, p.dst_c, gemm.partial, args.epilogue, args.dst);
}

template <Math kMath>
void run_math(const Exec& exec, const GemmArgs& args) {
  const GemmPlan& plan = args.plan;
  const bool aligned = args.passes.pass[0].src_c % 4 == 0 && is_aligned(args.src) &&
                       (!reads_in_place(args.passes) || is_aligned(args.w));
  if (plan.tile_n == 32)
    return aligned ? run_tiles<Tile<128, 32, 32, 32, 4, 2>, kMath, 4>(exec, args)
                   : run_tiles<Tile<128, 32, 32, 32, 4, 2>, kMath, 1>(exec, args);
  if (plan.tile_n == 128 && aligned)
    return run_tiles<Tile<128, 128, 64, 32, 3, kMath == Math::kFma ? 1 : 2>, kMath, 4>(exec, args);
  if (plan.tile_m == 128 && plan.tile_n == 64 && aligned)
    return run_tiles<Tile<128, 64, 64, 32, 4, 2>, kMath, 4>(exec, args);
  aligned ? run_tiles<Tile<64, 64, 32, 32, 4, 2>, kMath, 4>(exec, args)
          : run_tiles<Tile<64, 64, 32, 32, 4, 2>, kMath, 1>(exec, args);
}

void run_gemm(const Exec& exec, const ConvShape& s, ConvAlgorithm algorithm, const Passes& passes,
              const float* src, const float* w, const Epilogue<float>& epilogue, float* dst) {
  const GemmPlan plan = plan_gemm(passes);
  float* workspace = static_cast<float*>(exec.workspace);
  const GemmArgs args = {passes, plan, src, w, epilogue, dst, workspace};
  if (!reads_in_place(passes)) pack_panels(exec, passes, w, workspace);
  if (algorithm == ConvAlgorithm::kFma) return run_math<Math::kFma>(exec, args);
  s.tf32 && !s.exact ? run_math<Math::kTf32>(exec, args) : run_math<Math::kTf32x3>(exec, args);
}

// ---- depthwise ----

int64_t depthwise_workspace(const Passes& passes) {
  int64_t size = 0;
  for (int64_t i = 0; i < passes.count; ++i) size += ceil_div(panel_size(passes.pass[i]), 4) * 4;
  return size * int64_t(sizeof(float));
}

// Weights as (taps, channels), in the workspace.
const float* pack_taps(const Exec& exec, const Pass& p, const float* w, float* panel) {
  const int64_t channels = p.groups;
  for_each(exec, panel_size(p), [=] __device__(int64_t at) {
    const int64_t tap = at / channels, tw = tap % p.axis[2].taps;
    const int64_t th = tap / p.axis[2].taps % p.axis[1].taps;
    const int64_t td = tap / p.axis[2].taps / p.axis[1].taps;
    panel[at] = w[at % channels * p.w_group + p.w_offset(td, th, tw)];
  });
  return panel;
}

void run_depthwise(const Exec& exec, const Passes& passes, const float* src, const float* w,
                   const Epilogue<float>& epilogue, float* dst) {
  const int64_t channels = passes.pass[0].groups;
  DepthwisePasses args{src, dst, epilogue, int(channels), int(passes.pass[0].n), {}};
  float* panel = static_cast<float*>(exec.workspace);
  int64_t threads = 0;
  const bool aligned = channels % 4 == 0 && is_aligned(src) && is_aligned(dst);
  for (int64_t i = 0; i < passes.count; ++i) {
    const Pass& p = passes.pass[i];
    args.pass[i] = gemm_pass(p, pack_taps(exec, p, w, panel));
    panel += ceil_div(panel_size(p), 4) * 4;
    const int64_t runs =
        p.n * p.axis[0].count * p.axis[1].count * ceil_div(p.axis[2].count, kPositions);
    threads = max_of(threads, runs * (channels / (aligned ? 4 : 1)));
  }
  launch(exec, aligned ? depthwise_kernel<4> : depthwise_kernel<1>,
         dim3(unsigned(ceil_div(threads, kDepthwiseThreads)), unsigned(passes.count)),
         dim3(kDepthwiseThreads), 0, args);
}

// What float32 does other than directly.
void run_passes(const Exec& exec, const ConvShape& s, ConvAlgorithm algorithm, const Passes& passes,
                const float* src, const float* w, const Epilogue<float>& epilogue, float* dst) {
  if (algorithm == ConvAlgorithm::kDepthwise)
    return run_depthwise(exec, passes, src, w, epilogue, dst);
  run_gemm(exec, s, algorithm, passes, src, w, epilogue, dst);
}
int64_t passes_workspace(ConvAlgorithm algorithm, const Passes& passes) {
  if (algorithm == ConvAlgorithm::kGeneric) return 0;
  return algorithm == ConvAlgorithm::kDepthwise ? depthwise_workspace(passes)
                                                : gemm_workspace(passes);
}

// ---- the ops ----

template <class T>
ConvAlgorithm conv_forward_algorithm(const ConvShape& s) {
  return choose<T>(s, forward_passes(s));
}
template <class T>
int64_t conv_forward_workspace(const ConvShape& s, int) {
  const Passes passes = forward_passes(s);
  return passes_workspace(choose<T>(s, passes), passes);
}
template <class T>
void conv_forward(const Exec& exec, const ConvShape& s, const T* x, const T* w,
                  const Epilogue<T>& epilogue, T* y) {
  const Passes passes = forward_passes(s);
  const ConvAlgorithm algorithm = choose<T>(s, passes);
  if constexpr (sizeof(T) == sizeof(float))
    if (algorithm != ConvAlgorithm::kGeneric)
      return run_passes(exec, s, algorithm, passes, x, w, epilogue, y);
  forward_direct(exec, s, x, w, epilogue, y);
}

template <class T>
ConvAlgorithm conv_backward_input_algorithm(const ConvShape& s) {
  const int64_t count = phases(s);
  return count == 0 || count > kMostPasses ? ConvAlgorithm::kGeneric
                                           : choose<T>(s, backward_passes(s));
}
template <class T>
int64_t conv_backward_input_workspace(const ConvShape& s, int) {
  const ConvAlgorithm algorithm = conv_backward_input_algorithm<T>(s);
  return algorithm == ConvAlgorithm::kGeneric ? 0 : passes_workspace(algorithm, backward_passes(s));
}
template <class T>
void conv_backward_input(const Exec& exec, const ConvShape& s, const T* dy, const T* w,
                         const Epilogue<T>& epilogue, T* dx) {
  const ConvAlgorithm algorithm = conv_backward_input_algorithm<T>(s);
  if constexpr (sizeof(T) == sizeof(float))
    if (algorithm != ConvAlgorithm::kGeneric)
      return run_passes(exec, s, algorithm, backward_passes(s), dy, w, epilogue, dx);
  backward_input_direct(exec, s, dy, w, epilogue, dx);
}

template <class T>
void add(Ops<T>& table) {
  table.conv_forward_algorithm = conv_forward_algorithm<T>;
  table.conv_forward_workspace = conv_forward_workspace<T>;
  table.conv_forward = conv_forward<T>;
  table.conv_backward_input_algorithm = conv_backward_input_algorithm<T>;
  table.conv_backward_input_workspace = conv_backward_input_workspace<T>;
  table.conv_backward_input = conv_backward_input<T>;
}

}  // namespace

CONVGRAD_STEM(conv)

}  // namespace convgrad::cuda
