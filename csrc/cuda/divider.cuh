// Division by numbers that the host knows.
#pragma once
#include "cuda/launch.cuh"

namespace convgrad::cuda {

// Divides n in [0, 2^62) by d in [1, 2^62] by a multiplication and a shift, without the branches
// and the hundred instructions of a 64-bit division (Granlund and Montgomery, 1994).
struct Divider {
  using Wide = unsigned __int128;
  int64_t d = 1;
  uint64_t multiplier = 1;
  unsigned shift = 0;

  Divider() = default;
  explicit Divider(int64_t divisor) : d(divisor) {
    if (d == 1) return;
    while ((int64_t{1} << shift) < d) ++shift;
    multiplier = uint64_t((Wide{1} << 64) * Wide((int64_t{1} << shift) - d) / Wide(d) + 1);
  }

  __device__ int64_t quotient(int64_t n) const {
    const uint64_t high = uint64_t((Wide(uint64_t(n)) * multiplier) >> 64);
    return int64_t((high + uint64_t(n)) >> shift);
  }
  // n becomes its quotient; returns the remainder.
  __device__ int64_t split(int64_t& n) const {
    const int64_t q = quotient(n), rest = n - q * d;
    n = q;
    return rest;
  }
};

}  // namespace convgrad::cuda
