// Runs a launch: blocks one after another, the threads of a block in turn until each has to wait.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>

#include "cuda/sim/access.h"
#include "cuda/sim/machine.h"
#include "cuda/sim/source.h"

// What the kernels see as constants (device.h).
SIM_HIDDEN uint3 sim_thread_index asm("threadIdx");
SIM_HIDDEN uint3 sim_block_index asm("blockIdx");
SIM_HIDDEN uint3 sim_block_size asm("blockDim");
SIM_HIDDEN uint3 sim_grid_size asm("gridDim");

namespace convgrad::cuda::sim {

Machine machine;

namespace {

std::mutex launch_mutex;

uint64_t from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == '\0' ? otherwise : std::strtoull(text, nullptr, 10);
}
const struct ReadEnvironment {
  ReadEnvironment() {
    machine.seed = from_environment("CONVGRAD_SIM_SEED", 2);
    machine.check = from_environment("CONVGRAD_SIM_CHECK", 1) != 0;
  }
} read_environment;

enum class Order { kAscending, kDescending, kRandom };
Order order() {
  return machine.seed == 0   ? Order::kAscending
         : machine.seed == 1 ? Order::kDescending
                             : Order::kRandom;
}

std::string triple(unsigned x, unsigned y, unsigned z) {
  return "(" + std::to_string(x) + "," + std::to_string(y) + "," + std::to_string(z) + ")";
}

uint3 unravel(uint64_t i, const dim3& size) {
  return {unsigned(i % size.x), unsigned(i / size.x % size.y),
          unsigned(i / (uint64_t{size.x} * size.y))};
}

void make_ready(Thread& thread) {
  thread.wait = Wait::kNothing;
  if (machine.ready_end == 2 * kMaxThreads) {
    const unsigned n = machine.ready_end - machine.ready_begin;
    std::memmove(machine.ready, machine.ready + machine.ready_begin, n * sizeof(uint16_t));
    machine.ready_begin = 0;
    machine.ready_end = n;
  }
  machine.ready[machine.ready_end++] = thread.number;
}

bool same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

// Whom all others wait for, in words.
std::string waits() {
  std::string text;
  if (machine.waiting > 0)
    text += ", " + std::to_string(machine.waiting) + " wait in " + machine.barrier_name + " at " +
            name_of(machine.barrier_site);
  for (unsigned w = 0; w * kLanes < machine.threads; ++w)
    for (unsigned bits = machine.warp[w].pending; bits != 0; bits &= bits - 1) {
      const WarpOperation& op = machine.warp[w].operation[std::countr_zero(bits)];
      text += ", " + std::to_string(std::popcount(op.arrived)) + " of warp " + std::to_string(w) +
              " in " + op.name + " at " + name_of(op.site);
    }
  return text;
}

Thread& next_thread() {
  const unsigned n = machine.ready_end - machine.ready_begin;
  if (n == 0)
    fail("deadlock",
         "no thread can go on; " + std::to_string(machine.exited) + " of " +
             std::to_string(machine.threads) + " have ended" + waits(),
         Site{});
  if (n > 1 && order() == Order::kRandom)
    std::swap(machine.ready[machine.ready_begin],
              machine.ready[machine.ready_begin + random_below(n)]);
  return machine.thread[machine.ready[machine.ready_begin++]];
}

void thread_main();

Fiber* take_fiber() {
  if (machine.idle.empty()) {
    Fiber* fiber = new Fiber;
    make_stack(*fiber);
    start(*fiber, thread_main);
    machine.fibers.push_back(fiber);
    machine.idle.push_back(fiber);
  }
  Fiber* fiber = machine.idle.back();
  machine.idle.pop_back();
  return fiber;
}

// From the fiber `from` to a thread; returns when `from` is resumed.
void resume(Thread& thread, Fiber& from) {
  machine.current = &thread;
  sim_thread_index = thread.index;
  if (thread.fiber == nullptr) thread.fiber = take_fiber();
  set_running(&thread);
  if (thread.fiber != &from) switch_fiber(from, *thread.fiber);
}

// The current thread waits; returns when it has been made ready and is its turn.
void wait() { resume(next_thread(), *machine.current->fiber); }

[[noreturn]] void leave_block() {
  set_running(nullptr);
  Fiber abandoned;
  switch_fiber(abandoned, machine.host);
  __builtin_unreachable();
}

void end_thread() {
  Thread& thread = *machine.current;
  check_copies_landed();
  Warp& warp = machine.warp[thread.warp];
  for (unsigned bits = warp.pending; bits != 0; bits &= bits - 1) {
    const WarpOperation& op = warp.operation[std::countr_zero(bits)];
    if (op.mask >> thread.lane & 1)
      fail("absent lane",
           "the thread ended, but its warp waits for it in " + std::string(op.name) + ", mask " +
               hex(op.mask),
           op.site);
  }
  if (machine.waiting > 0)
    fail("divergent barrier",
         "the thread ended, but " + std::to_string(machine.waiting) + " threads wait in " +
             machine.barrier_name,
         machine.barrier_site);
  thread.wait = Wait::kExited;
  warp.exited |= 1u << thread.lane;
  machine.last_exited = &thread;
  ++machine.exited;
}

// A fiber's whole life: it runs threads to their ends, each begun where the one before ended.
void thread_main() {
  for (;;) {
    machine.launch->thread(machine.launch->arguments);
    Fiber* fiber = machine.current->fiber;
    end_thread();
    machine.idle.push_back(fiber);
    if (machine.exited == machine.threads) {
      set_running(nullptr);
      switch_fiber(*fiber, machine.host);
    } else {
      resume(next_thread(), *fiber);  // a new thread takes this fiber, the last made idle
    }
  }
}

void begin_block(uint64_t block) {
  const Launch& launch = *machine.launch;
  machine.block = block;
  ++machine.blocks_begun;
  sim_block_index = unravel(block, launch.grid);
  machine.exited = machine.waiting = machine.votes = 0;
  machine.ready_begin = 0;
  machine.ready_end = machine.threads;
  for (unsigned i = 0; i < machine.threads; ++i) {
    Thread& thread = machine.thread[i];
    thread.wait = Wait::kNothing;
    thread.segment = 0;
    thread.fiber = nullptr;
    thread.groups = 0;
    machine.ready[i] = uint16_t(order() == Order::kDescending ? machine.threads - 1 - i : i);
  }
  for (unsigned w = 0; w * kLanes < machine.threads; ++w) {
    Warp& warp = machine.warp[w];
    const unsigned lanes = std::min(kLanes, machine.threads - w * kLanes);
    warp.existing = lanes == kLanes ? 0xffffffffu : (1u << lanes) - 1;
    warp.exited = warp.pending = warp.epoch = warp.many_segment = 0;
  }
  if (launch.shared_bytes > 0) {
    std::memset(memory.base, 0xFF, launch.shared_bytes);
    std::memset(memory.state, kAllocated, launch.shared_bytes);
  }
  begin_block_accesses();
}

void run_block(uint64_t block) {
  begin_block(block);
  resume(next_thread(), machine.host);
}

// The blocks in the order of the seed, one call each.
template <class F>
void for_each_block(uint64_t blocks, F f) {
  if (order() != Order::kRandom || blocks == 1) {
    for (uint64_t i = 0; i < blocks; ++i) f(order() == Order::kDescending ? blocks - 1 - i : i);
    return;
  }
  std::vector<uint32_t> numbers(blocks);
  for (uint64_t i = 0; i < blocks; ++i) numbers[i] = uint32_t(i);
  for (uint64_t i = 0; i < blocks; ++i) {
    std::swap(numbers[i], numbers[i + random_below(blocks - i)]);
    f(numbers[i]);
  }
}

}  // namespace

void check_limits(const Launch& launch) {
  const auto refuse = [&](const std::string& text) {
    throw std::runtime_error("[" + std::string(launch.op) + "] CUDA simulator: bad launch: " +
                             text + ", kernel " + function_at(launch.kernel) + ".");
  };
  const dim3 &grid = launch.grid, &block = launch.block;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.z > 64)
    refuse("a block of " + triple(block.x, block.y, block.z) +
           " threads; at most 1024 in all, and 64 along z");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    refuse("a grid of " + triple(grid.x, grid.y, grid.z) +
           " blocks; at most 2^31 - 1 along x, 65535 along y and z");
  if (launch.shared_bytes > kMaxShared)
    refuse(std::to_string(launch.shared_bytes) +
           " bytes of shared memory; at most 99 KB, as on cards of capability 8.6");
  int device = 0, stream_device = 0;
  cudaGetDevice(&device);
  cudaStreamGetDevice(static_cast<cudaStream_t>(launch.stream), &stream_device);
  if (device != stream_device)
    refuse("a stream of device " + std::to_string(stream_device) + ", but the current device is " +
           std::to_string(device));
}

namespace {

void begin_launch(const Launch& launch) {
  machine.launch = &launch;
  machine.error.clear();
  machine.random = (machine.seed + 1) * 0x9E3779B97F4A7C15u;
  machine.threads = launch.block.x * launch.block.y * launch.block.z;
  cudaGetDevice(&machine.device);
  sim_block_size = {launch.block.x, launch.block.y, launch.block.z};
  sim_grid_size = {launch.grid.x, launch.grid.y, launch.grid.z};
  for (unsigned i = 0; i < machine.threads; ++i) {
    Thread& thread = machine.thread[i];
    thread.index = unravel(i, launch.block);
    thread.number = uint16_t(i);
    thread.lane = uint16_t(i % kLanes);
    thread.warp = uint16_t(i / kLanes);
  }
  begin_launch_accesses();
}

// After an error: the stacks of the threads that had not ended are used anew.
void reset_fibers() {
  machine.idle = machine.fibers;
  for (Fiber* fiber : machine.fibers) start(*fiber, thread_main);
  for (Thread& thread : machine.thread) thread.copies.clear();
}

void end_launch() {
  if (machine.launch->shared_bytes > 0) std::memset(memory.state, 0, machine.launch->shared_bytes);
  machine.launch = nullptr;
  machine.current = nullptr;
}

}  // namespace

uint64_t random_below(uint64_t n) {
  uint64_t& x = machine.random;  // xorshift64*
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  return (x * 0x2545F4914F6CDD1Du >> 32) * n >> 32;
}

std::string name_of(uint64_t block) {
  const uint3 i = unravel(block, machine.launch->grid);
  return "block " + triple(i.x, i.y, i.z);
}
std::string name_of(const Thread& thread) {
  return "thread " + triple(thread.index.x, thread.index.y, thread.index.z);
}
std::string name_of(Site site) {
  return site.file == nullptr ? "?" : short_place(site.file) + ":" + std::to_string(site.line);
}

namespace {
[[noreturn]] void fail_at(const char* kind, const std::string& text, const std::string& where) {
  const Launch& launch = *machine.launch;
  set_running(nullptr);
  machine.error = "[" + std::string(launch.op) + "] CUDA simulator: " + kind + ": " + text + ". " +
                  name_of(machine.block) + ", " + name_of(*machine.current) + ", " + where +
                  ", kernel " + function_at(launch.kernel) + ", grid " +
                  triple(launch.grid.x, launch.grid.y, launch.grid.z) + ", block of " +
                  triple(launch.block.x, launch.block.y, launch.block.z) +
                  ", CONVGRAD_SIM_SEED=" + std::to_string(machine.seed) + ".";
  leave_block();
}
}  // namespace

void fail(const char* kind, const std::string& text, Site site) {
  fail_at(kind, text, name_of(site));
}
void fail(const char* kind, const std::string& text, const void* code) {
  fail_at(kind, text, source_line(code));
}

void run_now(const Launch& launch) {
  const std::lock_guard lock(launch_mutex);
  reserve_memory();
  begin_launch(launch);
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  for_each_block(blocks, [](uint64_t block) {
    if (machine.error.empty()) run_block(block);
  });
  end_launch();
  if (machine.error.empty()) return;
  reset_fibers();
  throw std::runtime_error(machine.error);
}

void set_seed(uint64_t seed) {
  const std::lock_guard lock(launch_mutex);
  machine.seed = seed;
}
uint64_t seed() { return machine.seed; }
void set_check(bool on) {
  const std::lock_guard lock(launch_mutex);
  machine.check = on;
}
bool check() { return machine.check; }

// ---- what kernels call ----

unsigned block_barrier(const char* name, bool predicate, Site site) {
  if (machine.exited > 0)
    fail("divergent barrier",
         std::string(name) + " after " + name_of(*machine.last_exited) + " has ended", site);
  if (machine.waiting == 0) {
    machine.barrier_name = name;
    machine.barrier_site = site;
    machine.votes = 0;
  } else if (machine.barrier_site.line != site.line || !same(machine.barrier_name, name)) {
    fail("divergent barrier",
         std::string(name) + " while " + std::to_string(machine.waiting) + " threads wait in " +
             machine.barrier_name + " at " + name_of(machine.barrier_site),
         site);
  }
  machine.votes += predicate;
  Thread& thread = *machine.current;
  thread.wait = Wait::kBarrier;
  if (++machine.waiting == machine.threads) {
    machine.result = machine.votes;
    machine.waiting = 0;
    end_epoch();
    const bool down = order() == Order::kDescending;
    for (unsigned i = 0; i < machine.threads; ++i)
      make_ready(machine.thread[down ? machine.threads - 1 - i : i]);
  }
  wait();
  return machine.result;
}

void warp_operation(const char* name, unsigned mask, void* operand, WarpFunction operation,
                    Site site) {
  Thread& thread = *machine.current;
  Warp& warp = machine.warp[thread.warp];
  const auto what = [&] { return std::string(name) + ", mask " + hex(mask); };
  if (!(mask >> thread.lane & 1))
    fail("absent lane", what() + ", by lane " + std::to_string(thread.lane) + " which is not in it",
         site);
  if ((mask & ~warp.existing) != 0 || (mask & warp.exited) != 0)
    fail("absent lane",
         what() + ", but of these lanes " + hex(mask & (~warp.existing | warp.exited)) +
             " have ended or never were",
         site);
  WarpOperation* op = nullptr;
  for (unsigned bits = warp.pending; bits != 0; bits &= bits - 1) {
    WarpOperation& other = warp.operation[std::countr_zero(bits)];
    if ((other.mask & mask) == 0) continue;
    if (other.mask != mask || !same(other.name, name) || other.site.line != site.line)
      fail("divergent warp",
           what() + ", while lanes " + hex(other.arrived) + " wait in " + other.name + ", mask " +
               hex(other.mask) + ", at " + name_of(other.site),
           site);
    op = &other;
  }
  if (op == nullptr) {
    const int low = std::countr_zero(mask);
    op = &warp.operation[low];
    *op = {name, site, mask, 0};
    warp.pending |= 1u << low;
  }
  thread.operand = operand;
  thread.wait = Wait::kWarp;
  op->arrived |= 1u << thread.lane;
  if (op->arrived == mask) {
    warp.pending &= ~(1u << std::countr_zero(mask));
    void* operands[kLanes] = {};
    const bool down = order() == Order::kDescending;
    for (unsigned i = 0; i < kLanes; ++i) {
      const unsigned lane = down ? kLanes - 1 - i : i;
      if (!(mask >> lane & 1)) continue;
      Thread& other = machine.thread[thread.warp * kLanes + lane];
      operands[lane] = other.operand;
      make_ready(other);
    }
    if (operation != nullptr) operation(operands, mask);
  }
  wait();
}

int lane() { return machine.current->lane; }

void* shared_memory(size_t bytes, size_t align) {
  if (bytes > machine.launch->shared_bytes || align > 1024)
    fail("bad launch",
         "shared memory of " + std::to_string(bytes) + " bytes, aligned to " +
             std::to_string(align) + ", where " + std::to_string(machine.launch->shared_bytes) +
             " were launched, aligned to 1024",
         Site{});
  return memory.base;
}

void trap(Site site) { fail("trap", "__trap()", site); }

}  // namespace convgrad::cuda::sim
