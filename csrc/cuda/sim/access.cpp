#include "cuda/sim/access.h"

#include <link.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "cuda/sim/source.h"

namespace convgrad::cuda::sim {
namespace {

// The thread that runs on this OS thread, and the same where accesses are checked. Kernel files
// also hold host code, whose accesses come here too; there both are null.
#define SIM_THREAD_LOCAL thread_local __attribute__((tls_model("initial-exec")))
SIM_THREAD_LOCAL Thread* running = nullptr;
SIM_THREAD_LOCAL Thread* checked = nullptr;

// How many accesses the thread has left before it must wait or end: one that never does is an
// error.
constexpr int64_t kMaxAccesses = int64_t{1} << 26;
int64_t accesses_left = 0;

// ---- segments ----

constexpr uint32_t kAtomicBit = 1u << 30;  // of a byte's writer: it wrote by an atomic operation
constexpr uint32_t kMaxSegment = kAtomicBit - (1u << 27);  // a launch has less than 2^27 of them

// The first segment of this launch (which stands for all its threads), block, and since the last
// barrier; the next one's number.
uint32_t launch_begin = 1, block_begin = 1, epoch_begin = 1, next_segment = 1;

enum class Owner : uint8_t { kThread, kWarp, kBlock };
struct Segment {
  Owner owner;
  uint16_t thread, warp;
  uint32_t warp_epoch;
};
std::vector<Segment> segments;  // from epoch_begin on: nothing older is ever looked up
uint32_t block_segment = 0;     // the whole block's since the last barrier; 0 before its first use

// For reports: the first segment of each block of the launch.
struct BlockSegments {
  uint32_t begin;
  uint64_t block;
};
std::vector<BlockSegments> block_segments;

uint32_t new_segment(Owner owner, uint16_t thread, uint16_t warp) {
  segments.push_back({owner, thread, warp, machine.warp[warp].epoch});
  return next_segment++;
}
uint32_t segment_of(Thread& thread) {
  if (thread.segment < epoch_begin)
    thread.segment = new_segment(Owner::kThread, thread.number, thread.warp);
  return thread.segment;
}
uint32_t segment_of(Warp& warp, uint16_t number) {
  if (warp.many_segment < epoch_begin) warp.many_segment = new_segment(Owner::kWarp, 0, number);
  return warp.many_segment;
}
uint32_t segment_of_block() {
  if (block_segment < epoch_begin) block_segment = new_segment(Owner::kBlock, 0, 0);
  return block_segment;
}

// ---- order between blocks, by atomic operations on one address ----

// The blocks that used an address, as ranges of segments, in ascending order.
struct Channel {
  struct Range {
    uint32_t begin, end;
  };
  std::vector<Range> released;
  uint32_t acquirer = 0;  // the block_begin of the last block that used it
};
std::unordered_map<uint64_t, Channel> channels;  // of the launch, by offset
std::vector<const Channel*> acquired;            // by this block

void synchronise_at(uint64_t offset) {
  Channel& channel = channels[offset];
  if (channel.acquirer != block_begin) {
    channel.acquirer = block_begin;
    acquired.push_back(&channel);
    channel.released.push_back({block_begin, next_segment});
  }
  channel.released.back().end = next_segment;
}

bool is_acquired(uint32_t segment) {
  for (const Channel* channel : acquired) {
    const auto it =
        std::upper_bound(channel->released.begin(), channel->released.end(), segment,
                         [](uint32_t s, const Channel::Range& range) { return s < range.begin; });
    if (it != channel->released.begin() && segment < std::prev(it)->end) return true;
  }
  return false;
}

// ---- order ----

// Whether all that the segment did comes before what the thread does now.
bool is_before(uint32_t segment, const Thread& thread, bool shared) {
  segment &= ~kAtomicBit;
  if (segment < (shared ? epoch_begin : launch_begin)) return true;
  if (segment >= epoch_begin) {
    const Segment& other = segments[segment - epoch_begin];
    if (other.owner == Owner::kBlock) return false;
    if (other.owner == Owner::kThread && other.thread == thread.number) return true;
    return other.warp == thread.warp && other.warp_epoch < machine.warp[thread.warp].epoch;
  }
  return segment >= block_begin || is_acquired(segment);
}

// The segment that stands for `segment` and the thread, which both read (or both update
// atomically).
uint32_t joined(uint32_t segment, Thread& thread, bool shared) {
  if (is_before(segment, thread, shared)) return segment_of(thread);
  segment &= ~kAtomicBit;
  if (segment < block_begin) return launch_begin;
  const Segment& other = segments[segment - epoch_begin];
  if (other.owner != Owner::kBlock && other.warp == thread.warp)
    return segment_of(machine.warp[thread.warp], thread.warp);
  return segment_of_block();
}

// ---- reports ----

// Where an access stands: an address in the kernel's code, or a place in its source.
struct Where {
  const void* code;
  const Site* site;
};
[[noreturn, gnu::cold]] void fail_at(const char* kind, const std::string& text, Where where) {
  if (where.code != nullptr) fail(kind, text, where.code);
  fail(kind, text, *where.site);
}

std::string text_of(Access kind, size_t bytes) {
  const char* verb = kind == Access::kRead    ? "read of "
                     : kind == Access::kWrite ? "write of "
                                              : "atomic update of ";
  return verb + std::to_string(bytes) + " bytes";
}

std::string owner_of(uint32_t segment) {
  segment &= ~kAtomicBit;
  if (segment == launch_begin) return "several blocks";
  if (segment < block_begin) {
    const auto it =
        std::upper_bound(block_segments.begin(), block_segments.end(), segment,
                         [](uint32_t s, const BlockSegments& block) { return s < block.begin; });
    return name_of(std::prev(it)->block);
  }
  const Segment& other = segments[segment - epoch_begin];
  if (other.owner == Owner::kThread) return name_of(machine.thread[other.thread]);
  return other.owner == Owner::kWarp ? "several threads of warp " + std::to_string(other.warp)
                                     : "several threads of the block";
}

[[noreturn, gnu::cold]] void fail_race(Access kind, uint64_t offset, size_t bytes, uint32_t other,
                                       bool read, Where where) {
  const char* verb = read ? " read" : other & kAtomicBit ? " updated atomically" : " wrote";
  fail_at("race",
          text_of(kind, bytes) + " at " + describe(offset) + ", which " + owner_of(other) + verb +
              " with no synchronisation between",
          where);
}

// One of the bytes may not be accessed so.
[[noreturn, gnu::cold]] void fail_state(Access kind, uint64_t offset, size_t bytes, Where where) {
  const bool write = kind == Access::kWrite;
  uint64_t i = offset;
  while (i + 1 < offset + bytes &&
         (memory.state[i] == kReadable || (write && memory.state[i] == kAllocated)))
    ++i;
  const std::string text = text_of(kind, bytes) + " at " + describe(i);
  if (memory.state[i] & kUnderWay)
    fail_at("asynchronous copy", text + ", where one has not been waited for", where);
  if (memory.state[i] & kAllocated) fail_at("uninitialised", text, where);
  if (i >= kSharedBytes && is_freed(i)) fail_at("use after free", text, where);
  if (i < kSharedBytes)
    fail_at("out of bounds",
            text + ", " + std::to_string(machine.launch->shared_bytes) + " bytes long", where);
  fail_at("out of bounds", text, where);
}

// This module's code and data, where kernels may read constants.
struct Image {
  uintptr_t begin = 0, end = 0;

  Image() {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* self) {
          uintptr_t begin = UINTPTR_MAX, end = 0;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            if (header.p_type != PT_LOAD) continue;
            begin = std::min(begin, uintptr_t(info->dlpi_addr + header.p_vaddr));
            end = std::max(end, uintptr_t(info->dlpi_addr + header.p_vaddr + header.p_memsz));
          }
          const auto here = reinterpret_cast<uintptr_t>(&machine);
          if (here < begin || here >= end) return 0;
          static_cast<Image*>(self)->begin = begin;
          static_cast<Image*>(self)->end = end;
          return 1;
        },
        this);
  }
};

// An access beside the simulated memory.
__attribute__((noinline)) void access_outside(Thread& thread, Access kind, uintptr_t p,
                                              size_t bytes, Where where) {
  const auto stack = reinterpret_cast<uintptr_t>(thread.fiber->stack);
  if (p - stack < kStackBytes) return;
  static const Image image;
  if (p >= image.begin && p < image.end && kind == Access::kRead) return;
  for (const Fiber* fiber : machine.fibers)
    if (p - reinterpret_cast<uintptr_t>(fiber->stack) < kStackBytes)
      fail_at("host pointer", text_of(kind, bytes) + " at a local variable of another thread",
              where);
  fail_at("host pointer", text_of(kind, bytes) + " at " + hex(p) + ", which is the host's", where);
}

// ---- the checks ----

// Who wrote and who read a byte last.
struct Slot {
  uint32_t writer, reader;
};

// Checks an access to bytes whose slot is `slot`; their slot from now on.
Slot next_slot(Thread& thread, Access kind, Slot slot, uint64_t offset, size_t bytes, Where where) {
  const bool shared = offset < kSharedBytes;
  const bool both_atomic = kind == Access::kAtomic && (slot.writer & kAtomicBit);
  if (!both_atomic && !is_before(slot.writer, thread, shared))
    fail_race(kind, offset, bytes, slot.writer, false, where);
  if (kind == Access::kRead) return {slot.writer, joined(slot.reader, thread, shared)};
  if (!is_before(slot.reader, thread, shared))
    fail_race(kind, offset, bytes, slot.reader, true, where);
  if (kind == Access::kWrite) return {segment_of(thread), slot.reader};
  const uint32_t writer = both_atomic ? joined(slot.writer, thread, shared) : segment_of(thread);
  return {writer | kAtomicBit, slot.reader};
}

// Checks bytes [offset, offset + n) of an access, and remembers it.
__attribute__((noinline)) void check_bytes(Thread& thread, Access kind, uint64_t offset, size_t n,
                                           size_t bytes, Where where) {
  uint32_t *writer = memory.writer + offset, *reader = memory.reader + offset;
  Slot before{}, after{};
  for (size_t i = 0; i < n; ++i) {
    const Slot slot{writer[i], reader[i]};
    // Neighbouring bytes mostly have the same past.
    if (i == 0 || slot.writer != before.writer || slot.reader != before.reader)
      after = next_slot(thread, kind, slot, offset + i, bytes, where);
    before = slot;
    writer[i] = after.writer;
    reader[i] = after.reader;
  }
}

using Slots = int32_t __attribute__((vector_size(16)));
using Words = int64_t __attribute__((vector_size(16)));

bool all(Slots mask) {
  const Words words = reinterpret_cast<Words>(mask);
  return (words[0] & words[1]) == -1;
}

Slots load_slots(const uint32_t* p) {
  Slots slots;
  std::memcpy(&slots, p, sizeof(slots));
  return slots;
}
void store_slots(uint32_t* p, int32_t segment) {
  const Slots slots = {segment, segment, segment, segment};
  std::memcpy(p, &slots, sizeof(slots));
}

// Four bytes at once: true if it was a common case, in which nothing more is to be checked.
template <Access kKind>
bool check_word(const Thread& thread, uint64_t offset, int32_t segment, int32_t begin) {
  uint32_t *writer = memory.writer + offset, *reader = memory.reader + offset;
  const Slots w = load_slots(writer), r = load_slots(reader);
  if (!all((w < begin) | (w == segment))) return false;
  const bool alone = all((r < begin) | (r == segment));
  if (kKind == Access::kWrite) {
    if (alone) store_slots(writer, segment);
    return alone;
  }
  if (alone) {
    store_slots(reader, segment);
    return true;
  }
  // Already read by several of this warp, block or launch.
  const auto warp = int32_t(machine.warp[thread.warp].many_segment);
  const auto block = int32_t(block_segment), launch = int32_t(launch_begin);
  return all((r == launch) | (r == block) | (r == warp)) &&
         (warp >= int32_t(epoch_begin) || all(r != warp));
}

template <size_t kBytes>
struct UInt;
template <>
struct UInt<1> {
  using type = uint8_t;
};
template <>
struct UInt<2> {
  using type = uint16_t;
};
template <>
struct UInt<4> {
  using type = uint32_t;
};
template <>
struct UInt<8> {
  using type = uint64_t;
};
template <size_t kBytes>
typename UInt<kBytes>::type repeated(uint8_t byte) {
  using U = typename UInt<kBytes>::type;
  return U(U(~U{0}) / 255 * byte);
}

// Whether the bytes' states allow the access; a write makes them initialised.
template <Access kKind, size_t kBytes>
bool check_state(uint64_t offset) {
  typename UInt<kBytes>::type state;
  std::memcpy(&state, memory.state + offset, kBytes);
  if (state == repeated<kBytes>(kReadable)) return true;
  if (kKind != Access::kWrite) return false;
  if ((state & repeated<kBytes>(kAllocated | kUnderWay)) != repeated<kBytes>(kAllocated))
    return false;
  std::memset(memory.state + offset, kReadable, kBytes);
  return true;
}

void check_device(Access kind, uint64_t offset, size_t bytes, Where where) {
  if (offset >= kDeviceBegin && int((offset - kDeviceBegin) / kDeviceBytes) != machine.device)
    fail_at("other device",
            text_of(kind, bytes) + " at " + describe(offset) + " of the other device", where);
}

template <Access kKind, size_t kBytes>
void check_access(Thread& thread, uint64_t offset, Where where) {
  if constexpr (kBytes == 16) {
    check_access<kKind, 8>(thread, offset, where);
    check_access<kKind, 8>(thread, offset + 8, where);
  } else {
    check_device(kKind, offset, kBytes, where);
    if (!check_state<kKind, kBytes>(offset)) fail_state(kKind, offset, kBytes, where);
    const auto segment = int32_t(segment_of(thread));
    const auto begin = int32_t(offset < kSharedBytes ? epoch_begin : launch_begin);
    constexpr size_t kStep = kBytes < 4 ? kBytes : 4;
    for (size_t i = 0; i < kBytes; i += kStep) {
      if constexpr (kStep == 4 && kKind != Access::kAtomic)
        if (check_word<kKind>(thread, offset + i, segment, begin)) continue;
      check_bytes(thread, kKind, offset + i, kStep, kBytes, where);
    }
  }
}

// A hooked access, from the code at `code`.
template <Access kKind, size_t kBytes>
inline __attribute__((always_inline)) void hook(const void* p, const void* code) {
  Thread* thread = checked;
  if (thread == nullptr) return;
  if (--accesses_left < 0)
    fail("endless", std::to_string(kMaxAccesses) + " accesses without waiting or ending", code);
  const uint64_t offset = memory.offset(p);
  if (offset < kRegionBytes) {
    check_access<kKind, kBytes>(*thread, offset, {code, nullptr});
  } else {
    access_outside(*thread, kKind, reinterpret_cast<uintptr_t>(p), kBytes, {code, nullptr});
  }
}

template <Access kKind>
void check_range(Thread& thread, const void* p, size_t bytes, Where where) {
  const uint64_t offset = memory.offset(p);
  if (offset >= kRegionBytes) {
    access_outside(thread, kKind, reinterpret_cast<uintptr_t>(p), bytes, where);
    return;
  }
  size_t i = 0;
  for (; i + 4 <= bytes; i += 4) check_access<kKind, 4>(thread, offset + i, where);
  for (; i + 2 <= bytes; i += 2) check_access<kKind, 2>(thread, offset + i, where);
  for (; i < bytes; ++i) check_access<kKind, 1>(thread, offset + i, where);
}
template <Access kKind>
void hook_range(const void* p, size_t bytes, const void* code) {
  if (checked != nullptr) check_range<kKind>(*checked, p, bytes, {code, nullptr});
}

}  // namespace

void access(Thread& thread, Access kind, const void* p, size_t bytes, Site site) {
  if (checked == nullptr) return;
  if (kind == Access::kRead) {
    check_range<Access::kRead>(thread, p, bytes, {nullptr, &site});
  } else {
    check_range<Access::kWrite>(thread, p, bytes, {nullptr, &site});
  }
}

void atomic_access(void* p, size_t bytes) {
  if (checked == nullptr) return;
  const Where where{__builtin_return_address(0), nullptr};
  const uint64_t offset = memory.offset(p);
  if (offset >= kRegionBytes) {
    access_outside(*checked, Access::kAtomic, reinterpret_cast<uintptr_t>(p), bytes, where);
  } else {
    if (offset >= kSharedBytes) synchronise_at(offset);
    check_range<Access::kAtomic>(*checked, p, bytes, where);
  }
}

void check_shared(const char* name, const void* p, size_t bytes, Site site) {
  const uint64_t offset = memory.offset(p);
  if (offset >= kSharedBytes)
    fail("out of bounds", std::string(name) + " of memory that is not shared", site);
  if (offset % bytes != 0)
    fail("misaligned",
         std::string(name) + " of " + std::to_string(bytes) + " bytes at " + describe(offset),
         site);
}

void begin_launch_accesses() {
  if (next_segment > kMaxSegment) {
    clear_accesses();
    next_segment = 1;
  }
  launch_begin = next_segment++;
  block_segments.clear();
  channels.clear();
}
void begin_block_accesses() {
  block_begin = next_segment;
  block_segments.push_back({block_begin, machine.block});
  acquired.clear();
  end_epoch();
}
void end_epoch() {
  epoch_begin = next_segment;
  block_segment = 0;
  segments.clear();
}
void end_warp_epoch(Warp& warp) {
  ++warp.epoch;
  warp.many_segment = 0;
  const auto number = size_t(&warp - machine.warp);
  for (unsigned lane = 0; lane < kLanes; ++lane) machine.thread[number * kLanes + lane].segment = 0;
}

void set_running(Thread* thread) {
  running = thread;
  checked = machine.check ? thread : nullptr;
  accesses_left = kMaxAccesses;
}

}  // namespace convgrad::cuda::sim

// What g++ calls before each access in a kernel file (-fsanitize=thread) and where an address is
// misaligned or an index too large (-fsanitize=alignment,bounds-strict).
namespace sim = convgrad::cuda::sim;
using sim::Access;

extern "C" {

#define SIM_HOOK(bytes)                                               \
  void __tsan_read##bytes(void* p) {                                  \
    sim::hook<Access::kRead, bytes>(p, __builtin_return_address(0));  \
  }                                                                   \
  void __tsan_write##bytes(void* p) {                                 \
    sim::hook<Access::kWrite, bytes>(p, __builtin_return_address(0)); \
  }
SIM_HOOK(1)
SIM_HOOK(2)
SIM_HOOK(4)
SIM_HOOK(8)
SIM_HOOK(16)
#undef SIM_HOOK
void __tsan_read_range(void* p, size_t bytes) {
  sim::hook_range<Access::kRead>(p, bytes, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  sim::hook_range<Access::kWrite>(p, bytes, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
char __tsan_atomic8_load(const volatile char* p, int) {  // of the guards of local statics
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

struct UbsanLocation {
  const char* file;
  uint32_t line, column;
};
void __ubsan_handle_type_mismatch_v1(UbsanLocation* location, void* p) {
  if (sim::running != nullptr)
    sim::fail("misaligned", "access at " + sim::hex(reinterpret_cast<uintptr_t>(p)),
              sim::Site{location->file, int(location->line)});
}
void __ubsan_handle_out_of_bounds(UbsanLocation* location, uintptr_t index) {
  if (sim::running != nullptr)
    sim::fail("out of bounds", "index " + std::to_string(int64_t(index)) + " of an array",
              sim::Site{location->file, int(location->line)});
}

}  // extern "C"
