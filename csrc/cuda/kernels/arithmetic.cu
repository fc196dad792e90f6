// Arithmetic of two arrays, or of an array and a number.
#include "cuda/launch.cuh"

namespace convgrad::cuda {
namespace {

template <Binary kOp, class T>
__device__ T combine(T a, T b) {
  if constexpr (kOp == Binary::kAdd) return a + b;
  if constexpr (kOp == Binary::kSub) return a - b;
  if constexpr (kOp == Binary::kMul) return a * b;
  if constexpr (kOp == Binary::kDiv) return a / b;
  // NaN where either is: a comparison with NaN is false.
  if constexpr (kOp == Binary::kMaximum) return a != a || a > b ? a : b;
  if constexpr (kOp == Binary::kMinimum) return a != a || a < b ? a : b;
}

template <class T>
__device__ Acc<T> value(const Operand<T>& x, int64_t i) {
  return x.array == nullptr ? x.number : Acc<T>(x.array[i]);
}

template <Binary kOp, class T>
void run(const Exec& exec, int64_t n, const Operand<T>& a, const Operand<T>& b, T* out) {
  for_each(exec, n,
           [=] __device__(int64_t i) { out[i] = T(combine<kOp>(value(a, i), value(b, i))); });
}

template <class T>
void binary(const Exec& exec, Binary op, int64_t n, const Operand<T>& a, const Operand<T>& b,
            T* out) {
  constexpr decltype(&run<Binary::kAdd, T>) kRun[] = {
      run<Binary::kAdd, T>, run<Binary::kSub, T>,     run<Binary::kMul, T>,
      run<Binary::kDiv, T>, run<Binary::kMaximum, T>, run<Binary::kMinimum, T>};
  kRun[int(op)](exec, n, a, b, out);
}

template <class T>
void add(Ops<T>& table) {
  table.binary = binary<T>;
}

}  // namespace

CONVGRAD_STEM(arithmetic)

}  // namespace convgrad::cuda
