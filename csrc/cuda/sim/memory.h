// The simulator's memory: one reserved region that holds the block's shared memory, the host memory
// that devices see, and each device's memory, and beside it two shadows: a state per byte, and who
// last wrote and read each byte. Pages cost nothing until they are touched.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace convgrad::cuda::sim {

constexpr uint64_t kSharedBytes = 1 << 20;  // 99 KB of them used
constexpr uint64_t kHostBytes = uint64_t{1} << 30;
constexpr uint64_t kDeviceBytes = uint64_t{1} << 33;
constexpr uint64_t kHostBegin = kSharedBytes, kDeviceBegin = kHostBegin + kHostBytes;
constexpr uint64_t kRegionBytes = kDeviceBegin + 2 * kDeviceBytes;

// Bits of a byte's state; 0: it belongs to no block.
constexpr uint8_t kAllocated = 1, kInitialised = 2, kUnderWay = 4;  // ...: an asynchronous copy's
constexpr uint8_t kReadable = kAllocated | kInitialised;

struct Memory {
  unsigned char* base = nullptr;  // kRegionBytes of it
  uint8_t* state = nullptr;       // per byte
  uint32_t* writer = nullptr;     // per byte, a segment (access.h)
  uint32_t* reader = nullptr;

  uint64_t offset(const void* p) const {
    return reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(base);
  }
};
extern Memory memory;
void reserve_memory();  // does nothing the second time

// "12 bytes after a block of 400 bytes", "a freed block of 400 bytes": where an offset lies.
std::string describe(uint64_t offset);
// Whether the byte lies in a block that was given back and not handed out again.
bool is_freed(uint64_t offset);
// Forgets who accessed what.
void clear_accesses();

}  // namespace convgrad::cuda::sim
