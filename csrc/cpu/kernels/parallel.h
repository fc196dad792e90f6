// parallel_for: a loop over independent items on the threads of an Exec.
#pragma once
#include <cstdint>

#include "cpu/thread_pool.h"
#include "ops.h"

namespace convgrad::cpu {
namespace {

// Work is counted in scalar multiply-adds, or in elements read and written, which cost ten times as
// much. A second thread that is awake costs 0.2 us: it pays from 3 us of elements on. One that
// sleeps is woken for 20 us of them.
constexpr int64_t kSerialWork = 1 << 15, kWakeWork = 1 << 18;

// body(item, thread) for each item in [0, items); `work` is the whole loop's, in the unit above.
// `thread` < exec.threads names scratch space, nothing else may depend on it.
template <class Body>
inline void parallel_for(const Exec& exec, int64_t items, int64_t work, const Body& body) {
  if (exec.threads <= 1 || items <= 1 || work < kSerialWork) {
    for (int64_t item = 0; item < items; ++item) body(item, 0);
    return;
  }
  run_items(
      exec.threads, items, work >= kWakeWork,
      [](void* arg, int64_t item, int thread) { (*static_cast<const Body*>(arg))(item, thread); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// body(begin, end) over [0, n) in pieces of `grain` elements: for elementwise kernels.
template <class Body>
inline void parallel_ranges(const Exec& exec, int64_t n, int64_t grain, const Body& body) {
  parallel_for(exec, (n + grain - 1) / grain, n, [&](int64_t item, int) {
    const int64_t begin = item * grain;
    body(begin, begin + grain < n ? begin + grain : n);
  });
}
constexpr int64_t kGrain = 1 << 14;  // elements per piece of an elementwise kernel

}  // namespace
}  // namespace convgrad::cpu
