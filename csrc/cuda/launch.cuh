// How CUDA kernels are launched, and what all of them use: compiled by nvcc for a card, or by the
// host's compiler for the simulator (sim/), from the same source.
//
// Rules for kernels/, so that both work:
//   - Launches go through launch(); inline assembly lives in ptx.cuh; no <<<>>>, no asm elsewhere.
//   - Shared memory is one struct per kernel, got by shared<S>(), of sizeof(S) launched bytes.
//   - No memcpy or memset of more than 16 bytes in a kernel: the simulator does not see them.
//   - No waiting for other blocks; no atomics on floating-point numbers, so that the order of sums
//     and with it every bit is the same each time.
#pragma once
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda/sim/device.h"
#endif

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "integers.h"
#include "ops.h"

namespace convgrad::cuda {

constexpr int kWarp = 32;
constexpr int64_t kMaxBlocks = 132 * 32;  // of kernels that stride over their work

// Throws std::runtime_error naming the call unless all is well.
inline void check(cudaError_t error, const char* op) {
  if (error != cudaSuccess)
    throw std::runtime_error("[" + std::string(op) +
                             "] The GPU reports: " + cudaGetErrorString(error) + ".");
}

// Ends a stem's file: its add() for every type that CUDA's arrays have.
#define CONVGRAD_STEM(stem)                             \
  void add_##stem(Ops<float>& table) { add(table); }    \
  void add_##stem(Ops<double>& table) { add(table); }   \
  void add_##stem(Ops<bfloat16>& table) { add(table); } \
  void add_##stem(Ops<float16>& table) { add(table); }

#if defined(__CUDACC__)
// The block's shared memory, `sizeof(S)` bytes of it given at launch.
template <class S>
__device__ S& shared() {
  extern __shared__ __align__(1024) unsigned char bytes[];
  return *reinterpret_cast<S*>(bytes);
}

// kernel(args...) on exec's stream; nothing for an empty grid.
template <class... P, class... A>
void launch(const Exec& exec, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
            A... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)),
          exec.op);
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(exec.stream)>>>(
      static_cast<P>(args)...);
  check(cudaGetLastError(), exec.op);
}
#endif  // the simulator's own are in sim/device.h

// This thread's number in the grid, and how many there are, along x.
__device__ inline int64_t thread_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t thread_count() { return int64_t(gridDim.x) * blockDim.x; }

template <class F>
__global__ void each_index(int64_t n, F f) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) f(i);
}
// f(i) for i in [0, n), on the device. f is a functor or [=] __device__(int64_t i) { ... }.
template <class F>
void for_each(const Exec& exec, int64_t n, F f) {
  constexpr int kBlock = 256;
  const int64_t blocks = std::min(ceil_div(n, kBlock), kMaxBlocks);
  launch(exec, each_index<F>, dim3(unsigned(blocks)), dim3(kBlock), 0, n, f);
}

// The sum, or what `combine` makes, of v over the lanes of a warp, in every lane; always the same
// tree.
template <class T, class Combine>
__device__ T warp_reduce(T v, Combine combine) {
  for (int step = kWarp / 2; step > 0; step /= 2)
    v = combine(v, __shfl_xor_sync(0xffffffffu, v, step));
  return v;
}
template <class T>
struct Plus {
  __device__ T operator()(T a, T b) const { return a + b; }
};
template <class T>
__device__ T warp_sum(T v) {
  return warp_reduce(v, Plus<T>{});
}

// The same over a block of kThreads threads (a multiple of 32, at most 1,024); `scratch` is shared
// memory for one value per warp. Every thread calls it and gets the result.
template <int kThreads, class T, class Combine>
__device__ T block_reduce(T v, T (&scratch)[kThreads / kWarp], Combine combine) {
  constexpr int kWarps = kThreads / kWarp;
  v = warp_reduce(v, combine);
  __syncthreads();  // scratch may still be read from the call before
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = v;
  __syncthreads();
  v = scratch[0];
  for (int i = 1; i < kWarps; ++i) v = combine(v, scratch[i]);
  return v;
}

// What a kernel computes in, for arrays of T: float for those of 16 bits, else T itself.
template <class T>
using Acc = Stat<T>;

// N neighbouring elements, read or written by one access of at most 16 bytes.
template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  static_assert(N * sizeof(T) <= 16);
  T v[N];
  __device__ T& operator[](int i) { return v[i]; }
  __device__ const T& operator[](int i) const { return v[i]; }
};
// As many as are 16 bytes of what they are computed in.
template <class T>
constexpr int kPack = 16 / int(sizeof(Acc<T>));
// The pack at p, which is a multiple of its bytes.
template <int N, class T>
__device__ Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}
template <int N, class T>
__device__ void store_pack(T* p, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// Elements p[i .. i + N), and zeros from the n-th on; `packed`: p is a multiple of a pack's bytes.
// Both ways give the same values, so that no bit of a result depends on where its array lies.
template <int N, class T>
__device__ Pack<T, N> load_some(const T* p, int64_t i, int64_t n, bool packed) {
  if (packed && i + N <= n) return load_pack<N>(p + i);
  Pack<T, N> pack;
  for (int k = 0; k < N; ++k) pack[k] = i + k < n ? p[i + k] : T(0);
  return pack;
}
template <int N, class T>
__device__ void store_some(T* p, int64_t i, int64_t n, bool packed, const Pack<T, N>& pack) {
  if (packed && i + N <= n) return store_pack(p + i, pack);
  for (int k = 0; k < N && i + k < n; ++k) p[i + k] = pack[k];
}
// Whether all of these may be read and written by packs of 16 bytes; null pointers may.
template <class... P>
__host__ __device__ bool aligned(const P*... p) {
  return (... && (reinterpret_cast<uintptr_t>(p) % 16 == 0));
}

// Keeps the first report; see ValueError.
__device__ inline void report(ValueError* errors, const char* op, int64_t value, int64_t low,
                              int64_t high) {
  if (atomicCAS(&errors->raised, 0u, 1u) != 0u) return;
  errors->op = op;  // an address of the host's, for the host alone
  errors->value = value;
  errors->low = low;
  errors->high = high;
}
__device__ inline void report_real(ValueError* errors, const char* op, double value, int64_t low,
                                   int64_t high) {
  if (atomicCAS(&errors->raised, 0u, 1u) != 0u) return;
  errors->op = op;
  errors->is_real = true;
  errors->real = value;
  errors->low = low;
  errors->high = high;
}

}  // namespace convgrad::cuda
