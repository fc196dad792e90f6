// Arithmetic of two dense arrays, or of an array and a number.
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

template <class T, Binary kKind>
inline Vec<T> combine(Vec<T> a, Vec<T> b) {
  if constexpr (kKind == Binary::kAdd) return a + b;
  if constexpr (kKind == Binary::kSub) return a - b;
  if constexpr (kKind == Binary::kMul) return a * b;
  if constexpr (kKind == Binary::kDiv) return a / b;
  // A NaN wins: b's by losing every comparison.
  if constexpr (kKind == Binary::kMaximum) return (a > b) | (a != a) ? a : b;
  if constexpr (kKind == Binary::kMinimum) return (a < b) | (a != a) ? a : b;
}

// kA, kB: whether that operand is an array.
template <class T, Binary kKind, bool kA, bool kB>
void combine_all(const Exec& exec, int64_t n, const Operand<T>& left, const Operand<T>& right,
                 T* out) {
  const T *const a = left.array, *const b = right.array;
  const Vec<T> first = broadcast(left.number), second = broadcast(right.number);
  parallel_ranges(exec, n, kGrain, [&](int64_t i, int64_t end) {
    for (; i + kLanes<T> <= end; i += kLanes<T>)
      store(out + i, combine<T, kKind>(kA ? load(a + i) : first, kB ? load(b + i) : second));
    if (i == end) return;
    const Vec<T> x = kA ? load_first(a + i, end - i) : first;
    const Vec<T> y = kB ? load_first(b + i, end - i) : second;
    store_first(out + i, combine<T, kKind>(x, y), end - i);
  });
}

template <class T, Binary kKind>
void combine_kind(const Exec& exec, int64_t n, const Operand<T>& a, const Operand<T>& b, T* out) {
  if (a.array == nullptr) return combine_all<T, kKind, false, true>(exec, n, a, b, out);
  if (b.array == nullptr) return combine_all<T, kKind, true, false>(exec, n, a, b, out);
  combine_all<T, kKind, true, true>(exec, n, a, b, out);
}

template <class T>
void binary(const Exec& exec, Binary kind, int64_t n, const Operand<T>& a, const Operand<T>& b,
            T* out) {
  switch (kind) {
#define CONVGRAD_CASE(kind) \
  case Binary::kind:        \
    return combine_kind<T, Binary::kind>(exec, n, a, b, out);
    CONVGRAD_CASE(kAdd)
    CONVGRAD_CASE(kSub)
    CONVGRAD_CASE(kMul)
    CONVGRAD_CASE(kDiv)
    CONVGRAD_CASE(kMaximum)
    CONVGRAD_CASE(kMinimum)
#undef CONVGRAD_CASE
  }
}

}  // namespace

namespace CONVGRAD_ISA {
void add_arithmetic(Ops<float>& table) { table.binary = binary<float>; }
void add_arithmetic(Ops<double>& table) { table.binary = binary<double>; }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
