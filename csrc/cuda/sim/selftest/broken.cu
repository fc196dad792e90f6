// Kernels broken on purpose, each beside its correct twin: a test of the simulator. Every case is a
// typical mistake; kBroken makes it.
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda/ptx.cuh"
#include "cuda/sim/selftest/selftest.h"

namespace convgrad::cuda::selftest {
namespace {

constexpr unsigned kFull = 0xffffffffu;
constexpr int kThreads = 64;

// Device memory with a host's values, freed at the end.
class Buffer {
 public:
  explicit Buffer(int n) : n_(n) {
    check(cudaMalloc(&data_, size_t(n) * sizeof(float)), "selftest");
  }
  explicit Buffer(const std::vector<float>& values) : Buffer(int(values.size())) {
    check(cudaMemcpy(data_, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice),
          "selftest");
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator float*() const { return data_; }
  std::vector<float> values() const {
    std::vector<float> values(static_cast<size_t>(n_));
    check(cudaMemcpy(values.data(), data_, values.size() * sizeof(float), cudaMemcpyDeviceToHost),
          "selftest");
    return values;
  }

 private:
  int n_;
  float* data_ = nullptr;
};

std::vector<float> counting(int n) {
  std::vector<float> values(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) values[size_t(i)] = float(i);
  return values;
}

Exec selftest_exec() {
  Exec exec;
  exec.op = "selftest";
  return exec;
}
template <class Shared, class... P, class... A>
void one_block(void (*kernel)(P...), A... args) {
  launch(selftest_exec(), kernel, dim3(1), dim3(kThreads), sizeof(Shared), args...);
}
template <class Shared, class... P, class... A>
void blocks(unsigned n, void (*kernel)(P...), A... args) {
  launch(selftest_exec(), kernel, dim3(n), dim3(kThreads), sizeof(Shared), args...);
}

struct Tile {
  alignas(16) float a[kThreads];
};
struct TooLarge {
  float a[60 * 1024];
};
struct Last {
  unsigned ticket;
};

// ---- barriers ----

template <bool kBroken>
__global__ void barrier_before_read(const float* x, float* y) {
  auto& tile = shared<Tile>();
  tile.a[threadIdx.x] = x[threadIdx.x];
  if (!kBroken) __syncthreads();
  y[threadIdx.x] = tile.a[kThreads - 1 - threadIdx.x];
}

template <bool kBroken>
__global__ void barrier_before_overwrite(const float* x, float* y) {
  auto& tile = shared<Tile>();
  float sum = 0;
  for (int step = 0; step < 3; ++step) {
    tile.a[threadIdx.x] = x[step * kThreads + threadIdx.x];
    __syncthreads();
    sum += tile.a[(threadIdx.x + 1) % kThreads];
    if (!kBroken) __syncthreads();
  }
  y[threadIdx.x] = sum;
}

template <bool kBroken>
__global__ void barrier_in_branch(float* y) {
  if (kBroken && threadIdx.x < kThreads / 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = 1;
}

template <bool kBroken>
__global__ void return_before_barrier(const float* x, float* y, unsigned n) {
  auto& tile = shared<Tile>();
  if (kBroken && threadIdx.x >= n) return;
  tile.a[threadIdx.x] = threadIdx.x < n ? x[threadIdx.x] : 0.0f;
  __syncthreads();
  if (threadIdx.x < n) y[threadIdx.x] = tile.a[n - 1 - threadIdx.x];
}

template <bool kBroken>
__global__ void warp_waits_for_block(float* y) {
  if (kBroken && threadIdx.x == 3) __syncthreads();
  __syncwarp();
  __syncthreads();
  y[threadIdx.x] = 1;
}

// ---- warps ----

template <bool kBroken>
__global__ void exchange_in_warp(const float* x, float* y) {
  auto& tile = shared<Tile>();
  tile.a[threadIdx.x] = x[threadIdx.x];
  if (!kBroken) __syncwarp();
  y[threadIdx.x] = tile.a[threadIdx.x ^ 1];
}

// The sums of two warps by a tree in shared memory.
template <bool kBroken>
__global__ void sum_in_warp(const float* x, float* y) {
  auto& tile = shared<Tile>();
  float* a = tile.a + threadIdx.x / 32 * 32;
  const int lane = int(threadIdx.x) % 32;
  a[lane] = x[threadIdx.x];
  for (int step = 16; step > 0; step /= 2) {
    __syncwarp();
    const float other = lane < step ? a[lane + step] : 0.0f;
    if (!kBroken) __syncwarp();
    if (kBroken ? lane < 32 - step : lane < step) a[lane] += kBroken ? a[lane + step] : other;
  }
  __syncwarp();
  y[threadIdx.x] = a[0];
}

template <bool kBroken>
__global__ void shuffle_from_absent(float* y) {
  const int lane = int(threadIdx.x) % 32;
  float v = float(lane);
  if (lane < 16) v = __shfl_sync(0x0000ffffu, v, kBroken ? 16 : 15);
  y[threadIdx.x] = v;
}

template <bool kBroken>
__global__ void mask_of_ended_lanes(float* y, unsigned n) {
  if (kBroken && threadIdx.x >= n) return;
  const float sum = warp_sum(threadIdx.x < n ? 1.0f : 0.0f);
  if (threadIdx.x < n) y[threadIdx.x] = sum;
}

template <bool kBroken>
__global__ void different_operations(float* y) {
  const int lane = int(threadIdx.x) % 32;
  const unsigned mask = kBroken ? kFull : lane < 16 ? 0x0000ffffu : 0xffff0000u;
  if (lane < 16) {
    y[threadIdx.x] = float(__ballot_sync(mask, lane % 2) & 1);
  } else {
    y[threadIdx.x] = float(__any_sync(mask, lane == 20));
  }
}

// An mma whose A comes with rows and columns of a fragment exchanged: values, not a report.
template <bool kBroken>
__global__ void lane_map(const float* a, const float* b, float* d) {
  const int lane = int(threadIdx.x) % 32, group = lane / 4, member = lane % 4;
  uint32_t fa[4], fb[2];
  for (int i = 0; i < 4; ++i) {
    const int down = kBroken ? i / 2 : i % 2, right = kBroken ? i % 2 : i / 2;
    fa[i] = to_tf32(a[(group + 8 * down) * 8 + member + 4 * right]);
  }
  for (int i = 0; i < 2; ++i) fb[i] = to_tf32(b[(member + 4 * i) * 8 + group]);
  float fd[4] = {};
  mma_tf32(fd, fa, fb);
  if (threadIdx.x >= 32) return;
  for (int i = 0; i < 4; ++i) d[(group + 8 * (i / 2)) * 8 + 2 * member + i % 2] = fd[i];
}

template <bool kBroken>
__global__ void load_matrix_of_others(const float* x, float* y) {
  auto& tile = shared<Tile>();
  const int warp = int(threadIdx.x) / 32;
  if (warp == (kBroken ? 1 : 0)) tile.a[threadIdx.x % 32] = x[threadIdx.x];
  __syncwarp();
  if (warp != 0) return;
  uint32_t r[4];
  load_matrix_x4(r, tile.a + threadIdx.x % 8 * 4);
  y[threadIdx.x] = __uint_as_float(r[0]);
}

// ---- asynchronous copies ----

struct Stages {
  alignas(16) float stage[2][kThreads];
};
enum class Copy { kNoWait, kShortWait, kNoCommit, kNoBarrier, kEarlyStart, kNeverWaited };

// y[i] sums x[step][kThreads - 1 - i] over the steps, copied one step ahead.
template <Copy kMistake, bool kBroken>
__global__ void pipeline(const float* x, float* y, int steps) {
  constexpr auto breaks = [](Copy mistake) { return kBroken && kMistake == mistake; };
  auto& s = shared<Stages>();
  const int i = int(threadIdx.x);
  const auto begin = [&](int step) {
    if (step < steps) copy_async<4>(&s.stage[step % 2][i], x + step * kThreads + i, true);
    if (!breaks(Copy::kNoCommit)) copy_async_commit();
  };
  begin(0);
  float sum = 0;
  for (int step = 0; step < steps; ++step) {
    begin(step + 1);
    if (breaks(Copy::kShortWait)) {
      copy_async_wait<2>();
    } else if (!breaks(Copy::kNoWait)) {
      copy_async_wait<1>();
    }
    if (!breaks(Copy::kNoBarrier)) __syncthreads();
    sum += s.stage[step % 2][kThreads - 1 - i];
    if (!breaks(Copy::kEarlyStart)) __syncthreads();
  }
  if (breaks(Copy::kNeverWaited)) {
    copy_async<4>(&s.stage[0][i], x + i, true);
    copy_async_commit();
  }
  y[i] = sum;
}

// ---- bounds ----

template <bool kBroken>
__global__ void read_global_beyond(const float* x, float* y, int n) {
  const int i = int(threadIdx.x);
  if (kBroken ? i <= n : i < n) y[i] = x[i];
}

template <bool kBroken>
__global__ void write_global_before(float* y) {
  y[int(threadIdx.x) - (kBroken ? 1 : 0)] = 1;
}

template <bool kBroken>
__global__ void write_tile_beyond(float* y) {
  auto& tile = shared<Tile>();
  tile.a[threadIdx.x + (kBroken ? 1 : 0)] = 1;
  y[threadIdx.x] = tile.a[threadIdx.x + (kBroken ? 1 : 0)];
}

template <bool kBroken>
__global__ void read_shared_beyond(float* y) {
  float* a = shared<Tile>().a;
  a[threadIdx.x] = 2;
  __syncthreads();
  y[threadIdx.x] = a[threadIdx.x + (kBroken ? 1 : 0)];
}

template <bool kBroken>
__global__ void misaligned_vector(const float* x, float* y) {
  const float4 v = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x + (kBroken ? 1 : 0));
  y[threadIdx.x] = v.x + v.w;
}

template <bool kBroken>
__global__ void misaligned_copy(const float* x, float* y) {
  auto& s = shared<Stages>();
  if (threadIdx.x < 4)
    copy_async<16>(&s.stage[0][4 * threadIdx.x + (kBroken ? 1 : 0)], x + 4 * threadIdx.x, true);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  if (threadIdx.x < 16) y[threadIdx.x] = s.stage[0][threadIdx.x + (kBroken ? 1 : 0)];
}

// ---- initialisation ----

template <bool kBroken>
__global__ void uninitialised_shared(float* y) {
  auto& tile = shared<Tile>();
  if (!kBroken || threadIdx.x % 2 == 0) tile.a[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = tile.a[threadIdx.x];
}

__global__ void copy_values(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }

// ---- blocks ----

template <bool kBroken>
__global__ void blocks_write_one_place(float* y) {
  if (threadIdx.x == 0) y[kBroken ? 0 : blockIdx.x] = float(blockIdx.x);
}

template <bool kBroken>
__global__ void count(unsigned* counter) {
  if constexpr (kBroken) {
    ++*counter;
  } else {
    atomicAdd(counter, 1u);
  }
}

// In place: correct if no block reads what another writes.
template <bool kBroken>
__global__ void stencil_in_place(float* x, int n) {
  const int i = int(thread_index());
  const float right = kBroken && i + 1 < n ? x[i + 1] : 0.0f;
  __syncthreads();
  x[i] += right;
}

// The last block to finish adds up what all have written; atomics order it.
template <bool kBroken>
__global__ void last_block_sums(float* partial, unsigned* counter, float* y) {
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = float(blockIdx.x);
    __threadfence();
  }
  auto& last = shared<Last>();
  if (threadIdx.x == 0) last.ticket = kBroken ? blockIdx.x : atomicAdd(counter, 1u);
  __syncthreads();
  if (last.ticket != gridDim.x - 1 || threadIdx.x != 0) return;
  float sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += partial[b];
  *y = sum;
}

template <bool kBroken>
__global__ void neighbouring_bytes(unsigned char* y) {
  y[kBroken ? threadIdx.x / 2 : threadIdx.x] = 1;
}

template <bool kBroken>
__global__ void read_of_atomic(unsigned* counter, float* y) {
  atomicAdd(counter, 1u);
  if (!kBroken) __syncthreads();
  if (threadIdx.x == 0) y[0] = float(*counter);
}

// Waits for what no thread of the block writes before it ends.
template <bool kBroken>
__global__ void wait_in_a_loop(volatile float* y) {
  y[threadIdx.x] = kBroken ? 0.0f : 1.0f;
  while (y[threadIdx.x] == 0) continue;
}

template <bool kBroken>
__global__ void too_much_shared(float* y) {
  auto& s = shared<std::conditional_t<kBroken, TooLarge, Tile>>();
  s.a[threadIdx.x] = 1;
  y[threadIdx.x] = s.a[threadIdx.x];
}

// ---- the cases ----

using Run = std::function<void(float* x, float* y)>;
struct Case {
  Run correct, broken;
};

// Memory of two blocks, of which the first is given back.
float* freed() {
  const Buffer gone(counting(kThreads));
  return gone;
}

std::map<std::string, Case> make_cases() {
  std::map<std::string, Case> cases;
  const auto add = [&](const char* name, auto run) {
    cases[name] = {[=](float* x, float* y) { run(std::false_type{}, x, y); },
                   [=](float* x, float* y) { run(std::true_type{}, x, y); }};
  };
#define CASE(name, ...) \
  add(#name, [](auto broken, [[maybe_unused]] float* x, [[maybe_unused]] float* y) { __VA_ARGS__; })
  CASE(barrier_before_read, one_block<Tile>(barrier_before_read<broken()>, x, y));
  CASE(barrier_before_overwrite, one_block<Tile>(barrier_before_overwrite<broken()>, x, y));
  CASE(barrier_in_branch, one_block<Tile>(barrier_in_branch<broken()>, y));
  CASE(return_before_barrier, one_block<Tile>(return_before_barrier<broken()>, x, y, 50u));
  CASE(warp_waits_for_block, one_block<Tile>(warp_waits_for_block<broken()>, y));
  CASE(exchange_in_warp, one_block<Tile>(exchange_in_warp<broken()>, x, y));
  CASE(sum_in_warp, one_block<Tile>(sum_in_warp<broken()>, x, y));
  CASE(shuffle_from_absent, one_block<Tile>(shuffle_from_absent<broken()>, y));
  CASE(mask_of_ended_lanes, one_block<Tile>(mask_of_ended_lanes<broken()>, y, 50u));
  CASE(different_operations, one_block<Tile>(different_operations<broken()>, y));
  CASE(lane_map, one_block<Tile>(lane_map<broken()>, x, x + 128, y));
  CASE(load_matrix_of_others, one_block<Tile>(load_matrix_of_others<broken()>, x, y));
#define PIPELINE(name, mistake) \
  CASE(name, one_block<Stages>(pipeline<Copy::mistake, broken()>, x, y, 4))
  PIPELINE(copy_no_wait, kNoWait);
  PIPELINE(copy_wait_one_group_short, kShortWait);
  PIPELINE(copy_no_commit, kNoCommit);
  PIPELINE(copy_no_barrier, kNoBarrier);
  PIPELINE(copy_into_stage_in_use, kEarlyStart);
  PIPELINE(copy_never_waited_for, kNeverWaited);
#undef PIPELINE
  CASE(read_global_beyond,
       one_block<Tile>(read_global_beyond<broken()>, x + 3 * kThreads + 10, y, kThreads - 10));
  CASE(write_global_before, one_block<Tile>(write_global_before<broken()>, y));
  CASE(write_tile_beyond, one_block<Tile>(write_tile_beyond<broken()>, y));
  CASE(read_shared_beyond, one_block<Tile>(read_shared_beyond<broken()>, y));
  CASE(misaligned_vector, one_block<Tile>(misaligned_vector<broken()>, x, y));
  CASE(misaligned_copy, one_block<Stages>(misaligned_copy<broken()>, x, y));
  CASE(uninitialised_shared, one_block<Tile>(uninitialised_shared<broken()>, y));
  CASE(blocks_write_one_place, blocks<Tile>(5, blocks_write_one_place<broken()>, y));
  CASE(count_without_atomic, blocks<Tile>(3, count<broken()>, reinterpret_cast<unsigned*>(y)));
  CASE(stencil_in_place, blocks<Tile>(3, stencil_in_place<broken()>, x, 3 * kThreads));
  CASE(last_block_sums,
       blocks<Last>(7, last_block_sums<broken()>, x, reinterpret_cast<unsigned*>(y), y + 1));
  CASE(neighbouring_bytes,
       one_block<Tile>(neighbouring_bytes<broken()>, reinterpret_cast<unsigned char*>(y)));
  CASE(read_of_atomic,
       one_block<Tile>(read_of_atomic<broken()>, reinterpret_cast<unsigned*>(x), y));
  CASE(too_much_shared,
       one_block<std::conditional_t<broken(), TooLarge, Tile>>(too_much_shared<broken()>, y));
  CASE(wait_in_a_loop, one_block<Tile>(wait_in_a_loop<broken()>, y));
  CASE(host_pointer, const std::vector<float> host = counting(kThreads);
       one_block<Tile>(copy_values, broken() ? host.data() : x, y));
  CASE(use_after_free, one_block<Tile>(copy_values, broken() ? freed() : x, y));
  CASE(uninitialised_global, const Buffer fresh(kThreads);
       one_block<Tile>(copy_values, broken() ? fresh : x, y));
  CASE(other_device, cudaSetDevice(1); const Buffer far(counting(kThreads)); cudaSetDevice(0);
       one_block<Tile>(copy_values, broken() ? far : x, y));
#undef CASE
  return cases;
}

const std::map<std::string, Case>& cases() {
  static const std::map<std::string, Case> cases = make_cases();
  return cases;
}

}  // namespace

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  for (const auto& [name, unused] : cases()) names.push_back(name);
  return names;
}

std::vector<float> run_case(const std::string& name, bool broken) {
  const Case& chosen = cases().at(name);
  const Buffer x(counting(4 * kThreads)), y(std::vector<float>(2 * kThreads, 0.0f));
  (broken ? chosen.broken : chosen.correct)(x, y);
  return y.values();
}

}  // namespace convgrad::cuda::selftest
