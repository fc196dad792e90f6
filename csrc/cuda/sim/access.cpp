#include "cuda/sim/access.h"
#include "cuda/sim/source.h"
namespace convgrad::cuda::sim {
void access(Thread&, Access, const void*, size_t, Site) {}
void check_shared(const char* name, const void* p, size_t bytes, Site site) {
  const uint64_t offset = memory.offset(p);
  if (offset >= kSharedBytes)
    fail("out of bounds", std::string(name) + " of memory that is not shared", site);
  if (offset % bytes != 0)
    fail("misaligned",
         std::string(name) + " of " + std::to_string(bytes) + " bytes at shared memory + " +
             std::to_string(offset),
         site);
}
void begin_launch_accesses() {}
void begin_block_accesses() {}
void end_epoch() {}
void end_warp_epoch(Warp& warp) { ++warp.epoch; }
void set_checked(Thread*) {}
void atomic_access(void*, size_t) {}
}
extern "C" {
#define HOOK(name) void __tsan_##name(void*) {}
HOOK(read1) HOOK(read2) HOOK(read4) HOOK(read8) HOOK(read16) HOOK(write1) HOOK(write2) HOOK(write4) HOOK(write8) HOOK(write16)
void __ubsan_handle_type_mismatch_v1(void*, void*) {}
void __ubsan_handle_out_of_bounds(void*, void*) {}
void __tsan_init() {}
void __tsan_read_range(void*, size_t) {}
void __tsan_write_range(void*, size_t) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
