// The process's threads for kernels: one pool, brief spin and then sleep, rebuilt after fork.
#pragma once
#include <cstdint>

namespace convgrad::cpu {

using ItemFn = void (*)(void* arg, int64_t item, int thread);

// Calls fn(arg, item, thread) once for each item in [0, items), on at most `threads` threads;
// `thread` is in [0, threads) and no two running calls share one. Which thread gets an item is
// left open, so results must not depend on it. Workers that sleep take part only if `wake`: that
// costs the caller 7 us (measured), and they arrive after 20. A caller that finds the pool busy
// (another thread's kernel, or a kernel inside a kernel) runs all its items itself, as thread 0. fn
// must not throw.
void run_items(int threads, int64_t items, bool wake, ItemFn fn, void* arg);

// The default: CONVGRAD_NUM_THREADS, else what the affinity mask and the cgroup quota allow.
int default_threads();

}  // namespace convgrad::cpu
