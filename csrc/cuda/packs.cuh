// Kernels over packs of neighbouring channels, 16 bytes where lengths and addresses allow it.
#pragma once
#include "cuda/divider.cuh"
#include "cuda/launch.cuh"

namespace convgrad::cuda {

// Whether rows of `length` elements at these addresses (null: any) consist of whole packs.
template <class T, class... P>
bool are_packs(int64_t length, const P*... p) {
  return length % kPack<T> == 0 && aligned(p...);
}

// What moves an element of T, whose value does not matter: one type for all of 16 bits.
template <class T>
struct WordOf {
  using type = T;
};
template <>
struct WordOf<bfloat16> {
  using type = uint16_t;
};
template <>
struct WordOf<float16> {
  using type = uint16_t;
};
template <class T>
using Word = typename WordOf<T>::type;
template <class T>
Word<T>* words(T* p) {
  return reinterpret_cast<Word<T>*>(p);
}
template <class T>
const Word<T>* words(const T* p) {
  return reinterpret_cast<const Word<T>*>(p);
}

// The number of elements per access, for the compiler.
template <int W>
struct Width {
  static constexpr int value = W;
};
// fn(Width) of whole packs or of single elements.
template <class T, class Fn>
void with_width(bool packs, const Fn& fn) {
  if (packs)
    fn(Width<kPack<T>>{});
  else
    fn(Width<1>{});
}

// W elements from p on, which is a multiple of their bytes, in the type that kernels compute in.
template <int W, class T>
__device__ void load_values(const T* p, Acc<T> (&v)[W]) {
  const Pack<T, W> pack = load_pack<W>(p);
#pragma unroll
  for (int j = 0; j < W; ++j) v[j] = Acc<T>(pack[j]);
}
template <int W, class T>
__device__ void store_values(T* p, const Acc<T> (&v)[W]) {
  Pack<T, W> pack;
#pragma unroll
  for (int j = 0; j < W; ++j) pack[j] = T(v[j]);
  store_pack(p, pack);
}

// The grid of a kernel that strides over `items`, one per thread.
inline dim3 grid_for(int64_t items, int threads) {
  return dim3(unsigned(std::min(ceil_div(items, threads), kMaxBlocks)));
}

// W sums at once, of numbers of type A. After every kTerms terms they begin anew and are added to
// the total, so that the error of a long sum does not grow with its length.
template <class A, int W>
struct LongSum {
  static constexpr int kTerms = 256;
  A total[W] = {}, part[W] = {};
  int terms = 0;

  __device__ void add(const A (&v)[W]) {
#pragma unroll
    for (int j = 0; j < W; ++j) part[j] += v[j];
    if (++terms == kTerms) fold();
  }
  // The sums, in `total`.
  __device__ void fold() {
#pragma unroll
    for (int j = 0; j < W; ++j) {
      total[j] += part[j];
      part[j] = 0;
    }
    terms = 0;
  }
};

// The smallest power of two that is at least n, at most `most` (one too).
constexpr int power_of_two(int64_t n, int most) {
  int p = 1;
  while (p < n && p < most) p *= 2;
  return p;
}

}  // namespace convgrad::cuda
