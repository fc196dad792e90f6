// Vectors of any number of lanes, and loops over channels in blocks of them.
#pragma once
#include "vec.h"

namespace convgrad::cpu {
namespace {

// Vectors of W lanes at any address; W = 1 is the scalar itself.
template <class T, int W>
struct LanesOf {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
  typedef T unaligned
      __attribute__((vector_size(W * sizeof(T)), aligned(alignof(T)), __may_alias__));
};
template <class T>
struct LanesOf<T, 1> {
  typedef T type;
  typedef T unaligned;
};
template <class T, int W>
using Lanes = typename LanesOf<T, W>::type;
template <class T, int W>
inline Lanes<T, W> get(const T* p) {
  return *reinterpret_cast<const typename LanesOf<T, W>::unaligned*>(p);
}
template <class T, int W>
inline void put(T* p, Lanes<T, W> v) {
  *reinterpret_cast<typename LanesOf<T, W>::unaligned*>(p) = v;
}

// Calls block(W, c) for blocks of channels: vectors, then quads, then one by one. Where a block may
// be computed twice (`again`: it does not add to what it wrote), the last one reaches back instead.
template <int N>
struct Width {
  static constexpr int value = N;
};
template <class T, class Block>
inline void for_channels(int64_t c, bool again, const Block& block) {
  constexpr int kWide = kLanes<T>;
  int64_t at = 0;
  for (; at + kWide <= c; at += kWide) block(Width<kWide>{}, at);
  if (at == c) return;
  if (again && c >= kWide) return block(Width<kWide>{}, c - kWide);
  if constexpr (kWide > 4) {
    for (; at + 4 <= c; at += 4) block(Width<4>{}, at);
    if (at == c) return;
    if (again && c >= 4) return block(Width<4>{}, c - 4);
  }
  for (; at < c; ++at) block(Width<1>{}, at);
}

}  // namespace
}  // namespace convgrad::cpu
