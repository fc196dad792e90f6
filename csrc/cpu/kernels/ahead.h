// Memory that is wanted in the L2 cache soon, fetched between other work that hardly uses memory.
// Loops that walk several short runs at once hide little of a cache miss, and the processor's own
// prefetcher does not see through them.
#pragma once
#include "vec.h"

namespace convgrad::cpu {
namespace {

// A core has a few dozen misses under way, and drops or waits for what is beyond them: so runs are
// fetched in many small parts, a few cache lines of each at a time.
class Ahead {
 public:
  // Rows [begin, end) of `size` elements.
  template <class T>
  void add(const T* base, int64_t begin, int64_t end, int64_t size) {
    Run& run = runs_[count_++];
    run.at = reinterpret_cast<const char*>(base + begin * size);
    run.end = reinterpret_cast<const char*>(base + max_of(begin, end) * size);
  }
  // All of it by so many calls of fetch.
  void cut(int64_t parts) {
    for (int i = 0; i < count_; ++i)
      runs_[i].each = ceil_div(runs_[i].end - runs_[i].at, kLine * parts) * kLine;
  }
  void fetch() {
    for (int i = 0; i < count_; ++i) {
      Run& run = runs_[i];
      const char* const stop = run.end - run.at < run.each ? run.end : run.at + run.each;
      for (; run.at < stop; run.at += kLine) __builtin_prefetch(run.at, 0, 2);
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  struct Run {
    const char *at, *end;
    int64_t each;  // bytes per part
  };
  Run runs_[3];
  int count_ = 0;
};

}  // namespace
}  // namespace convgrad::cpu
