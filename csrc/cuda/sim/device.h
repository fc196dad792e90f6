// What kernels see when the host's compiler compiles them for the simulator: CUDA's keywords,
// thread indices, barriers, warp operations and atomics, shared<S>() and launch(). runtime.cpp
// holds what they do.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda/sim/math.h"
#include "cuda/sim/runtime.h"
#include "cuda/sim/types.h"
#include "ops.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))

// Set before a thread runs. Declared const here, for then the compiler does not hook their reads;
// to one thread they are constant.
#define SIM_HIDDEN __attribute__((visibility("hidden")))
extern SIM_HIDDEN const uint3 threadIdx;
extern SIM_HIDDEN const uint3 blockIdx;
extern SIM_HIDDEN const uint3 blockDim;
extern SIM_HIDDEN const uint3 gridDim;
constexpr int warpSize = 32;

namespace convgrad::cuda::sim {

// Where in the source a barrier or warp operation stands; a default argument.
struct Site {
  const char* file;
  int line;
};
#define SIM_SITE convgrad::cuda::sim::Site site = {__builtin_FILE(), __builtin_LINE()}

// ---- inside kernels ----
// Waits for the whole block; the number of threads whose predicate is true.
unsigned block_barrier(const char* name, bool predicate, Site site);
// Waits for the lanes in `mask`, which all name the same operation; lane i gets what lane
// source(i) gave. Negative: its own.
uint64_t warp_shuffle(const char* name, unsigned mask, uint64_t value, int source, Site site);
// Waits for the lanes in `mask`; what the whole warp wrote before it reads after.
void sync_warp(unsigned mask, Site site);
// Waits; every lane gets a bit per lane whose predicate is true.
unsigned warp_ballot(const char* name, unsigned mask, bool predicate, Site site);
int lane();
void* shared_memory(size_t bytes, size_t align);
// Checks an atomic access.
void atomic_access(void* p, size_t bytes);
[[noreturn]] void trap(Site site);

// ---- a launch ----
struct Launch {
  const void* kernel;  // its address, for its name
  const char* op;
  dim3 grid, block;
  size_t shared_bytes;
  void* stream;
  void (*thread)(const void* arguments);  // runs the kernel as one thread
  const void* arguments;
  void* (*copy)(const void* arguments);  // for a launch that is left for later
  void (*destroy)(const void* copy);
};
// Runs every block to its end when it is the stream's turn (stream.cpp); throws std::runtime_error
// for what the kernel did wrong.
void run(const Launch& launch);

template <class... P>
struct Arguments {
  void (*kernel)(P...);
  std::tuple<P...> values;

  // Not hooked: the arguments lie on the host's stack, which kernels may not touch.
  template <size_t... I>
  __attribute__((no_sanitize("thread"))) void call(std::index_sequence<I...>) const {
    kernel(P(std::get<I>(values))...);
  }
  __attribute__((no_sanitize("thread"))) static void thread(const void* self) {
    static_cast<const Arguments*>(self)->call(std::index_sequence_for<P...>());
  }
  static void* copy(const void* self) {
    return new Arguments(*static_cast<const Arguments*>(self));
  }
  static void destroy(const void* self) { delete static_cast<const Arguments*>(self); }
};

template <class T, class F>
__attribute__((noinline, no_sanitize("thread"))) T atomic_update(T* p, F next) {
  atomic_access(p, sizeof(T));
  const T old = *p;
  *p = next(old);
  return old;
}

template <class T>
T shuffle(const char* name, unsigned mask, T v, int source, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof(T));
  bits = warp_shuffle(name, mask, bits, source, site);
  std::memcpy(&v, &bits, sizeof(T));
  return v;
}

}  // namespace convgrad::cuda::sim

inline void __syncthreads(SIM_SITE) {
  convgrad::cuda::sim::block_barrier("__syncthreads", false, site);
}
inline int __syncthreads_count(int predicate, SIM_SITE) {
  return int(convgrad::cuda::sim::block_barrier("__syncthreads_count", predicate != 0, site));
}
inline int __syncthreads_or(int predicate, SIM_SITE) {
  return convgrad::cuda::sim::block_barrier("__syncthreads_or", predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, SIM_SITE) {
  return convgrad::cuda::sim::block_barrier("__syncthreads_and", predicate == 0, site) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, SIM_SITE) {
  convgrad::cuda::sim::sync_warp(mask, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SIM_SITE) {
  return convgrad::cuda::sim::warp_ballot("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, SIM_SITE) {
  return convgrad::cuda::sim::warp_ballot("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIM_SITE) {
  return convgrad::cuda::sim::warp_ballot("__all_sync", mask, predicate == 0, site) == 0;
}

// Shuffles within segments of `width` lanes (a power of 2).
template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32, SIM_SITE) {
  const int base = convgrad::cuda::sim::lane() & ~(width - 1);
  return convgrad::cuda::sim::shuffle("__shfl_sync", mask, v, base + (source & (width - 1)), site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, SIM_SITE) {
  const int lane = convgrad::cuda::sim::lane(), base = lane & ~(width - 1);
  const int source = lane - int(delta);
  return convgrad::cuda::sim::shuffle("__shfl_up_sync", mask, v, source < base ? -1 : source, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, SIM_SITE) {
  const int lane = convgrad::cuda::sim::lane(), end = (lane & ~(width - 1)) + width;
  const int source = lane + int(delta);
  return convgrad::cuda::sim::shuffle("__shfl_down_sync", mask, v, source >= end ? -1 : source,
                                      site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32, SIM_SITE) {
  const int lane = convgrad::cuda::sim::lane(), end = (lane & ~(width - 1)) + width;
  const int source = lane ^ lane_mask;
  return convgrad::cuda::sim::shuffle("__shfl_xor_sync", mask, v, source >= end ? -1 : source,
                                      site);
}

// Fences order memory for other threads, which the simulator takes for granted.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __trap(SIM_SITE) { convgrad::cuda::sim::trap(site); }

// Of integers alone: sums of floating-point numbers by atomics would change from run to run.
template <class T>
concept SimAtomic = std::is_same_v<T, int> || std::is_same_v<T, unsigned> ||
                    std::is_same_v<T, long long> || std::is_same_v<T, unsigned long long>;
#define SIM_ATOMIC(name, expression)                                                    \
  template <SimAtomic T>                                                                \
  T name(T* p, std::type_identity_t<T> v) {                                             \
    return convgrad::cuda::sim::atomic_update(p, [=](T old) { return T(expression); }); \
  }
SIM_ATOMIC(atomicAdd, old + v)
SIM_ATOMIC(atomicSub, old - v)
SIM_ATOMIC(atomicExch, ((void)old, v))
SIM_ATOMIC(atomicMin, old < v ? old : v)
SIM_ATOMIC(atomicMax, old > v ? old : v)
SIM_ATOMIC(atomicAnd, old& v)
SIM_ATOMIC(atomicOr, old | v)
SIM_ATOMIC(atomicXor, old ^ v)
SIM_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
SIM_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef SIM_ATOMIC
template <SimAtomic T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return convgrad::cuda::sim::atomic_update(p, [=](T old) { return old == expected ? v : old; });
}

namespace convgrad::cuda {

// The block's shared memory, `sizeof(S)` bytes of it given at launch.
template <class S>
S& shared() {
  return *static_cast<S*>(sim::shared_memory(sizeof(S), alignof(S)));
}

// kernel(args...) on exec's stream; nothing for an empty grid.
template <class... P, class... A>
void launch(const Exec& exec, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
            A... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  using Arguments = sim::Arguments<P...>;
  const Arguments arguments{kernel, {static_cast<P>(args)...}};
  sim::run({reinterpret_cast<const void*>(kernel), exec.op, grid, block, shared_bytes, exec.stream,
            Arguments::thread, &arguments, Arguments::copy, Arguments::destroy});
}

}  // namespace convgrad::cuda
