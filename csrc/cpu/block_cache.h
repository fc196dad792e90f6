// The memory of arrays and workspaces, kept between steps: a fresh page costs more (2 us per 4 KB,
// measured) than many a kernel, so blocks go back here, not to the operating system.
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>

namespace convgrad::cpu {

// A MemoryError in Python, which says how much was asked for.
class OutOfMemory : public std::bad_alloc {
 public:
  OutOfMemory(int64_t bytes, int64_t live_bytes) noexcept;
  const char* what() const noexcept override { return text_; }

 private:
  char text_[128];
};

// 64-byte aligned, at least `bytes`; throws OutOfMemory after the cache was emptied and tried
// again. Any thread may release any block.
void* allocate_block(int64_t bytes);
void release_block(void* block) noexcept;
void empty_block_cache() noexcept;

struct BlockStats {
  int64_t live_bytes, cached_bytes, peak_live_bytes;  // in use, kept free, most ever in use
  int64_t fresh_bytes;  // handed out so far of memory that nothing had used, so without pages
};
BlockStats block_stats() noexcept;

// For tests. While on, every block handed out is full of NaN (0xff bytes) between guard bands, so
// that a value a kernel did not write shows. broken_guards() counts the blocks that came back with
// a guard band overwritten.
void poison_blocks(bool on) noexcept;
int64_t broken_guards() noexcept;

}  // namespace convgrad::cpu
