// Rows by index, and their adjoint.
#pragma once
#include "cuda/packs.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kThreads = 256;

inline int64_t find_outside(const Exec& exec, int64_t n, const int64_t* index, int64_t low,
                            int64_t high) {
  ValueError* errors = exec.errors;
  const char* op = exec.op;
  for_each(exec, n, [=] __device__(int64_t i) {
    if (index[i] < low || index[i] >= high) report(errors, op, index[i], low, high);
  });
  return -1;
}

// The row that an index means; -1 where it is outside [-rows, rows).
__device__ inline int64_t wrapped(int64_t index, int64_t rows) {
  if (index < -rows || index >= rows) return -1;
  return index < 0 ? index + rows : index;
}

template <int W, class T>
void index_packs(const Exec& exec, int64_t count, int64_t cols, const int64_t* index, int64_t rows,
                 const T* x, T* out) {
  ValueError* errors = exec.errors;
  const char* op = exec.op;
  const Divider by_packs(cols / W);
  for_each(exec, count * cols / W, [=] __device__(int64_t i) {
    int64_t at = i;
    const int64_t c = by_packs.split(at) * W, row = wrapped(index[at], rows);
    Pack<T, W> v{};
    if (row >= 0)
      v = load_pack<W>(x + row * cols + c);
    else
      report(errors, op, index[at], -rows, rows);
    store_pack(out + i * W, v);
  });
}
template <class T>
void index_rows(const Exec& exec, int64_t count, int64_t cols, const int64_t* index, int64_t rows,
                const T* x, T* out) {
  if (count * cols == 0) return;
  if (are_packs<Word<T>>(cols, x, out))
    return index_packs<kPack<Word<T>>>(exec, count, cols, index, rows, words(x), words(out));
  index_packs<1>(exec, count, cols, index, rows, words(x), words(out));
}

// Each block owns some rows and columns of out, its sums in shared memory. It reads the whole
// index, kChunk at a time, lists those that mean its rows, in their order, and adds their values in
// that order: each sum is made by one thread. Time is count per block, blocks are about rows cols /
// 4,096.
constexpr int kSums = 4096, kChunk = 1024, kWarps = kThreads / kWarp,
              kPerThread = kChunk / kThreads;
template <class T>
struct AddScratch {
  Acc<T> sum[kSums];
  int hits[kPerThread][kWarps];  // in a chunk, by the warps that looked at them
  int list[kChunk];              // row within the block * kChunk + number within the chunk
};
struct AddShape {
  int64_t count, cols, rows;
  int lanes, block_rows;  // columns and rows of a block; neighbouring threads are columns
  int64_t blocks;
  Divider by_col_blocks;

  AddShape(int64_t count_, int64_t cols_, int64_t rows_)
      : count(count_), cols(cols_), rows(rows_), lanes(power_of_two(cols, kThreads)) {
    block_rows = kSums / lanes;
    const int64_t col_blocks = ceil_div(cols, lanes);
    blocks = col_blocks * ceil_div(rows, block_rows);
    by_col_blocks = Divider(std::max<int64_t>(col_blocks, 1));
  }
};

// The indices of the chunk from `base` on that mean rows [r0, r0 + block_rows), in order; returns
// their number. Every thread of the block calls it.
template <class T>
__device__ int list_hits(const AddShape& s, const int64_t* index, int64_t base, int64_t r0,
                         AddScratch<T>& scratch) {
  const int me = int(threadIdx.x), lane = me % kWarp, warp = me / kWarp;
  int64_t row[kPerThread];
  unsigned found[kPerThread];
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t i = base + k * kThreads + me;
    row[k] = i < s.count ? wrapped(index[i], s.rows) - r0 : -1;
    found[k] = __ballot_sync(0xffffffffu, row[k] >= 0 && row[k] < s.block_rows);
    if (lane == 0) scratch.hits[k][warp] = __popc(found[k]);
  }
  __syncthreads();
  int total = 0;
#pragma unroll
  for (int k = 0; k < kPerThread; ++k)
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp && (found[k] >> lane & 1) != 0) {
        const int at = total + __popc(found[k] & ((1u << lane) - 1));
        scratch.list[at] = int(row[k]) * kChunk + k * kThreads + me;
      }
      total += scratch.hits[k][w];
    }
  __syncthreads();
  return total;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    index_add_kernel(AddShape s, const int64_t* __restrict__ index, const T* __restrict__ values,
                     T* __restrict__ out) {
  auto& scratch = shared<AddScratch<T>>();
  const int me = int(threadIdx.x), lane = me % s.lanes;
  const int groups = kThreads / s.lanes, group = me / s.lanes;  // a group takes every so many rows
  for (int64_t block = blockIdx.x; block < s.blocks; block += gridDim.x) {
    int64_t r0 = block;
    const int64_t c = s.by_col_blocks.split(r0) * s.lanes + lane;
    r0 *= s.block_rows;
    for (int row = group; row < s.block_rows; row += groups) scratch.sum[row * s.lanes + lane] = 0;
    for (int64_t base = 0; base < s.count; base += kChunk) {
      const int hits = list_hits(s, index, base, r0, scratch);
      constexpr int kAhead = 4;  // values fetched before they are added
      for (int first = 0; first < hits; first += kAhead) {
        int row[kAhead];
        Acc<T> v[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          const int entry = first + k < hits ? scratch.list[first + k] : 0;
          row[k] = entry / kChunk;
          if (first + k >= hits || row[k] % groups != group || c >= s.cols) row[k] = -1;
          v[k] = row[k] >= 0 ? Acc<T>(values[(base + entry % kChunk) * s.cols + c]) : Acc<T>(0);
        }
#pragma unroll
        for (int k = 0; k < kAhead; ++k)
          if (row[k] >= 0) scratch.sum[row[k] * s.lanes + lane] += v[k];
      }
    }
    for (int row = group; row < s.block_rows; row += groups)
      if (r0 + row < s.rows && c < s.cols)
        out[(r0 + row) * s.cols + c] = T(scratch.sum[row * s.lanes + lane]);
  }
}

template <class T>
void index_add(const Exec& exec, int64_t count, int64_t cols, const int64_t* index, const T* values,
               int64_t rows, T* out) {
  find_outside(exec, count, index, -rows, rows);
  const AddShape s(count, cols, rows);
  launch(exec, index_add_kernel<T>, dim3(unsigned(std::min(s.blocks, kMaxBlocks))), dim3(kThreads),
         sizeof(AddScratch<T>), s, index, values, out);
}

}  // namespace
}  // namespace convgrad::cuda
