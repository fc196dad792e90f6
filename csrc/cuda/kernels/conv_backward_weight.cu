// Convolution: backward_weight. dy (n, out, k), x (n, in, c) -> dw (k, taps, c/g), db (k).
//
// The sum over n and output pixels is cut into chunks by the shape alone; each chunk writes its own
// dw into the workspace, and a second kernel adds the chunks in order.
//
//   here                   any shape and type, one thread per chunk and weight
//   conv_weight_gemm.cuh   as a matrix product, by mma_tile.cuh's main loop
//   conv_depthwise.cuh
#include "cuda/kernels/column_sum.cuh"
#include "cuda/kernels/conv_depthwise.cuh"
#include "cuda/kernels/conv_direct.cuh"
#include "cuda/kernels/conv_weight_gemm.cuh"

namespace convgrad::cuda {
namespace {

constexpr int64_t kThreadsWanted = 132 * 2048;            // enough to fill a large card
constexpr int64_t kLeastPixels = 64;                      // per chunk
constexpr int64_t kMostPartialBytes = int64_t{64} << 20;  // of all chunks

// ---- direct: one thread per chunk and weight ----

struct ChunkPlan {
  int64_t chunks, pixels_per_chunk;  // pixels of all images, in order
};
template <class T>
ChunkPlan plan_direct(const ConvShape& s) {
  const int64_t pixels = s.n * s.out_pixels(), size = std::max<int64_t>(1, s.w_size());
  int64_t chunks = std::min(ceil_div(kThreadsWanted, size), ceil_div(pixels, kLeastPixels));
  chunks = std::min<int64_t>(chunks, kMostPartialBytes / (size * int64_t(sizeof(Acc<T>))));
  chunks = std::max<int64_t>(1, chunks);
  return {chunks, ceil_div(pixels, chunks)};
}

// The sum of dy[p][k] * x[p's window at tap][c] over pixels [begin, end), in blocks of terms.
template <class T>
__device__ Acc<T> weight_sum(const ConvShape& s, int64_t tap, int64_t k, int64_t c, int64_t begin,
                             int64_t end, const T* dy, const T* x) {
  Acc<T> total = 0;
  for (int64_t p0 = begin; p0 < end; p0 += kTermBlock) {
    const int64_t stop = p0 + kTermBlock < end ? p0 + kTermBlock : end;
    Acc<T> sum = 0;
    for (int64_t p = p0; p < stop; ++p) {
      const int64_t n = p / s.out_pixels(), pixel = tap_pixel(s, p % s.out_pixels(), tap);
      if (pixel >= 0)
        sum += Acc<T>(dy[p * s.out_c + k]) * Acc<T>(x[(n * s.in_pixels() + pixel) * s.in_c + c]);
    }
    total += sum;
  }
  return total;
}

template <class T>
void backward_weight_direct(const Exec& exec, const ConvShape& s, const T* dy, const T* x,
                            Acc<T>* partial, T* dw) {
  const ChunkPlan plan = plan_direct<T>(s);
  const int64_t size = s.w_size(), pixels = s.n * s.out_pixels();
  for_each(exec, plan.chunks * size, [=] __device__(int64_t i) {
    const int64_t chunk = i / size, c = i % s.group_in_c();
    const int64_t tap = i % size / s.group_in_c() % s.taps();
    const int64_t k = i % size / (s.group_in_c() * s.taps());
    const int64_t begin = chunk * plan.pixels_per_chunk, end = begin + plan.pixels_per_chunk;
    partial[i] = weight_sum<T>(s, tap, k, k / s.group_out_c() * s.group_in_c() + c, begin,
                               end < pixels ? end : pixels, dy, x);
  });
  sum_chunks<T>(exec, plan.chunks, size, size, partial, dw);
}

// ---- as a matrix product ----

struct GemmPlan {
  int64_t tile_m, tile_n;
  SlicePlan cut;
};
template <class T>
GemmPlan plan_gemm(const ConvShape& s) {
  const int64_t rows = s.group_out_c(), columns = s.taps() * padded<T>(s.group_in_c());
  const bool large = rows > 64 && columns > 64;
  GemmPlan plan{large ? 128 : 64, large ? 128 : columns <= 32 ? 32 : 64, {}};
  const int64_t blocks = ceil_div(rows, plan.tile_m) * ceil_div(columns, plan.tile_n) * s.groups;
  const int64_t k_tiles = ceil_div(s.n * s.out_pixels(), kTileK<T>);
  plan.cut = plan_slices(blocks, k_tiles, s.w_size());
  return plan;
}

// Channels of dy and x in whole chunks. dy's chunks are of 8 even where it has fewer.
template <class T>
int64_t padded_out(const ConvShape& s) {
  return sizeof(T) == 2 ? ceil_div(s.group_out_c(), 8) * 8 : s.group_out_c();
}
// The workspace: partial sums, dy and x with padded channels; each may be missing.
template <class T>
struct GemmRoom {
  int64_t partial, dy, x;  // bytes
  GemmRoom(const ConvShape& s, const GemmPlan& plan) {
    const int64_t in_c = padded<T>(s.group_in_c()), out_c = padded_out<T>(s);
    partial = plan.cut.slices > 1 ? part_bytes<float>(plan.cut.slices * s.w_size()) : 0;
    dy = out_c == s.group_out_c() ? 0 : part_bytes<T>(s.n * s.out_pixels() * s.groups * out_c);
    x = in_c == s.group_in_c() ? 0 : part_bytes<T>(s.n * s.in_pixels() * s.groups * in_c);
  }
  int64_t bytes() const { return partial + dy + x; }
};

// Whether all pixels, windows beyond the edges included, can be counted in 32 bits.
template <class T>
bool fits_gemm(const ConvShape& s) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  int64_t in = 1, out = 1, reach = 1;
  for (int i = 0; i < 3; ++i) {
    if (s.in[i] >= kLimit || s.out[i] >= kLimit || s.pad[i] >= kLimit) return false;
    const int64_t last = (s.out[i] - 1) * s.stride[i] + (s.ker[i] - 1) * s.dil[i];
    in *= s.in[i];
    out *= s.out[i];
    reach *= max_of(last, s.in[i]) + s.pad[i] + 1;
    if (in >= kLimit || out >= kLimit || reach >= kLimit) return false;
  }
  // Slices and groups are grid.y and grid.z.
  return s.n * reach < kLimit && s.n * out < kLimit &&
         s.taps() * padded<T>(s.group_in_c()) < kLimit &&
         s.groups * max_of(padded<T>(s.group_in_c()), padded_out<T>(s)) < kLimit &&
         s.groups < 65536;
}

template <class T>
struct GemmArgs {
  const ConvShape& s;
  const SlicePlan& cut;
  const T *dy, *x;  // with padded channels
  float* partial;   // room for all slices, if there are several
  T* dw;
};

template <class T, class Tile, Math kMath, int kChunk>
void run_tiles(const Exec& exec, const GemmArgs<T>& args) {
  const ConvShape& s = args.s;
  const int64_t channels = padded<T>(s.group_in_c());
  WeightGemm<T, Tile, kMath, kChunk> gemm{};
  gemm.dy = args.dy;
  gemm.x = args.x;
  gemm.dw = args.dw;
  if (args.cut.slices > 1) {
    if constexpr (sizeof(T) == sizeof(float))
      gemm.dw = args.partial;
    else
      gemm.partial = args.partial;
  }
  gemm.groups = int(s.groups);
  gemm.rows = int(s.group_out_c());
  gemm.columns = int(s.taps() * channels);
  gemm.channels = int(channels);
  gemm.own_channels = int(s.group_in_c());
  gemm.taps = int(s.taps());
  gemm.dy_rows = int(padded_out<T>(s));
  gemm.images = int(s.n);
  gemm.pixels = int(s.n * s.out_pixels());
  gemm.dy_pitch = int(s.groups * padded_out<T>(s));
  gemm.x_pitch = int(s.groups * channels);
  gemm.tiles_n = int(ceil_div(gemm.columns, Tile::kN));
  gemm.slices = int(args.cut.slices);
  gemm.tiles_per_slice = int(args.cut.tiles_per_slice);
  int64_t step = WeightGemm<T, Tile, kMath, kChunk>::Map::kStep;
  for (int i = 2; i >= 0; --i) {
    gemm.in[i] = int(s.in[i]);
    gemm.out[i] = int(s.out[i]);
    gemm.ker[i] = int(s.ker[i]);
    gemm.stride[i] = int(s.stride[i]);
    gemm.dil[i] = int(s.dil[i]);
    gemm.pad[i] = int(s.pad[i]);
    gemm.step[i + 1] = int(step % s.out[i]);
    step /= s.out[i];
  }
  gemm.step[0] = int(step);
  const int64_t tiles_m = ceil_div(gemm.rows, Tile::kM);
  launch_gemm(exec,
              dim3(unsigned(tiles_m * gemm.tiles_n), unsigned(gemm.slices), unsigned(s.groups)),
              gemm);
}

template <Math kMath>
void run_math(const Exec& exec, const GemmPlan& plan, const GemmArgs<float>& args) {
  const bool aligned = args.s.group_in_c() % 4 == 0 && args.s.group_out_c() % 4 == 0 &&
                       is_aligned(args.dy) && is_aligned(args.x);
  if (plan.tile_n == 32)
    return aligned ? run_tiles<float, Tile<64, 32, 32, 16, 4, 2>, kMath, 4>(exec, args)
                   : run_tiles<float, Tile<64, 32, 32, 16, 4, 2>, kMath, 1>(exec, args);
  if (plan.tile_n == 128 && aligned)
    return run_tiles<float, Tile<128, 128, 64, 32, 3, kMath == Math::kFma ? 1 : 2>, kMath, 4>(exec,
                                                                                              args);
  aligned ? run_tiles<float, Tile<64, 64, 32, 32, 4, 2>, kMath, 4>(exec, args)
          : run_tiles<float, Tile<64, 64, 32, 32, 4, 2>, kMath, 1>(exec, args);
}
template <class T>
void run_16(const Exec& exec, const GemmPlan& plan, const GemmArgs<T>& args) {
  if (args.s.group_in_c() <= 4)
    return run_tiles<T, Tile<64, 64, 32, 32, 4, 2>, Math::k16, 4>(exec, args);
  if (plan.tile_n == 32) return run_tiles<T, Tile<64, 32, 32, 16, 4, 2>, Math::k16, 8>(exec, args);
  plan.tile_n == 128 ? run_tiles<T, Tile<128, 128, 64, 64, 3, 2>, Math::k16, 8>(exec, args)
                     : run_tiles<T, Tile<64, 64, 32, 32, 4, 2>, Math::k16, 8>(exec, args);
}

template <class T>
void backward_weight_gemm(const Exec& exec, const ConvShape& s, ConvAlgorithm algorithm,
                          const T* dy, const T* x, T* dw) {
  const GemmPlan plan = plan_gemm<T>(s);
  const GemmRoom<T> room(s, plan);
  char* workspace = static_cast<char*>(exec.workspace);
  float* partial = reinterpret_cast<float*>(workspace);
  if (room.dy > 0) {
    T* to = reinterpret_cast<T*>(workspace + room.partial);
    pad_rows(exec, s.n * s.out_pixels() * s.groups, s.group_out_c(), padded_out<T>(s), dy, to);
    dy = to;
  }
  if (room.x > 0) {
    T* to = reinterpret_cast<T*>(workspace + room.partial + room.dy);
    pad_rows(exec, s.n * s.in_pixels() * s.groups, s.group_in_c(), padded<T>(s.group_in_c()), x,
             to);
    x = to;
  }
  const GemmArgs<T> args = {s, plan.cut, dy, x, partial, dw};
  if constexpr (sizeof(T) == 2)
    run_16(exec, plan, args);
  else if (algorithm == ConvAlgorithm::kFma)
    run_math<Math::kFma>(exec, plan, args);
  else if (s.tf32 && !s.exact)
    run_math<Math::kTf32>(exec, plan, args);
  else
    run_math<Math::kTf32x3>(exec, plan, args);
  if (plan.cut.slices > 1)
    sum_chunks<T>(exec, plan.cut.slices, s.w_size(), s.w_size(), partial, dw);
}

// ---- depthwise ----

// Packs of four where the number of channels allows, whatever the addresses: they change no bit.
bool is_depthwise(const ConvShape& s) {
  return s.groups > 1 && s.group_in_c() == 1 && s.group_out_c() == 1;
}
DepthwiseSums plan_depthwise(const ConvShape& s) {
  return s.in_c % 4 == 0 ? plan_depthwise_sums<4>(s) : plan_depthwise_sums<1>(s);
}

void backward_weight_depthwise(const Exec& exec, const ConvShape& s, const float* dy,
                               const float* x, float* partial, float* dw) {
  const DepthwiseSums plan = plan_depthwise(s);
  DepthwiseWeights args{dy,
                        x,
                        plan.chunks > 1 ? partial : dw,
                        int(s.in_c),
                        int(s.taps()),
                        int(s.n * s.out_pixels()),
                        is_aligned(dy) && is_aligned(x),
                        plan,
                        {},
                        {},
                        {},
                        {},
                        {},
                        {}};
  for (int i = 0; i < 3; ++i) {
    args.in[i] = int(s.in[i]);
    args.out[i] = int(s.out[i]);
    args.ker[i] = int(s.ker[i]);
    args.stride[i] = int(s.stride[i]);
    args.dil[i] = int(s.dil[i]);
    args.pad[i] = int(s.pad[i]);
  }
  const bool packed = s.in_c % 4 == 0;
  launch(exec, packed ? depthwise_weight_kernel<4> : depthwise_weight_kernel<1>,
         dim3(unsigned(plan.pack_blocks), unsigned(plan.chunks), unsigned(plan.tap_blocks)),
         dim3(kDepthwiseThreads), packed ? sizeof(DepthwiseShared<4>) : sizeof(DepthwiseShared<1>),
         args);
  if (plan.chunks > 1) sum_chunks<float>(exec, plan.chunks, s.w_size(), s.w_size(), partial, dw);
}

// ---- the ops ----

template <class T>
ConvAlgorithm conv_backward_weight_algorithm(const ConvShape& s) {
  const bool empty = s.y_size() == 0 || s.w_size() == 0 || s.x_size() == 0;
  if (sizeof(T) > sizeof(float) || empty || s.algorithm == ConvAlgorithm::kGeneric ||
      !fits_gemm<T>(s))
    return ConvAlgorithm::kGeneric;
  if (s.algorithm == ConvAlgorithm::kMma) return s.algorithm;
  const bool short_sums = plan_gemm<T>(s).cut.tiles_per_slice * kTileK<T> <= kMostFmaTerms;
  const bool is_float = sizeof(T) == sizeof(float);
  if (s.algorithm == ConvAlgorithm::kFma && short_sums && is_float) return s.algorithm;
  if (is_float && is_depthwise(s)) return ConvAlgorithm::kDepthwise;
  const bool thin = min_of(s.group_in_c(), s.group_out_c()) < kLeastGroupChannels;
  return s.groups > 1 && thin ? ConvAlgorithm::kGeneric : ConvAlgorithm::kMma;
}

template <class T>
int64_t weight_workspace(const ConvShape& s) {
  const int64_t of_one = s.w_size() * int64_t(sizeof(Acc<T>));
  switch (conv_backward_weight_algorithm<T>(s)) {
    case ConvAlgorithm::kGeneric:
      return plan_direct<T>(s).chunks * of_one;
    case ConvAlgorithm::kDepthwise:
      return plan_depthwise(s).chunks * of_one;
    default:
      return GemmRoom<T>(s, plan_gemm<T>(s)).bytes();
  }
}

// The two sums use the workspace one after the other.
template <class T>
int64_t conv_backward_weight_workspace(const ConvShape& s, int threads) {
  const int64_t bias = column_sum_workspace<T>(s.n * s.out_pixels(), s.out_c, threads);
  return std::max(bias, weight_workspace<T>(s));
}

template <class T>
void conv_backward_weight(const Exec& exec, const ConvShape& s, const T* dy, const T* x, T* dw,
                          T* db) {
  const ConvAlgorithm algorithm = conv_backward_weight_algorithm<T>(s);
  Acc<T>* partial = static_cast<Acc<T>*>(exec.workspace);
  if (algorithm == ConvAlgorithm::kGeneric) {
    backward_weight_direct<T>(exec, s, dy, x, partial, dw);
  } else if constexpr (sizeof(T) == sizeof(float)) {
    if (algorithm == ConvAlgorithm::kDepthwise)
      backward_weight_depthwise(exec, s, dy, x, partial, dw);
    else
      backward_weight_gemm(exec, s, algorithm, dy, x, dw);
  } else if constexpr (sizeof(T) == 2) {
    backward_weight_gemm(exec, s, algorithm, dy, x, dw);
  }
  if (db) column_sum_in<T>(exec, s.n * s.out_pixels(), s.out_c, dy, partial, db);
}

template <class T>
void add(Ops<T>& table) {
  table.conv_backward_weight_algorithm = conv_backward_weight_algorithm<T>;
  table.conv_backward_weight_workspace = conv_backward_weight_workspace<T>;
  table.conv_backward_weight = conv_backward_weight<T>;
}

}  // namespace

CONVGRAD_STEM(conv_backward_weight)

}  // namespace convgrad::cuda
