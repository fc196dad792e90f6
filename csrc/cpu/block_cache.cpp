#include "block_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

namespace convgrad::cpu {
namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kMinLimit = int64_t{64} << 20;
constexpr int kClasses = 4 * 64;

// In front of each block: which free list it goes back to, and a guard band.
struct Header {
  int64_t bytes;  // of the block, without this header
  int64_t used;   // what was asked for; -1 unless poisoned
  int64_t size_class;
  unsigned char guard[kAlign - 3 * sizeof(int64_t)];
};
static_assert(sizeof(Header) == kAlign);

constexpr unsigned char kGuardByte = 0xa5;
constexpr int64_t kMaxGuard = 4096;  // bytes behind the block that are guarded
std::atomic<bool> poison{false};
std::atomic<int64_t> broken{0};

void poison_block(Header* header, int64_t used) noexcept {
  unsigned char* block = reinterpret_cast<unsigned char*>(header) + kAlign;
  header->used = used;
  std::memset(header->guard, kGuardByte, sizeof(header->guard));
  std::memset(block, 0xff, static_cast<size_t>(used));
  std::memset(block + used, kGuardByte,
              static_cast<size_t>(std::min(header->bytes - used, kMaxGuard)));
}

bool guards_intact(const Header* header) noexcept {
  const auto is_guard = [](unsigned char byte) { return byte == kGuardByte; };
  const unsigned char* end = reinterpret_cast<const unsigned char*>(header) + kAlign + header->used;
  return std::all_of(std::begin(header->guard), std::end(header->guard), is_guard) &&
         std::all_of(end, end + std::min(header->bytes - header->used, kMaxGuard), is_guard);
}

// Four classes per power of two: at most a quarter of a block is unused.
int size_class_of(int64_t bytes) {
  // A spare byte at least, so that there is always a guard band.
  const uint64_t units = static_cast<uint64_t>(std::max<int64_t>(bytes, 255));
  const int top = 63 - std::countl_zero(units);  // 2^top <= units < 2^(top + 1)
  return 4 * top + static_cast<int>((units >> (top - 2)) & 3);
}

int64_t class_bytes(int size_class) {
  return (int64_t{1} << (size_class / 4)) + ((size_class % 4 + 1LL) << (size_class / 4 - 2));
}

class BlockCache {
 public:
  void* allocate(int64_t bytes) {
    if (bytes < 0 || bytes > (int64_t{1} << 46)) throw std::bad_alloc();
    const int cls = size_class_of(bytes);
    const int64_t size = class_bytes(cls);
    std::unique_lock<std::mutex> lock(mutex_);
    stats_.live_bytes += size;
    stats_.peak_live_bytes = std::max(stats_.peak_live_bytes, stats_.live_bytes);
    if (!free_[cls].empty()) {
      void* block = free_[cls].back();
      free_[cls].pop_back();
      stats_.cached_bytes -= size;
      return block;
    }
    // Changing shapes must not pile up blocks of sizes that are not asked for again.
    const int64_t limit = std::max(kMinLimit, stats_.peak_live_bytes + stats_.peak_live_bytes / 4);
    trim(limit - stats_.live_bytes);
    lock.unlock();
    void* block = fresh(size, cls);
    if (block == nullptr) {
      empty();
      block = fresh(size, cls);
    }
    if (block == nullptr) {
      lock.lock();
      stats_.live_bytes -= size;
      throw std::bad_alloc();
    }
    return block;
  }

  void release(void* block) noexcept {
    const Header header = *header_of(block);
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.live_bytes -= header.bytes;
    stats_.cached_bytes += header.bytes;
    try {
      free_[header.size_class].push_back(block);
    } catch (...) {  // no memory for the list itself: let the block go
      stats_.cached_bytes -= header.bytes;
      std::free(header_of(block));
    }
  }

  void empty() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    trim(0);
  }

  BlockStats stats() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    return stats_;
  }

 private:
  static Header* header_of(void* block) {
    return reinterpret_cast<Header*>(static_cast<char*>(block) - kAlign);
  }

  static void* fresh(int64_t size, int cls) noexcept {
    const int64_t align = size >= 2 * kHugePage ? kHugePage : kAlign;
    const int64_t total = (size + kAlign + align - 1) / align * align;
    void* raw = std::aligned_alloc(static_cast<size_t>(align), static_cast<size_t>(total));
    if (raw == nullptr) return nullptr;
#ifdef MADV_HUGEPAGE
    if (align == kHugePage) madvise(raw, static_cast<size_t>(total), MADV_HUGEPAGE);
#endif
    void* block = static_cast<char*>(raw) + kAlign;
    *header_of(block) = {size, -1, cls, {}};
    return block;
  }

  // Frees cached blocks, largest first, until at most `keep` bytes of them are left.
  void trim(int64_t keep) noexcept {
    for (int cls = kClasses - 1; cls >= 0 && stats_.cached_bytes > std::max<int64_t>(keep, 0);
         --cls) {
      while (!free_[cls].empty() && stats_.cached_bytes > std::max<int64_t>(keep, 0)) {
        std::free(header_of(free_[cls].back()));
        free_[cls].pop_back();
        stats_.cached_bytes -= class_bytes(cls);
      }
    }
  }

  std::mutex mutex_;
  std::vector<void*> free_[kClasses];
  BlockStats stats_{0, 0, 0};
};

// Never destroyed: arrays may outlive static destructors.
BlockCache& cache() {
  static BlockCache* instance = new BlockCache;
  return *instance;
}

}  // namespace

void* allocate_block(int64_t bytes) {
  void* block = cache().allocate(bytes);
  Header* header = reinterpret_cast<Header*>(static_cast<char*>(block) - kAlign);
  header->used = -1;
  if (poison.load(std::memory_order_relaxed)) poison_block(header, bytes);
  return block;
}
void release_block(void* block) noexcept {
  const Header* header = reinterpret_cast<Header*>(static_cast<char*>(block) - kAlign);
  if (header->used >= 0 && !guards_intact(header)) broken.fetch_add(1);
  cache().release(block);
}
void poison_blocks(bool on) noexcept { poison.store(on); }
int64_t broken_guards() noexcept { return broken.load(); }
void empty_block_cache() noexcept { cache().empty(); }
BlockStats block_stats() noexcept { return cache().stats(); }

}  // namespace convgrad::cpu
