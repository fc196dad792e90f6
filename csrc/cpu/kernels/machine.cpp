// The ceiling of arithmetic, for benchmarks: multiply-adds on registers alone.
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif
// Independent chains: more than the 8 that two units of latency 4 need, and few enough for 16
// registers, two of which hold the factors.
constexpr int kChains = 12 * kRegisterBytes / kVectorBytes;
constexpr int kSteps = 64;  // per round, so that the loop around them costs nothing

template <class T>
int64_t fma_flops() {
  return int64_t{2} * kSteps * kChains * kLanes<T>;
}

template <class T>
void fma_rounds(const Exec& exec, int64_t items, int64_t rounds, T* y) {
  parallel_for(exec, items, items * rounds * fma_flops<T>() / 2, [&](int64_t item, int) {
    // x -> 0.75 x + 0.25 stays between its start and 1, so that no value is special. The factors
    // come from memory, so that the compiler cannot compute ahead.
    volatile T scale = T(0.75), offset = T(0.25);
    const Vec<T> a = broadcast<T>(scale), b = broadcast<T>(offset);
    Vec<T> x[kChains];
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) x[i] = broadcast<T>(static_cast<T>(i) + offset);
    for (int64_t round = 0; round < rounds; ++round)
      for (int step = 0; step < kSteps; ++step)
#pragma GCC unroll 16
        for (int i = 0; i < kChains; ++i) x[i] = x[i] * a + b;
#pragma GCC unroll 16
    for (int i = 1; i < kChains; ++i) x[0] += x[i];
    T lanes[kLanes<T>];
    store(lanes, x[0]);
    y[item] = lanes[0];
  });
}

template <class T>
void add(Ops<T>& table) {
  table.fma_flops = fma_flops<T>;
  table.fma_rounds = fma_rounds<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_machine(Ops<float>& table) { add(table); }
void add_machine(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
