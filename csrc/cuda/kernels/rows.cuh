// Rows of a matrix (rows, c), each worked on by a team of neighbouring threads: a few threads for
// short rows, a warp, or a block for long ones, chosen by c alone.
#pragma once
#include <type_traits>

#include "cuda/launch.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kRowThreads = 256;
constexpr int64_t kRowBlocks = kMaxBlocks / 4;  // so that one more block can add up their results

// fn(size), an integral_constant, with the team's size for rows of c elements.
template <class Fn>
void with_team(int64_t c, const Fn& fn) {
  if (c <= 32) return fn(std::integral_constant<int, 4>{});
  if (c <= 4096) return fn(std::integral_constant<int, kWarp>{});
  fn(std::integral_constant<int, kRowThreads>{});
}

// The blocks for `rows` rows, at least one: a kernel may have sums to write for no rows at all.
inline int64_t row_blocks(int64_t rows, int team) {
  const int64_t blocks = ceil_div(rows, kRowThreads / team);
  return std::max<int64_t>(1, std::min(blocks, kRowBlocks));
}

// Shared memory of kernels with teams of `T`.
template <class T>
struct RowScratch {
  T values[kRowThreads / kWarp];
  double sums[kRowThreads / kWarp];
};

// A thread's place in its team. All threads of a block take part in every reduction.
template <int kLanes>
struct Team {
  static constexpr int kCount = kRowThreads / kLanes;  // teams of a block

  __device__ int lane() const { return int(threadIdx.x) % kLanes; }

  // What `combine` makes of v over the lanes, in every lane; always the same tree.
  template <class T, class Combine>
  __device__ T reduce(T v, T (&scratch)[kRowThreads / kWarp], Combine combine) const {
    if constexpr (kLanes > kWarp) {
      return block_reduce<kRowThreads>(v, scratch, combine);
    } else {
      for (int step = kLanes / 2; step > 0; step /= 2)
        v = combine(v, __shfl_xor_sync(0xffffffffu, v, step));
      return v;
    }
  }

  // body(row, valid) for this team's rows of the grid's. Threads without a row left get the last
  // one and valid = false, so that a warp's threads stay together.
  template <class Body>
  __device__ void for_rows(int64_t rows, const Body& body) const {
    const int64_t step = int64_t(gridDim.x) * kCount;
    for (int64_t first = int64_t(blockIdx.x) * kCount; first < rows; first += step) {
      const int64_t row = first + int(threadIdx.x) / kLanes;
      body(row < rows ? row : rows - 1, row < rows);
    }
  }
};

}  // namespace
}  // namespace convgrad::cuda
