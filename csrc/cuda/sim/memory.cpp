// Blocks of simulated memory, and the CUDA runtime's functions for them.
#include "cuda/sim/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>

#include "cuda/sim/runtime.h"
#include "cuda/sim/stream.h"

namespace convgrad::cuda::sim {

Memory memory;

namespace {

constexpr uint64_t kAlign = 512, kGuard = 256;
constexpr size_t kQuarantine = 16;        // freed blocks per size before one is used again
constexpr uint64_t kReturn = 256 * 1024;  // freed blocks from this size give their pages back

struct Block {
  uint64_t bytes, capacity;
  bool live;
};

// A device's memory, or the host's: blocks by offset, freed ones by capacity in order of freeing.
struct Arena {
  uint64_t begin, end, next;
  uint64_t in_use = 0;
  std::map<uint64_t, Block> blocks{};
  std::map<uint64_t, std::deque<uint64_t>> freed{};
};

std::mutex mutex;
Arena arenas[] = {{kHostBegin, kDeviceBegin, kHostBegin},
                  {kDeviceBegin, kDeviceBegin + kDeviceBytes, kDeviceBegin},
                  {kDeviceBegin + kDeviceBytes, kRegionBytes, kDeviceBegin + kDeviceBytes}};

Arena* arena_of(uint64_t offset) {
  for (Arena& arena : arenas)
    if (offset >= arena.begin && offset < arena.end) return &arena;
  return nullptr;
}

// The block that begins at or before `offset`, or null.
const std::pair<const uint64_t, Block>* block_before(const Arena& arena, uint64_t offset) {
  auto it = arena.blocks.upper_bound(offset);
  return it == arena.blocks.begin() ? nullptr : &*std::prev(it);
}

// Room for a block with its guard: a multiple of kAlign, in steps of an eighth.
uint64_t capacity_for(uint64_t bytes) {
  uint64_t step = kAlign;
  while (step * 16 < bytes + kGuard) step *= 2;
  return (bytes + kGuard + step - 1) / step * step;
}

void* map_pages(uint64_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return p;
}

void forget_pages(void* p, uint64_t bytes) {
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(p) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + bytes) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void* allocate_in(Arena& arena, uint64_t bytes) {
  const std::lock_guard lock(mutex);
  reserve_memory();
  if (bytes > arena.end - arena.begin) return nullptr;
  const uint64_t capacity = capacity_for(bytes);
  uint64_t offset;
  std::deque<uint64_t>& freed = arena.freed[capacity];
  const size_t keep = capacity < kReturn ? kQuarantine : 2;
  if (freed.size() > keep || (!freed.empty() && arena.next + capacity > arena.end)) {
    offset = freed.front();
    freed.pop_front();
  } else if (arena.next + capacity <= arena.end) {
    offset = arena.next;
    arena.next += capacity;
  } else {
    return nullptr;
  }
  arena.blocks[offset] = {bytes, capacity, true};
  arena.in_use += bytes;
  std::memset(memory.base + offset, 0xFF, bytes);
  std::memset(memory.state + offset, kAllocated, bytes);
  return memory.base + offset;
}

}  // namespace

void reserve_memory() {
  if (memory.base != nullptr) return;
  unsigned char* base = static_cast<unsigned char*>(map_pages(kRegionBytes));
  memory.state = static_cast<uint8_t*>(map_pages(kRegionBytes));
  memory.writer = static_cast<uint32_t*>(map_pages(kRegionBytes * sizeof(uint32_t)));
  memory.reader = static_cast<uint32_t*>(map_pages(kRegionBytes * sizeof(uint32_t)));
  memory.base = base;
}

void clear_accesses() {
  forget_pages(memory.writer, kRegionBytes * sizeof(uint32_t));
  forget_pages(memory.reader, kRegionBytes * sizeof(uint32_t));
}

void* allocate(size_t bytes, int device) {
  if (device < 0 || device >= kDevices) throw std::invalid_argument("no such simulated device");
  return allocate_in(arenas[1 + device], bytes);
}

void release(void* p) {
  if (p == nullptr) return;
  const std::lock_guard lock(mutex);
  const uint64_t offset = memory.base == nullptr ? kRegionBytes : memory.offset(p);
  Arena* arena = offset < kRegionBytes ? arena_of(offset) : nullptr;
  const auto it = arena == nullptr ? decltype(arena->blocks.begin()){} : arena->blocks.find(offset);
  if (arena == nullptr || it == arena->blocks.end() || !it->second.live)
    throw std::invalid_argument("not the address of a block of simulated memory");
  Block& block = it->second;
  block.live = false;
  arena->in_use -= block.bytes;
  std::memset(memory.base + offset, 0xFF, block.bytes);
  std::memset(memory.state + offset, 0, block.bytes);
  if (block.capacity >= kReturn) {
    forget_pages(memory.base + offset, block.capacity);
    forget_pages(memory.state + offset, block.capacity);
    forget_pages(memory.writer + offset, block.capacity * sizeof(uint32_t));
    forget_pages(memory.reader + offset, block.capacity * sizeof(uint32_t));
  }
  arena->freed[block.capacity].push_back(offset);
}

int device_of(const void* p) {
  const uint64_t offset = memory.base == nullptr ? kRegionBytes : memory.offset(p);
  if (offset < kDeviceBegin || offset >= kRegionBytes) return -1;
  return int((offset - kDeviceBegin) / kDeviceBytes);
}

bool is_allocated(const void* p, size_t bytes) {
  const std::lock_guard lock(mutex);
  const uint64_t offset = memory.base == nullptr ? kRegionBytes : memory.offset(p);
  const Arena* arena = offset < kRegionBytes ? arena_of(offset) : nullptr;
  const auto* block = arena == nullptr ? nullptr : block_before(*arena, offset);
  return block != nullptr && block->second.live &&
         offset - block->first + bytes <= block->second.bytes;
}

void mark_written(void* p, size_t bytes) {
  if (bytes == 0) return;
  if (!is_allocated(p, bytes)) throw std::invalid_argument("not in a block of simulated memory");
  std::memset(memory.state + memory.offset(p), kReadable, bytes);
}

void mark_unwritten(void* p, size_t bytes) {
  if (bytes == 0) return;
  if (!is_allocated(p, bytes)) throw std::invalid_argument("not in a block of simulated memory");
  std::memset(p, 0xFF, bytes);
  std::memset(memory.state + memory.offset(p), kAllocated, bytes);
}

bool is_initialised(const void* p, size_t bytes) {
  if (bytes == 0) return true;
  if (!is_allocated(p, bytes)) return false;
  const uint8_t* state = memory.state + memory.offset(p);
  return std::all_of(state, state + bytes, [](uint8_t s) { return s == kReadable; });
}

size_t bytes_in_use(int device) {
  const std::lock_guard lock(mutex);
  return arenas[1 + device].in_use;
}

std::string describe(uint64_t offset) {
  if (offset < kSharedBytes) return "shared memory + " + std::to_string(offset);
  const std::lock_guard lock(mutex);
  const Arena* arena = arena_of(offset);
  const auto* block = block_before(*arena, offset);
  if (block == nullptr) return "no block";
  const uint64_t at = offset - block->first;
  const std::string what = (block->second.live ? "a block of " : "a freed block of ") +
                           std::to_string(block->second.bytes) + " bytes";
  if (at < block->second.bytes) return "byte " + std::to_string(at) + " of " + what;
  // The guard before a block is the one after its neighbour.
  const auto next = arena->blocks.upper_bound(offset);
  if (next != arena->blocks.end() && next->first - offset < at - block->second.bytes)
    return std::to_string(next->first - offset) + " bytes before a block of " +
           std::to_string(next->second.bytes) + " bytes";
  return std::to_string(at - block->second.bytes) + " bytes after " + what;
}

bool is_freed(uint64_t offset) {
  const std::lock_guard lock(mutex);
  const Arena* arena = arena_of(offset);
  const auto* block = arena == nullptr ? nullptr : block_before(*arena, offset);
  return block != nullptr && !block->second.live && offset - block->first < block->second.bytes;
}

namespace {

thread_local int current_device = 0;

// Blocks keep what was written where; other memory is the host's, always written.
void copy(void* dst, const void* src, size_t bytes) {
  std::memmove(dst, src, bytes);
  const bool from_device = is_allocated(src, bytes), to_device = is_allocated(dst, bytes);
  if (!to_device) return;
  if (from_device) {
    std::memmove(memory.state + memory.offset(dst), memory.state + memory.offset(src), bytes);
  } else {
    mark_written(dst, bytes);
  }
}

// Host memory or one whole block's; never beside or across blocks.
bool is_valid(const void* p, size_t bytes) {
  const uint64_t offset = memory.base == nullptr ? kRegionBytes : memory.offset(p);
  return offset >= kRegionBytes || is_allocated(p, bytes);
}

}  // namespace
}  // namespace convgrad::cuda::sim

namespace sim = convgrad::cuda::sim;

cudaError_t cudaGetLastError() { return cudaSuccess; }  // launch() throws instead

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorIllegalState:
      return "cudaErrorIllegalState";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
  }
  return "unknown error";
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorIllegalState:
      return "the operation cannot be performed in the present state";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
  }
  return "unknown error";
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = sim::kDevices;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = sim::current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= sim::kDevices) return cudaErrorInvalidDevice;
  sim::current_device = device;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** p, size_t bytes) {
  *p = bytes == 0 ? nullptr : sim::allocate(bytes, sim::current_device);
  return bytes > 0 && *p == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  *p = sim::allocate_in(sim::arenas[0], bytes);
  if (*p == nullptr) return cudaErrorMemoryAllocation;
  sim::mark_written(*p, bytes);  // the host writes it, unseen
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  try {
    sim::release(p);
  } catch (const std::invalid_argument&) {
    return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }

cudaError_t cudaMemcpy(void* dst, const void* src, size_t bytes, cudaMemcpyKind) {
  if (bytes == 0) return cudaSuccess;
  if (!sim::is_valid(dst, bytes) || !sim::is_valid(src, bytes)) return cudaErrorInvalidValue;
  sim::copy(dst, src, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (bytes > 0 && !(sim::is_valid(dst, bytes) && sim::is_valid(src, bytes)))
    return cudaErrorInvalidValue;
  sim::submit(stream, [=] { cudaMemcpy(dst, src, bytes, kind); });
  return cudaSuccess;
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  if (bytes == 0) return cudaSuccess;
  if (!sim::is_allocated(p, bytes)) return cudaErrorInvalidValue;
  std::memset(p, value, bytes);
  sim::mark_written(p, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  if (bytes > 0 && !sim::is_allocated(p, bytes)) return cudaErrorInvalidValue;
  sim::submit(stream, [=] { cudaMemset(p, value, bytes); });
  return cudaSuccess;
}
