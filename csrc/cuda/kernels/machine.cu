// The ceiling of arithmetic, for benchmarks: multiply-adds on registers alone.
#include "cuda/launch.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChains = 8;  // independent, so that their latency is hidden
constexpr int kSteps = 16;  // per round, so that the loop around them costs nothing

template <class T>
int64_t fma_flops() {
  return int64_t{2} * kSteps * kChains * kThreads;
}

// One block per item; y[item] is its thread 0's.
template <class T>
__global__ void __launch_bounds__(kThreads)
    fma_kernel(int64_t rounds, Acc<T> scale, Acc<T> offset, T* y) {
  Acc<T> x[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) x[i] = Acc<T>(i + int(threadIdx.x) % 2) + offset;
  // x -> 0.75 x + 0.25 stays between its start and 1, so that no value is special.
  for (int64_t round = 0; round < rounds; ++round)
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int i = 0; i < kChains; ++i) x[i] = x[i] * scale + offset;
#pragma unroll
  for (int i = 1; i < kChains; ++i) x[0] += x[i];
  if (threadIdx.x == 0) y[blockIdx.x] = T(x[0]);
}

template <class T>
void fma_rounds(const Exec& exec, int64_t items, int64_t rounds, T* y) {
  launch(exec, fma_kernel<T>, dim3(unsigned(items)), dim3(kThreads), 0, rounds, Acc<T>(0.75),
         Acc<T>(0.25), y);
}

template <class T>
void add(Ops<T>& table) {
  table.fma_flops = fma_flops<T>;
  table.fma_rounds = fma_rounds<T>;
}

}  // namespace

CONVGRAD_STEM(machine)

}  // namespace convgrad::cuda
