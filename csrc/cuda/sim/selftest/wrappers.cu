// One kernel per wrapper of ptx.cuh, and for the warp operations and conversions that kernels use:
// each lane's words in, its results out. A card's results are the golden files of tests/golden.
#include "cuda/ptx.cuh"
#include "cuda/sim/selftest/selftest.h"

namespace convgrad::cuda::selftest {
namespace {

constexpr unsigned kFull = 0xffffffffu;

template <class... P, class... A>
void one_warp(void (*kernel)(P...), size_t shared_bytes, A... args) {
  Exec exec;
  exec.op = "selftest";
  launch(exec, kernel, dim3(1), dim3(kWarp), shared_bytes, args...);
}

// ---- asynchronous copies ----

template <int kBytes>
struct Copies {
  static constexpr int kWords = kBytes / 4;
  static constexpr int kGroups = 3;
  alignas(16) uint32_t words[kGroups][kWarp][kWords];
};

// Three groups, waited for one after another; every fifth copy is not valid: zeros. Each lane reads
// what its neighbour copied.
template <int kBytes>
__global__ void copies(const uint32_t* in, uint32_t* out) {
  using S = Copies<kBytes>;
  auto& s = shared<S>();
  const int lane = int(threadIdx.x), next = (lane + 1) % kWarp;
  for (int g = 0; g < S::kGroups; ++g) {
    copy_async<kBytes>(s.words[g][lane], in + (lane * S::kGroups + g) * S::kWords,
                       (lane + g) % 5 != 0);
    copy_async_commit();
  }
  uint32_t* y = out + lane * S::kGroups * S::kWords;
  const auto give = [&](int g) {
    __syncthreads();
    for (int w = 0; w < S::kWords; ++w) y[g * S::kWords + w] = s.words[g][next][w];
  };
  copy_async_wait<2>();
  give(0);
  copy_async_wait<1>();
  give(1);
  copy_async_wait<0>();
  give(2);
}

// ---- tensor cores ----

__global__ void round_tf32(const uint32_t* in, uint32_t* out) {
  for (int i = 0; i < 8; ++i)
    out[threadIdx.x * 8 + i] = to_tf32(__uint_as_float(in[threadIdx.x * 8 + i]));
}

enum class Type { kTf32, kBf16, kF16 };

// Words per lane: d (4), a (4), b (2) -> d.
template <Type kType>
__global__ void multiply(const uint32_t* in, uint32_t* out) {
  const uint32_t* x = in + threadIdx.x * 10;
  float d[4];
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) d[i] = __uint_as_float(x[i]);
  for (int i = 0; i < 4; ++i) a[i] = x[4 + i];
  for (int i = 0; i < 2; ++i) b[i] = x[8 + i];
  if constexpr (kType == Type::kTf32) mma_tf32(d, a, b);
  if constexpr (kType == Type::kBf16) mma_bf16(d, a, b);
  if constexpr (kType == Type::kF16) mma_f16(d, a, b);
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = __float_as_uint(d[i]);
}

// Lane l brings row l of the four matrices, kept in another order and padded.
struct Rows {
  alignas(16) uint32_t words[kWarp][8];
};
template <bool kTransposed>
__global__ void load_matrices(const uint32_t* in, uint32_t* out) {
  auto& s = shared<Rows>();
  const int lane = int(threadIdx.x), place = lane * 13 % kWarp;
  for (int w = 0; w < 4; ++w) s.words[place][w] = in[lane * 4 + w];
  __syncthreads();
  uint32_t r[4];
  if constexpr (kTransposed) {
    load_matrix_x4_transposed(r, s.words[place]);
  } else {
    load_matrix_x4(r, s.words[place]);
  }
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = r[i];
}

// ---- warp operations ----

__global__ void shuffles(const uint32_t* in, uint32_t* out) {
  const int lane = int(threadIdx.x);
  const uint32_t v = in[lane];
  uint32_t* y = out + lane * 10;
  y[0] = __shfl_sync(kFull, v, (lane * 7 + 3) % 32);
  y[1] = __shfl_sync(kFull, v, lane % 3, 8);
  y[2] = __shfl_up_sync(kFull, v, 3);
  y[3] = __shfl_up_sync(kFull, v, 5, 16);
  y[4] = __shfl_down_sync(kFull, v, 9);
  y[5] = __shfl_down_sync(kFull, v, 2, 4);
  y[6] = __shfl_xor_sync(kFull, v, 21);
  y[7] = __shfl_xor_sync(kFull, v, 5, 8);
  y[8] = __ballot_sync(kFull, int(v % 3 == 0));
  y[9] = uint32_t(__any_sync(kFull, v == 0) + 2 * __all_sync(kFull, v > 0));
}

// ---- 16-bit numbers: float -> bfloat16, float16; the lower half of the word as each of them ->
// float ----

__global__ void convert(const uint32_t* in, uint32_t* out) {
  const uint32_t word = in[threadIdx.x];
  const float x = __uint_as_float(word);
  uint32_t* y = out + threadIdx.x * 4;
  y[0] = bfloat16(x).bits;
  y[1] = float16(x).bits;
  y[2] = __float_as_uint(float(std::bit_cast<bfloat16>(uint16_t(word))));
  y[3] = __float_as_uint(float(std::bit_cast<float16>(uint16_t(word))));
}

template <auto kKernel, size_t kShared>
void run(const uint32_t* in, uint32_t* out) {
  one_warp(kKernel, kShared, in, out);
}

}  // namespace

const std::vector<Wrapper>& wrappers() {
  static const std::vector<Wrapper> all = {
      {"copy_async_4", 3, 3, run<copies<4>, sizeof(Copies<4>)>},
      {"copy_async_8", 6, 6, run<copies<8>, sizeof(Copies<8>)>},
      {"copy_async_16", 12, 12, run<copies<16>, sizeof(Copies<16>)>},
      {"to_tf32", 8, 8, run<round_tf32, 0>},
      {"mma_tf32", 10, 4, run<multiply<Type::kTf32>, 0>},
      {"mma_bf16", 10, 4, run<multiply<Type::kBf16>, 0>},
      {"mma_f16", 10, 4, run<multiply<Type::kF16>, 0>},
      {"load_matrix_x4", 4, 4, run<load_matrices<false>, sizeof(Rows)>},
      {"load_matrix_x4_transposed", 4, 4, run<load_matrices<true>, sizeof(Rows)>},
      {"shuffles", 1, 10, run<shuffles, 0>},
      {"convert", 1, 4, run<convert, 0>},
  };
  return all;
}

}  // namespace convgrad::cuda::selftest
