// Depthwise convolution: as many groups as channels, so that nothing is summed over channels, and
// memory is the limit. Neighbouring threads take neighbouring channels (packs of kChunk), and so
// read and write whole lines; x comes from the L1 cache for all taps but the first.
//
//   passes  (forward, or the phases of backward_input, conv_pass.h) kPositions positions of a row
//   per
//           thread, so that a weight is loaded once for them
//   weights kTaps taps per thread, so that dy is loaded once for them, summed over every rows'th
//           pixel of a chunk; then over the block's rows, and by a second kernel over the chunks
#pragma once
#include "cuda/kernels/conv_gemm.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kDepthwiseThreads = 256;
constexpr int kPositions = 4;
constexpr int kTaps = 9;

constexpr bool is_depthwise(const Pass& p) { return p.groups > 1 && p.src_c == 1 && p.dst_c == 1; }

template <int kChunk>
__device__ Pack<float, kChunk> load_or_zero(bool inside, const float* p) {
  return inside ? load_pack<kChunk>(p) : Pack<float, kChunk>{};
}

template <int kChunk>
__device__ Pack<float, kChunk> load_values(bool aligned, const float* p) {
  if (aligned) return load_pack<kChunk>(p);
  Pack<float, kChunk> v;
#pragma unroll
  for (int i = 0; i < kChunk; ++i) v[i] = p[i];
  return v;
}

// ---- passes ----

struct DepthwisePasses {
  const float* src;
  float* dst;
  Epilogue<float> epilogue;
  int channels, images;
  GemmPass<float> pass[kMostPasses];  // w: (taps, channels)
};

// Block y is a pass; threads along x are (image, d, h, positions of w, pack of channels).
template <int kChunk>
__global__ void __launch_bounds__(kDepthwiseThreads)
    depthwise_kernel(const __grid_constant__ DepthwisePasses p) {
  const GemmPass<float>& pass = p.pass[blockIdx.y];
  const auto &d = pass.axis[0], &h = pass.axis[1], &w = pass.axis[2];
  const unsigned packs = unsigned(p.channels) / kChunk;
  const unsigned runs = (unsigned(w.count) + kPositions - 1) / kPositions;
  unsigned at = blockIdx.x * kDepthwiseThreads + threadIdx.x;
  const int c = int(at % packs) * kChunk;
  at /= packs;
  const int pw = int(at % runs) * kPositions;
  at /= runs;
  const int ph = int(at % unsigned(h.count)), line = int(at / unsigned(h.count));
  const int pd = line % d.count, n = line / d.count;
  if (n >= p.images) return;

  Pack<float, kChunk> sum[kPositions] = {};
  const float* weight = pass.w + c;
  for (int td = 0; td < d.taps; ++td)
    for (int th = 0; th < h.taps; ++th) {
      const int at_d = d.src_first + pd * d.src_step + td * d.tap_step;
      const int at_h = h.src_first + ph * h.src_step + th * h.tap_step;
      const bool row = unsigned(at_d) < unsigned(d.src) && unsigned(at_h) < unsigned(h.src);
      const int64_t first = ((int64_t{n} * d.src + at_d) * h.src + at_h) * w.src;
      for (int tw = 0; tw < w.taps; ++tw, weight += p.channels) {
        const Pack<float, kChunk> v = load_pack<kChunk>(weight);
#pragma unroll
        for (int i = 0; i < kPositions; ++i) {
          const int at_w = w.src_first + (pw + i) * w.src_step + tw * w.tap_step;
          const auto x = load_or_zero<kChunk>(row && unsigned(at_w) < unsigned(w.src),
                                              p.src + (first + at_w) * p.channels + c);
#pragma unroll
          for (int e = 0; e < kChunk; ++e) sum[i][e] += x[e] * v[e];
        }
      }
    }

  int64_t target = int64_t{n} * d.dst + d.dst_first + pd * d.dst_step;
  target = (target * h.dst + h.dst_first + ph * h.dst_step) * w.dst + w.dst_first;
#pragma unroll
  for (int i = 0; i < kPositions; ++i) {
    if (pw + i >= w.count) break;
    const int64_t to = (target + (pw + i) * w.dst_step) * p.channels + c;
#pragma unroll
    for (int e = 0; e < kChunk; ++e) sum[i][e] = finish(p.epilogue, sum[i][e], c + e, to + e);
    store_pack<kChunk>(p.dst + to, sum[i]);
  }
}

// ---- weights ----

// The sum over pixels is cut into chunks, so that all blocks together fill a card.
struct DepthwiseSums {
  int packs, pack_blocks, rows;  // threads of a block: `rows` of `packs` packs of channels
  int tap_blocks, chunks, pixels_per_chunk;
};
template <int kChunk>
DepthwiseSums plan_depthwise_sums(const ConvShape& s) {
  DepthwiseSums plan;
  const int64_t packs = s.in_c / kChunk, pixels = s.n * s.out_pixels();
  plan.packs = int(min_of(packs, kWarp));
  plan.pack_blocks = int(ceil_div(packs, plan.packs));
  plan.rows = kDepthwiseThreads / plan.packs;
  plan.tap_blocks = int(ceil_div(s.taps(), kTaps));
  const int64_t blocks = int64_t{plan.pack_blocks} * plan.tap_blocks;
  // At least 16 pixels per row of threads, and at most kTermBlock.
  const int64_t most = ceil_div(pixels, plan.rows * 16);
  const int64_t least = ceil_div(pixels, plan.rows * kTermBlock);
  const int64_t chunks = max_of(1, max_of(least, min_of(most, ceil_div(4 * kWave, blocks))));
  plan.pixels_per_chunk = int(ceil_div(pixels, min_of(chunks, 65535)));  // blocks along y
  plan.chunks = int(ceil_div(pixels, plan.pixels_per_chunk));
  return plan;
}

struct DepthwiseWeights {
  const float *dy, *x;
  float* dw;  // (chunks, channels, taps)
  int channels, taps, pixels;
  bool aligned;  // dy and x, to packs
  DepthwiseSums plan;
  int in[3], out[3], ker[3], stride[3], dil[3], pad[3];
};

template <int kChunk>
struct DepthwiseShared {
  float sums[kTaps * kChunk][kDepthwiseThreads];
};

// Block (pack block, chunk, tap block).
template <int kChunk>
__global__ void __launch_bounds__(kDepthwiseThreads)
    depthwise_weight_kernel(const __grid_constant__ DepthwiseWeights p) {
  auto& s = shared<DepthwiseShared<kChunk>>();
  const int pack = int(blockIdx.x) * p.plan.packs + int(threadIdx.x) % p.plan.packs;
  const int row = int(threadIdx.x) / p.plan.packs, c = pack * kChunk;
  const int begin = int(blockIdx.y) * p.plan.pixels_per_chunk, tap = int(blockIdx.z) * kTaps;
  const int last = begin + p.plan.pixels_per_chunk;
  const int end = last < p.pixels ? last : p.pixels;
  const bool any = row < p.plan.rows && c < p.channels;

  Pack<float, kChunk> sum[kTaps] = {};
  for (int pixel = begin + row; any && pixel < end; pixel += p.plan.rows) {
    const int line = pixel / p.out[2], plane = line / p.out[1], n = plane / p.out[0];
    const int d = plane % p.out[0] * p.stride[0] - p.pad[0];
    const int h = line % p.out[1] * p.stride[1] - p.pad[1];
    const int w = pixel % p.out[2] * p.stride[2] - p.pad[2];
    const auto g = load_values<kChunk>(p.aligned, p.dy + int64_t{pixel} * p.channels + c);
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      const int at_d = d + (tap + t) / p.ker[2] / p.ker[1] * p.dil[0];
      const int at_h = h + (tap + t) / p.ker[2] % p.ker[1] * p.dil[1];
      const int at_w = w + (tap + t) % p.ker[2] * p.dil[2];
      const bool inside = tap + t < p.taps && unsigned(at_d) < unsigned(p.in[0]) &&
                          unsigned(at_h) < unsigned(p.in[1]) && unsigned(at_w) < unsigned(p.in[2]);
      if (!inside) continue;
      const int64_t from = ((int64_t{n} * p.in[0] + at_d) * p.in[1] + at_h) * p.in[2] + at_w;
      const auto x = load_values<kChunk>(p.aligned, p.x + from * p.channels + c);
#pragma unroll
      for (int e = 0; e < kChunk; ++e) sum[t][e] += g[e] * x[e];
    }
  }
#pragma unroll
  for (int t = 0; t < kTaps; ++t)
#pragma unroll
    for (int e = 0; e < kChunk; ++e) s.sums[t * kChunk + e][threadIdx.x] = sum[t][e];
  __syncthreads();

  for (int i = int(threadIdx.x); i < p.plan.packs * kTaps * kChunk; i += kDepthwiseThreads) {
    const int own = i % p.plan.packs, value = i / p.plan.packs, t = tap + value / kChunk;
    const int channel = (int(blockIdx.x) * p.plan.packs + own) * kChunk + value % kChunk;
    if (t >= p.taps || channel >= p.channels) continue;
    float total = 0;
    for (int r = 0; r < p.plan.rows; ++r) total += s.sums[value][r * p.plan.packs + own];
    p.dw[(int64_t{blockIdx.y} * p.channels + channel) * p.taps + t] = total;
  }
}

}  // namespace
}  // namespace convgrad::cuda
