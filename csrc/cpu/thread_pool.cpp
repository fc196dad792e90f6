#include "thread_pool.h"

#include <pthread.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace convgrad::cpu {
namespace {

// About 30 us of waiting for the next kernel of a step before sleeping: longer than the gaps that
// Python leaves between kernels, far shorter than a scheduler's time slice.
constexpr int kSpins = 1000;
constexpr int kMaxThreads = 256;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One job at a time. `ticket` holds the job's number (high half) and its next unclaimed item (low
// half): a worker that wakes late cannot claim an item of a job that is over, so the caller waits
// for claimed items only, never for a sleeping worker.
class ThreadPool {
 public:
  void run(int threads, int64_t items, ItemFn fn, void* arg) {
    grow(threads - 1);
    const uint64_t job = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    fn_.store(fn, std::memory_order_relaxed);
    arg_.store(arg, std::memory_order_relaxed);
    items_.store(items, std::memory_order_relaxed);
    threads_.store(threads, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(job << 32, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    work(static_cast<uint32_t>(job), 0);
    for (int spin = 0; done_.load(std::memory_order_acquire) < items; ++spin) {
      if (spin < kSpins)
        pause();
      else
        std::this_thread::yield();
    }
  }

 private:
  // Claims and runs items of `job` until none is left.
  void work(uint32_t job, int thread) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (;;) {
      const ItemFn fn = fn_.load(std::memory_order_relaxed);
      void* arg = arg_.load(std::memory_order_relaxed);
      const int64_t items = items_.load(std::memory_order_relaxed);
      if (static_cast<uint32_t>(ticket >> 32) != job) return;
      const int64_t item = static_cast<int64_t>(ticket & 0xffffffffu);
      if (item >= items) return;
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
      fn(arg, item, thread);
      done_.fetch_add(1, std::memory_order_release);
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  void worker(int thread) {
    uint32_t seen = 0;
    for (;;) {
      seen = next_job(seen);
      if (thread < threads_.load(std::memory_order_relaxed)) work(seen, thread);
    }
  }

  // Returns the number of a job other than `seen`, spinning briefly and then sleeping.
  uint32_t next_job(uint32_t seen) {
    const auto job = [this] {
      return static_cast<uint32_t>(ticket_.load(std::memory_order_seq_cst) >> 32);
    };
    for (int spin = 0; spin < kSpins; ++spin, pause()) {
      if (job() != seen) return job();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return job() != seen; });
    sleeping_.fetch_sub(1, std::memory_order_seq_cst);
    return job();
  }

  void grow(int workers) {
    for (; workers_ < workers; ++workers_) {
      std::thread([this, id = workers_ + 1] { worker(id); }).detach();
    }
  }

  std::atomic<uint64_t> ticket_{0};
  std::atomic<int64_t> done_{0};
  std::atomic<ItemFn> fn_{nullptr};
  std::atomic<void*> arg_{nullptr};
  std::atomic<int64_t> items_{0};
  std::atomic<int> threads_{0}, sleeping_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  int workers_ = 0;
};

// The pool lives as long as the process: its threads may outlast static destructors. After fork the
// child has no workers, and locks in any state: it leaves the old pool alone and starts anew.
std::atomic<ThreadPool*> pool{nullptr};
std::atomic<bool> busy{false};

void after_fork() {
  pool.store(nullptr);
  busy.store(false);
}

ThreadPool& the_pool() {
  ThreadPool* p = pool.load(std::memory_order_acquire);
  if (p == nullptr) {
    static std::atomic<bool> registered{false};
    if (!registered.exchange(true)) pthread_atfork(nullptr, nullptr, after_fork);
    p = new ThreadPool;
    pool.store(p, std::memory_order_release);
  }
  return *p;
}

int cgroup_cpus() {
  std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r");
  if (file == nullptr) return kMaxThreads;
  long long quota = 0, period = 0;
  const int fields = std::fscanf(file, "%lld %lld", &quota, &period);
  std::fclose(file);
  if (fields != 2 || quota <= 0 || period <= 0) return kMaxThreads;  // "max": no quota
  return static_cast<int>(std::ceil(static_cast<double>(quota) / static_cast<double>(period)));
}

int affinity_cpus() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

void run_items(int threads, int64_t items, ItemFn fn, void* arg) {
  threads = static_cast<int>(threads < items ? threads : items);
  if (threads > 1 && items < (int64_t{1} << 32) && !busy.exchange(true)) {
    the_pool().run(threads, items, fn, arg);
    busy.store(false, std::memory_order_release);
    return;
  }
  for (int64_t item = 0; item < items; ++item) fn(arg, item, 0);
}

int default_threads() {
  if (const char* text = std::getenv("CONVGRAD_NUM_THREADS"); text != nullptr && *text != '\0') {
    char* end = nullptr;
    const long n = std::strtol(text, &end, 10);
    if (*end != '\0' || n < 1 || n > kMaxThreads)
      throw std::invalid_argument(
          "[convgrad] CONVGRAD_NUM_THREADS must be a whole number from 1 to " +
          std::to_string(kMaxThreads) + ". Got '" + text + "'.");
    return static_cast<int>(n);
  }
  int n = affinity_cpus();
  if (const int quota = cgroup_cpus(); quota < n) n = quota;
  return n < 1 ? 1 : n > kMaxThreads ? kMaxThreads : n;
}

}  // namespace convgrad::cpu
