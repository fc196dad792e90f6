// Checks of memory accesses: bounds, initialisation, races.
//
// A segment is a thread's life between two points where it synchronises. Segments are numbered in
// the order they begin, over all launches, so that one comparison tells those before this launch,
// block or barrier. Every byte remembers the segment that wrote it last and that which read it
// last; where several read, a segment that stands for all threads of the warp, block or launch.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda/sim/machine.h"

namespace convgrad::cuda::sim {

enum class Access : uint8_t { kRead, kWrite, kAtomic };

// Checks an access of the kernel's to p by a thread, and remembers it. Nothing if checks are off.
void access(Thread& thread, Access kind, const void* p, size_t bytes, Site site);
// That p, of a wrapper of ptx.h, is shared memory and aligned to `bytes`.
void check_shared(const char* name, const void* p, size_t bytes, Site site);

// The scheduler says:
void begin_launch_accesses();
void begin_block_accesses();
void end_epoch();            // __syncthreads(): what was is before what comes
void end_warp_epoch(Warp&);  // __syncwarp() of the whole warp
// The thread that runs from now on; null outside of kernels.
void set_running(Thread* thread);

}  // namespace convgrad::cuda::sim
