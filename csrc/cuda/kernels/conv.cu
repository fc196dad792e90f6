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
template <class T>
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
         p.taps() * padded<T>(p.src_c) < kLimit / 2 &&
         p.groups * max_of(padded<T>(p.src_c), p.dst_c) < kLimit / 2;
}

template <class T>
ConvAlgorithm choose(const ConvShape& s, const Passes& passes) {
  const Pass& p = passes.pass[0];
  const bool empty = s.x_size() == 0 || s.y_size() == 0 || s.taps() == 0;
  if (sizeof(T) > sizeof(float) || empty || s.algorithm == ConvAlgorithm::kGeneric)
    return ConvAlgorithm::kGeneric;
  bool fits = true, short_sums = true;
  for (int64_t i = 0; i < passes.count; ++i) {
    fits = fits && fits_gemm<T>(passes.pass[i]);
    short_sums = short_sums && passes.pass[i].taps() * p.src_c <= kMostFmaTerms;
  }
  // Passes and groups are blocks along z.
  if (!fits || p.groups * passes.count >= 65536) return ConvAlgorithm::kGeneric;
  if (s.algorithm == ConvAlgorithm::kMma) return s.algorithm;
  const bool is_float = sizeof(T) == sizeof(float);
  if (s.algorithm == ConvAlgorithm::kFma && short_sums && is_float) return s.algorithm;
  // Its threads, at most one per element, are counted in 32 bits.
  if (is_float && is_depthwise(p) && max_of(s.x_size(), s.y_size()) < int64_t{1} << 31)
    return ConvAlgorithm::kDepthwise;
  const bool thin = min_of(p.src_c, p.dst_c) < kLeastGroupChannels;
  return p.groups > 1 && thin ? ConvAlgorithm::kGeneric : ConvAlgorithm::kMma;
}

// ---- weights as the products read them ----

// Whether w is (dst_c, taps, src_c) as it lies, with padded src_c.
template <class T>
bool reads_in_place(const Passes& p) {
  const Pass& first = p.pass[0];
  return first.w_src == 1 && first.axis[0].w_step >= 0 && padded<T>(first.src_c) == first.src_c;
}
template <class T>
constexpr int64_t panel_size(const Pass& p) {
  return p.groups * p.dst_c * p.taps() * padded<T>(p.src_c);
}
// The panels of a launch lie one after another, each beginning at a multiple of 16 bytes.
template <class T>
constexpr int64_t panel_room(const Pass& p) {
  return ceil_div(panel_size<T>(p), kWhole<T>) * kWhole<T>;
}
template <class T>
int64_t panels_size(const Passes& p) {
  int64_t size = 0;
  if (!reads_in_place<T>(p))
    for (int64_t i = 0; i < p.count; ++i) size += panel_room<T>(p.pass[i]);
  return size;
}

// panels: each pass's (groups, dst_c, taps, padded src_c), of w.
template <class T>
void pack_panels(const Exec& exec, const Passes& passes, const T* w, T* panels) {
  for_each(exec, panels_size<T>(passes), [=] __device__(int64_t at) {
    int64_t i = 0, first = 0;
    for (; i + 1 < passes.count; ++i) {
      const int64_t size = panel_room<T>(passes.pass[i]);
      if (at < first + size) break;
      first += size;
    }
    const Pass& p = passes.pass[i];
    if (at - first >= panel_size<T>(p)) return;
    const int64_t src_c = padded<T>(p.src_c), c = (at - first) % src_c;
    const int64_t tap = (at - first) / src_c % p.taps(), row = (at - first) / src_c / p.taps();
    const int64_t tw = tap % p.axis[2].taps, th = tap / p.axis[2].taps % p.axis[1].taps;
    const int64_t td = tap / p.axis[2].taps / p.axis[1].taps;
    const int64_t from = row / p.dst_c * p.w_group + row % p.dst_c * p.w_dst + c * p.w_src;
    panels[at] = c < p.src_c ? w[from + p.w_offset(td, th, tw)] : T(0);
  });
}

// ---- passes as matrix products ----

struct GemmPlan {
  int64_t tile_m, tile_n, rows;  // rows: of the longest pass
  SlicePlan cut;
};
template <class T>
GemmPlan plan_gemm(const Passes& passes) {
  const Pass& p = passes.pass[0];
  GemmPlan plan{128, p.dst_c <= 32 ? 32 : p.dst_c <= 64 ? 64 : 128, 0, {}};
  int64_t k_tiles = 0, taps = 0, dst = p.n;
  for (int64_t i = 0; i < passes.count; ++i) {
    plan.rows = max_of(plan.rows, p.n * passes.pass[i].positions());
    taps = max_of(taps, passes.pass[i].taps());
    const int64_t k = passes.pass[i].taps() * padded<T>(p.src_c);
    k_tiles = max_of(k_tiles, ceil_div(k, kTileK<T>));
  }
  const auto blocks = [&] {
    return ceil_div(plan.rows, plan.tile_m) * ceil_div(p.dst_c, plan.tile_n) * p.groups *
           passes.count;
  };
  const bool few = plan.tile_n == 128 && blocks() < kWave / 2;
  if (few || (taps > kLargeTaps && plan.tile_n > 32)) plan.tile_m = plan.tile_n = 64;
  // Slices' results lie as dst does, which has to be all of one pass.
  for (const Axis& a : p.axis) dst *= a.dst;
  const bool whole = passes.count == 1 && p.groups == 1 && dst == plan.rows;
  plan.cut = whole ? plan_slices(blocks(), k_tiles, plan.rows * p.dst_c) : SlicePlan{1, k_tiles};
  return plan;
}

int64_t src_pixels(const Pass& p) { return p.n * p.axis[0].src * p.axis[1].src * p.axis[2].src; }

// The workspace: panels, partial sums, src with padded channels; each may be missing.
template <class T>
struct GemmRoom {
  int64_t panels, partial, src;  // bytes
  GemmRoom(const Passes& passes, const GemmPlan& plan) {
    const Pass& p = passes.pass[0];
    panels = part_bytes<T>(panels_size<T>(passes));
    partial = plan.cut.slices > 1 ? part_bytes<float>(plan.cut.slices * plan.rows * p.dst_c) : 0;
    const int64_t src_c = padded<T>(p.src_c);
    src = src_c == p.src_c ? 0 : part_bytes<T>(src_pixels(p) * p.groups * src_c);
  }
  int64_t bytes() const { return panels + partial + src; }
};

template <class T>
GemmPass<T> gemm_pass(const Pass& p, const T* w) {
  GemmPass<T> g{};
  for (int i = 0; i < 3; ++i) {
    const Axis& a = p.axis[i];
    g.axis[i] = {int(a.src),       int(a.dst),      int(a.count), int(a.dst_first), int(a.dst_step),
                 int(a.src_first), int(a.src_step), int(a.taps),  int(a.tap_step)};
  }
  g.rows = int(p.n * p.positions());
  g.k = int(p.taps() * padded<T>(p.src_c));
  g.tiles = int(ceil_div(g.k, kTileK<T>));
  g.taps = int(p.taps());
  g.w = w;
  return g;
}

template <class T>
struct GemmArgs {
  const Passes& passes;
  const GemmPlan& plan;
  const T *src, *panels;  // with padded channels
  const Epilogue<T>& epilogue;
  T* dst;
  float* partial;
};

template <class T, class Tile, Math kMath, int kChunk>
void run_tiles(const Exec& exec, const GemmArgs<T>& args) {
  const Pass& p = args.passes.pass[0];
  const SlicePlan& cut = args.plan.cut;
  const int64_t src_c = padded<T>(p.src_c);
  ConvGemm<T, Tile, kMath, kChunk> gemm{};
  const T* panel = args.panels;
  for (int64_t i = 0; i < args.passes.count; ++i) {
    gemm.pass[i] = gemm_pass(args.passes.pass[i], panel);
    panel += panel_room<T>(args.passes.pass[i]);
  }
  gemm.src = args.src;
  gemm.dst = args.dst;
  gemm.epilogue = args.epilogue;
  gemm.partial = cut.slices > 1 ? args.partial : nullptr;
  gemm.groups = int(p.groups);
  gemm.src_c = int(src_c);
  gemm.dst_c = int(p.dst_c);
  gemm.bias_c = int(p.bias_c);
  gemm.tap_step = int(kTileK<T> / src_c);
  gemm.channel_step = int(kTileK<T> % src_c);
  gemm.src_pitch = int(p.groups * src_c);
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

// Tiles with a chunk of whole 16 bytes, or for rows that are none, as padded() says.
template <Math kMath>
void run_math(const Exec& exec, const GemmArgs<float>& args) {
  const GemmPlan& plan = args.plan;
  const bool aligned =
      args.passes.pass[0].src_c % 4 == 0 && is_aligned(args.src) && is_aligned(args.panels);
  using Narrow = Tile<128, 32, 32, 32, 4, 2>;
  if (plan.tile_n == 32)
    return aligned ? run_tiles<float, Narrow, kMath, 4>(exec, args)
                   : run_tiles<float, Narrow, kMath, 1>(exec, args);
  if (plan.tile_n == 128 && aligned)
    return run_tiles<float, Tile<128, 128, 64, 32, 3, kMath == Math::kFma ? 1 : 2>, kMath, 4>(exec,
                                                                                              args);
  if (plan.tile_m == 128 && plan.tile_n == 64 && aligned)
    return run_tiles<float, Tile<128, 64, 64, 32, 4, 2>, kMath, 4>(exec, args);
  aligned ? run_tiles<float, Tile<64, 64, 32, 32, 4, 2>, kMath, 4>(exec, args)
          : run_tiles<float, Tile<64, 64, 32, 32, 4, 2>, kMath, 1>(exec, args);
}
template <class T>
void run_16(const Exec& exec, const GemmArgs<T>& args) {
  const GemmPlan& plan = args.plan;
  if (args.passes.pass[0].src_c <= 4)
    return run_tiles<T, Tile<128, 64, 64, 32, 3, 2>, Math::k16, 4>(exec, args);
  if (plan.tile_n == 32) return run_tiles<T, Tile<128, 32, 32, 32, 4, 2>, Math::k16, 8>(exec, args);
  if (plan.tile_n == 128)
    return run_tiles<T, Tile<128, 128, 64, 64, 3, 2>, Math::k16, 8>(exec, args);
  plan.tile_m == 128 ? run_tiles<T, Tile<128, 64, 64, 32, 4, 2>, Math::k16, 8>(exec, args)
                     : run_tiles<T, Tile<64, 64, 32, 32, 4, 2>, Math::k16, 8>(exec, args);
}

template <class T>
void run_gemm(const Exec& exec, const ConvShape& s, ConvAlgorithm algorithm, const Passes& passes,
              const T* src, const T* w, const Epilogue<T>& epilogue, T* dst) {
  const Pass& p = passes.pass[0];
  const GemmPlan plan = plan_gemm<T>(passes);
  const GemmRoom<T> room(passes, plan);
  char* workspace = static_cast<char*>(exec.workspace);
  T* panels = reinterpret_cast<T*>(workspace);
  float* partial = reinterpret_cast<float*>(workspace + room.panels);
  const bool in_place = reads_in_place<T>(passes);
  if (!in_place) pack_panels(exec, passes, w, panels);
  if (room.src > 0) {
    T* to = reinterpret_cast<T*>(workspace + room.panels + room.partial);
    pad_rows(exec, src_pixels(p) * p.groups, p.src_c, padded<T>(p.src_c), src, to);
    src = to;
  }
  const GemmArgs<T> args = {passes, plan, src, in_place ? w : panels, epilogue, dst, partial};
  if constexpr (sizeof(T) == 2)
    run_16(exec, args);
  else if (algorithm == ConvAlgorithm::kFma)
    run_math<Math::kFma>(exec, args);
  else
    s.tf32 && !s.exact ? run_math<Math::kTf32>(exec, args) : run_math<Math::kTf32x3>(exec, args);
}

// ---- depthwise ----

int64_t depthwise_workspace(const Passes& passes) {
  int64_t size = 0;
  for (int64_t i = 0; i < passes.count; ++i) size += panel_room<float>(passes.pass[i]);
  return size * int64_t(sizeof(float));
}

// Weights as (taps, channels), in the workspace.
const float* pack_taps(const Exec& exec, const Pass& p, const float* w, float* panel) {
  const int64_t channels = p.groups;
  for_each(exec, panel_size<float>(p), [=] __device__(int64_t at) {
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
    panel += panel_room<float>(p);
    const int64_t runs =
        p.n * p.axis[0].count * p.axis[1].count * ceil_div(p.axis[2].count, kPositions);
    threads = max_of(threads, runs * (channels / (aligned ? 4 : 1)));
  }
  launch(exec, aligned ? depthwise_kernel<4> : depthwise_kernel<1>,
         dim3(unsigned(ceil_div(threads, kDepthwiseThreads)), unsigned(passes.count)),
         dim3(kDepthwiseThreads), 0, args);
}

// What is not done directly.
template <class T>
void run_passes(const Exec& exec, const ConvShape& s, ConvAlgorithm algorithm, const Passes& passes,
                const T* src, const T* w, const Epilogue<T>& epilogue, T* dst) {
  if constexpr (sizeof(T) == sizeof(float))
    if (algorithm == ConvAlgorithm::kDepthwise)
      return run_depthwise(exec, passes, src, w, epilogue, dst);
  run_gemm(exec, s, algorithm, passes, src, w, epilogue, dst);
}
template <class T>
int64_t passes_workspace(ConvAlgorithm algorithm, const Passes& passes) {
  if (algorithm == ConvAlgorithm::kGeneric) return 0;
  return algorithm == ConvAlgorithm::kDepthwise ? depthwise_workspace(passes)
                                                : GemmRoom<T>(passes, plan_gemm<T>(passes)).bytes();
}

// ---- the ops ----

template <class T>
ConvAlgorithm conv_forward_algorithm(const ConvShape& s) {
  return choose<T>(s, forward_passes(s));
}
template <class T>
int64_t conv_forward_workspace(const ConvShape& s, int) {
  const Passes passes = forward_passes(s);
  return passes_workspace<T>(choose<T>(s, passes), passes);
}
template <class T>
void conv_forward(const Exec& exec, const ConvShape& s, const T* x, const T* w,
                  const Epilogue<T>& epilogue, T* y) {
  const Passes passes = forward_passes(s);
  const ConvAlgorithm algorithm = choose<T>(s, passes);
  if constexpr (sizeof(T) <= sizeof(float))
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
  return algorithm == ConvAlgorithm::kGeneric ? 0
                                              : passes_workspace<T>(algorithm, backward_passes(s));
}
template <class T>
void conv_backward_input(const Exec& exec, const ConvShape& s, const T* dy, const T* w,
                         const Epilogue<T>& epilogue, T* dx) {
  const ConvAlgorithm algorithm = conv_backward_input_algorithm<T>(s);
  if constexpr (sizeof(T) <= sizeof(float))
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
