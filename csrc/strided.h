// Strided copies with as few axes as possible: what both backends make of a copy first.
#pragma once
#include "ops.h"

namespace convgrad {
namespace {

inline void swap_axes(StridedShape& s, int a, int b) {
  const auto swap = [](int64_t& u, int64_t& v) {
    const int64_t t = u;
    u = v;
    v = t;
  };
  swap(s.size[a], s.size[b]);
  swap(s.src_stride[a], s.src_stride[b]);
  swap(s.dst_stride[a], s.dst_stride[b]);
}

constexpr int64_t magnitude(int64_t v) { return v < 0 ? -v : v; }

// The same copy with as few axes as possible: no axis of length 1, the order of dst's memory,
// neighbours that are one run in both arrays joined.
inline StridedShape simplified(const StridedShape& given) {
  StridedShape s{};
  for (int i = 0; i < given.rank; ++i) {
    if (given.size[i] == 1) continue;
    s.size[s.rank] = given.size[i];
    s.src_stride[s.rank] = given.src_stride[i];
    s.dst_stride[s.rank] = given.dst_stride[i];
    for (int j = s.rank++; j > 0 && s.dst_stride[j - 1] < s.dst_stride[j]; --j)
      swap_axes(s, j - 1, j);
  }
  int last = 0;
  for (int i = 1; i < s.rank; ++i) {
    if (s.src_stride[last] == s.src_stride[i] * s.size[i] &&
        s.dst_stride[last] == s.dst_stride[i] * s.size[i]) {
      s.size[last] *= s.size[i];
      s.src_stride[last] = s.src_stride[i];
      s.dst_stride[last] = s.dst_stride[i];
    } else {
      ++last;
      s.size[last] = s.size[i];
      s.src_stride[last] = s.src_stride[i];
      s.dst_stride[last] = s.dst_stride[i];
    }
  }
  s.rank = s.rank ? last + 1 : 0;
  return s;
}

}  // namespace
}  // namespace convgrad
