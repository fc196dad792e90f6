// What happens to the elements of convolutions and matrix products before they are written.
#pragma once
#include "cuda/launch.cuh"

namespace convgrad::cuda {
namespace {

// v of channel `channel`, element `at` of the result, after the epilogue. NaN stays NaN.
template <class T>
__device__ Acc<T> finish(const Epilogue<T>& e, Acc<T> v, int64_t channel, int64_t at) {
  if (e.bias) v += Acc<T>(e.bias[channel]);
  if (e.relu && v < 0) v = 0;
  if (e.mask && Acc<T>(e.mask[at]) <= 0) v = 0;
  return v;
}

// Sums of more terms than this are sums of blocks' sums, so that the error of one running sum stays
// out of them.
constexpr int64_t kTermBlock = 1024;

}  // namespace
}  // namespace convgrad::cuda
