#include "block_cache.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdio>
#include <cstring>
#include <mutex>

namespace convgrad::cpu {
namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kPage = 4096;
constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kLarge = int64_t{256} << 10;
constexpr int64_t kMaxBytes = int64_t{1} << 46;

int64_t round_up(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

// The header in front of each block. A segment is one mapping, cut into blocks without gaps.
struct Block {
  int64_t bytes;  // with this header
  Block* before;  // the neighbour below; null for a segment's first
  int64_t used;   // what was asked for; -1 unless poisoned
  bool last;      // there is no neighbour above
  bool free;
  bool large;  // of the arena for large blocks
  unsigned char guard[kAlign - 3 * sizeof(int64_t) - 3];

  unsigned char* data() { return reinterpret_cast<unsigned char*>(this) + kAlign; }
  Block* after() {
    return last ? nullptr
                : reinterpret_cast<Block*>(reinterpret_cast<unsigned char*>(this) + bytes);
  }
};
static_assert(sizeof(Block) == kAlign);
Block* block_of(void* data) {
  return reinterpret_cast<Block*>(static_cast<unsigned char*>(data) - kAlign);
}

// What a free block holds behind its header.
struct Links {
  Block *next, *previous;  // in its list
  int64_t touched;         // this many of its bytes, from the start on, may hold memory
};
Links& links_of(Block* block) { return *reinterpret_cast<Links*>(block->data()); }

// ---- poisoning ----

constexpr unsigned char kGuardByte = 0xa5;
constexpr int64_t kGuard = 4096;  // bytes behind a poisoned block
std::atomic<bool> poison{false};
std::atomic<int64_t> broken{0};

int64_t guard_bytes(Block* block) { return std::min(block->bytes - kAlign - block->used, kGuard); }

void poison_block(Block* block, int64_t used) noexcept {
  block->used = used;
  std::memset(block->guard, kGuardByte, sizeof(block->guard));
  std::memset(block->data(), 0xff, static_cast<size_t>(used));
  std::memset(block->data() + used, kGuardByte, static_cast<size_t>(guard_bytes(block)));
}

bool guards_intact(Block* block) noexcept {
  const auto is_guard = [](unsigned char byte) { return byte == kGuardByte; };
  const unsigned char* end = block->data() + block->used;
  return std::all_of(std::begin(block->guard), std::end(block->guard), is_guard) &&
         std::all_of(end, end + guard_bytes(block), is_guard);
}

// ---- segments ----

// `bytes` (whole huge pages) of fresh memory as one free block, or null.
Block* map_segment(int64_t bytes, bool large) noexcept {
  void* raw = mmap(nullptr, static_cast<size_t>(bytes + kHugePage), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  unsigned char* start = static_cast<unsigned char*>(raw);
  const int64_t skip = -reinterpret_cast<intptr_t>(raw) & (kHugePage - 1);
  if (skip > 0) munmap(start, static_cast<size_t>(skip));
  if (skip < kHugePage) munmap(start + skip + bytes, static_cast<size_t>(kHugePage - skip));
  start += skip;
#ifdef MADV_HUGEPAGE
  madvise(start, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  Block* block = reinterpret_cast<Block*>(start);
  *block = {bytes, nullptr, -1, true, true, large, {}};
  links_of(block).touched = 0;
  return block;
}

// Gives the memory of a free block back to the system; what it holds behind its links is lost.
void forget(Block* block) noexcept {
  const intptr_t start = reinterpret_cast<intptr_t>(block);
  const intptr_t from = round_up(start + kAlign + static_cast<int64_t>(sizeof(Links)), kPage);
  const intptr_t to = (start + block->bytes) / kPage * kPage;
  if (from < to)
    madvise(reinterpret_cast<void*>(from), static_cast<size_t>(to - from), MADV_DONTNEED);
  links_of(block).touched = 0;
}

// ---- an arena ----

// Blocks of at least kLarge bytes, or smaller ones. A request takes the best fitting free block and
// cuts it; a released block merges with its free neighbours: so memory of any size serves requests
// of any other, and a training step finds what the step before left, whatever its sizes are.
class Arena {
 public:
  explicit Arena(bool large)
      : large_(large), least_(large ? kLarge : 2 * kAlign), mapped_((large ? 32 : 4) * kHugePage) {}

  // A block of at least `bytes`, header included; null if there is no memory.
  Block* take(int64_t bytes) noexcept {
    Block* block = best_fit(bytes);
    if (block == nullptr) block = grow(bytes);
    if (block == nullptr) return nullptr;
    remove(block);
    if (block->bytes - bytes >= least_) cut(block, bytes);
    fresh_ += std::max<int64_t>(block->bytes - links_of(block).touched, 0);
    return block;
  }

  void give(Block* block) noexcept {
    int64_t touched = block->bytes;
    if (Block* above = block->after(); above != nullptr && above->free) {
      remove(above);
      touched += links_of(above).touched;
      merge(block, above);
    }
    if (Block* below = block->before; below != nullptr && below->free) {
      remove(below);
      touched += below->bytes;
      merge(below, block);
      block = below;
    }
    insert(block, touched);
  }

  void empty() noexcept {
    for (Block*& head : free_) {
      for (Block *block = head, *next; block != nullptr; block = next) {
        next = links_of(block).next;
        remove(block);
        if (block->before == nullptr && block->last) {
          munmap(block, static_cast<size_t>(block->bytes));
        } else {
          forget(block);
          insert(block, 0);
        }
      }
    }
  }

  int64_t cached_bytes() const { return cached_; }
  int64_t fresh_bytes() const { return fresh_; }

 private:
  static constexpr int kClasses = 4 * 64;
  static constexpr int kLooks = 32;  // free blocks of one class looked at

  // Four classes per power of two, by size.
  static int class_of(int64_t bytes) {
    const int top = 63 - std::countl_zero(static_cast<uint64_t>(bytes));
    return 4 * top + static_cast<int>((bytes >> (top - 2)) & 3);
  }

  Block* best_fit(int64_t bytes) const {
    for (int cls = class_of(bytes); cls < kClasses; ++cls) {
      Block* best = nullptr;
      int looks = 0;
      for (Block* b = free_[cls]; b != nullptr && looks < kLooks; b = links_of(b).next, ++looks) {
        if (b->bytes >= bytes && (best == nullptr || b->bytes < best->bytes)) best = b;
        if (b->bytes == bytes) break;
      }
      if (best != nullptr) return best;
    }
    return nullptr;
  }

  // Each segment is as large as all before it together, so that there are few: address space costs
  // nothing before it is touched.
  Block* grow(int64_t bytes) noexcept {
    const int64_t least = round_up(bytes, kHugePage);
    Block* block = map_segment(std::max(least, mapped_), large_);
    if (block == nullptr) block = map_segment(least, large_);
    if (block == nullptr) return nullptr;
    mapped_ += block->bytes;
    insert(block, 0);
    return block;
  }

  void insert(Block* block, int64_t touched) noexcept {
    Block*& head = free_[class_of(block->bytes)];
    block->free = true;
    links_of(block) = {head, nullptr, touched};
    if (head != nullptr) links_of(head).previous = block;
    head = block;
    cached_ += touched;
  }

  void remove(Block* block) noexcept {
    const Links& links = links_of(block);
    if (links.next != nullptr) links_of(links.next).previous = links.previous;
    if (links.previous != nullptr) {
      links_of(links.previous).next = links.next;
    } else {
      free_[class_of(block->bytes)] = links.next;
    }
    block->free = false;
    cached_ -= links.touched;
  }

  // Cuts a block that is in no list to `bytes`; the rest becomes a free block.
  void cut(Block* block, int64_t bytes) noexcept {
    Block* rest = reinterpret_cast<Block*>(reinterpret_cast<unsigned char*>(block) + bytes);
    const int64_t touched = std::max<int64_t>(links_of(block).touched - bytes, 0);
    *rest = {block->bytes - bytes, block, -1, block->last, true, large_, {}};
    if (Block* above = rest->after(); above != nullptr) above->before = rest;
    block->bytes = bytes;
    block->last = false;
    insert(rest, touched);
  }

  // Makes `above` the upper part of `block`; neither is in a list.
  static void merge(Block* block, Block* above) noexcept {
    block->bytes += above->bytes;
    block->last = above->last;
    if (Block* next = block->after(); next != nullptr) next->before = block;
  }

  const bool large_;
  const int64_t least_;  // bytes of the smallest block
  int64_t mapped_, cached_ = 0, fresh_ = 0;
  Block* free_[kClasses] = {};
};

// ---- the cache ----

class BlockCache {
 public:
  BlockCache() { pthread_atfork(before_fork, after_fork, after_fork); }

  void* allocate(int64_t used) {
    if (used > kMaxBytes) throw OutOfMemory(used, stats().live_bytes);
    const bool poisoned = poison.load(std::memory_order_relaxed);
    const int64_t bytes =
        round_up(kAlign + std::max(used, kAlign) + (poisoned ? kGuard : 0), kAlign);
    std::unique_lock<std::mutex> lock(mutex_);
    Arena& arena = bytes < kLarge ? small_ : large_;
    Block* block = arena.take(bytes);
    if (block == nullptr) {
      empty_locked();
      block = arena.take(bytes);
    }
    if (block == nullptr) throw OutOfMemory(used, live_);
    live_ += block->bytes;
    peak_live_ = std::max(peak_live_, live_);
    lock.unlock();
    block->used = -1;
    if (poisoned) poison_block(block, used);
    return block->data();
  }

  void release(void* data) noexcept {
    Block* block = block_of(data);
    if (block->used >= 0 && !guards_intact(block)) broken.fetch_add(1);
    std::lock_guard<std::mutex> lock(mutex_);
    live_ -= block->bytes;
    (block->large ? large_ : small_).give(block);
  }

  void empty() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    empty_locked();
  }

  BlockStats stats() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    return {live_, small_.cached_bytes() + large_.cached_bytes(), peak_live_,
            small_.fresh_bytes() + large_.fresh_bytes()};
  }

 private:
  void empty_locked() noexcept {
    small_.empty();
    large_.empty();
  }

  static void before_fork();
  static void after_fork();

  std::mutex mutex_;
  // Small blocks lie apart: those that live long would cut the free memory between large ones.
  Arena small_{false}, large_{true};
  int64_t live_ = 0, peak_live_ = 0;
};

// Never destroyed: arrays may outlive static destructors.
BlockCache& cache() {
  static BlockCache* instance = new BlockCache;
  return *instance;
}

// A child of fork must not find the lock held by a thread that it does not have.
void BlockCache::before_fork() { cache().mutex_.lock(); }
void BlockCache::after_fork() { cache().mutex_.unlock(); }

}  // namespace

OutOfMemory::OutOfMemory(int64_t bytes, int64_t live_bytes) noexcept {
  std::snprintf(text_, sizeof(text_),
                "[convgrad] There is no memory for an array or a workspace. Got %lld bytes, beside "
                "%lld in use.",
                static_cast<long long>(bytes), static_cast<long long>(live_bytes));
}

void* allocate_block(int64_t bytes) { return cache().allocate(bytes); }
void release_block(void* block) noexcept { cache().release(block); }
void poison_blocks(bool on) noexcept { poison.store(on); }
int64_t broken_guards() noexcept { return broken.load(); }
void empty_block_cache() noexcept { cache().empty(); }
BlockStats block_stats() noexcept { return cache().stats(); }

}  // namespace convgrad::cpu
