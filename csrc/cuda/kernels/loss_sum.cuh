// How losses add up their terms: each thread its own in double, a block its threads' in a fixed
// tree, and one more block the blocks' sums.
#pragma once
#include "cuda/launch.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kLossThreads = 256;

struct LossSum {
  double loss = 0, weight = 0;  // kMean divides by the weight
};

template <class A>
struct LossOutput {
  Reduction reduction;
  LossSum* parts;  // one per block
  A *loss, *norm;  // norm, where not null: what the sum is divided by
};

// Writes the block's sum, or the loss itself if there is no other block; every thread calls it.
template <class A>
__device__ void add_up(const LossOutput<A>& out, LossSum mine,
                       double (&scratch)[kLossThreads / kWarp]) {
  const bool none = out.reduction == Reduction::kNone;
  if (!none) {
    mine.loss = block_reduce<kLossThreads>(mine.loss, scratch, Plus<double>{});
    mine.weight = block_reduce<kLossThreads>(mine.weight, scratch, Plus<double>{});
  }
  if (threadIdx.x != 0) return;
  if (!none && gridDim.x > 1) {
    out.parts[blockIdx.x] = mine;
  } else if (blockIdx.x == 0) {
    const double divisor = out.reduction == Reduction::kMean ? mine.weight : 1;
    if (out.norm) *out.norm = A(divisor);
    if (!none) *out.loss = A(mine.loss / divisor);
  }
}

struct LossScratch {
  double sums[kLossThreads / kWarp];
};

template <class A>
__global__ void __launch_bounds__(kLossThreads) add_parts(LossOutput<A> out, int64_t blocks) {
  LossSum mine;
  for (int64_t i = threadIdx.x; i < blocks; i += kLossThreads) {
    mine.loss += out.parts[i].loss;
    mine.weight += out.parts[i].weight;
  }
  add_up(out, mine, shared<LossScratch>().sums);
}

// What is left after a kernel of `blocks` blocks that ended in add_up.
template <class A>
void finish_loss(const Exec& exec, const LossOutput<A>& out, int64_t blocks) {
  if (out.reduction == Reduction::kNone || blocks == 1) return;
  launch(exec, add_parts<A>, dim3(1), dim3(kLossThreads), sizeof(LossScratch), out, blocks);
}

}  // namespace
}  // namespace convgrad::cuda
