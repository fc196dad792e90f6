// The state of the one launch that runs: its block's threads, warps and barrier.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/sim/device.h"
#include "cuda/sim/fiber.h"
#include "cuda/sim/memory.h"

namespace convgrad::cuda::sim {

constexpr unsigned kMaxThreads = 1024, kLanes = 32;
constexpr size_t kMaxShared = 99 * 1024;  // of capability 8.6, 8.9 and 12.0; others have more

// A copy into shared memory that has not landed.
struct AsyncCopy {
  void* shared;
  const void* global;
  unsigned bytes;
  bool valid;  // else zeros
  unsigned group;
  Site site;
};

enum class Wait : uint8_t { kNothing, kBarrier, kWarp, kExited };

struct Thread {
  uint3 index;
  uint16_t number, lane, warp;
  Wait wait;
  uint32_t segment;  // access.h
  Fiber* fiber;      // null before its first step
  void* operand;     // of the warp operation it waits in
  unsigned groups;   // of asynchronous copies, closed so far
  std::vector<AsyncCopy> copies;
};

// A warp operation that some of its lanes wait in, kept under the lowest lane of its mask.
struct WarpOperation {
  const char* name;
  Site site;
  unsigned mask, arrived;
};
struct Warp {
  unsigned existing, exited;
  unsigned pending;  // a bit per operation below
  WarpOperation operation[kLanes];
  uint32_t epoch;         // __syncwarp()s of the whole warp
  uint32_t many_segment;  // access.h
};

struct Machine {
  const Launch* launch = nullptr;
  int device = 0;
  bool check = true;
  uint64_t seed = 2, random = 0;

  // The block.
  uint64_t block = 0, blocks_begun = 0;  // its number in the grid; how many blocks have begun
  unsigned threads = 0, exited = 0;
  Thread thread[kMaxThreads];
  Warp warp[kMaxThreads / kLanes];
  Thread* current = nullptr;
  Thread* last_exited = nullptr;

  // The barrier that `waiting` threads wait at.
  unsigned waiting = 0, votes = 0, result = 0;
  const char* barrier_name = "";
  Site barrier_site{};

  // Threads that can go on: ready[ready_begin, ready_end).
  uint16_t ready[2 * kMaxThreads];
  unsigned ready_begin = 0, ready_end = 0;

  Fiber host;
  std::vector<Fiber*> fibers, idle;
  std::string error;
};
extern Machine machine;

// std::runtime_error for a launch that no card could make.
void check_limits(const Launch& launch);
// Runs the launch, on the current device.
void run_now(const Launch& launch);

// Ends the launch with an error, "<kind>: <text>", of the current thread at a place in the source.
[[noreturn]] void fail(const char* kind, const std::string& text, Site site);
// The same at an address in the kernel's code.
[[noreturn]] void fail(const char* kind, const std::string& text, const void* code);

std::string name_of(uint64_t block);  // "block (1,0,0)"
std::string name_of(const Thread& thread);
std::string name_of(Site site);

// Waits for the lanes of `mask`, each of which brings an operand; the last one's call runs
// operation(operands, mask) for all, operands[i] being lane i's.
using WarpFunction = void (*)(void* const* operands, unsigned mask);
void warp_operation(const char* name, unsigned mask, void* operand, WarpFunction operation,
                    Site site);

// Fails if the current thread has asynchronous copies under way.
void check_copies_landed();

// ---- scheduling, run.cpp ----
uint64_t random_below(uint64_t n);

}  // namespace convgrad::cuda::sim
