#include "thread_pool.h"

#include <pthread.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <atomic>
#include <chrono>
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

// How long a worker waits awake for the next kernel of a step: longer than most gaps that Python
// leaves between kernels, far shorter than a scheduler's time slice.
constexpr std::chrono::microseconds kAwake{50};
// Looks at a shared variable between two calls of the system: 1 to 3 us, as long as `pause` takes.
constexpr int kLooks = 64;
constexpr int kMaxThreads = 256;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether `happened()` within kLooks looks.
template <class Condition>
bool looks(const Condition& happened) {
  for (int i = 0; i < kLooks; ++i, pause())
    if (happened()) return true;
  return false;
}

// One job at a time. Each thread has a share of its items, neighbours in order: what it writes in
// one kernel it reads in the next, and processors may be far apart (200 ns and a fabric between two
// that share no cache, measured). Who has finished its share takes from the others'. A share is a
// ticket of the job's number (high half) and how many items are left (low half): a worker that
// wakes late cannot claim an item of a job that is over, so the caller waits for claimed items
// only, never for a sleeping worker.
class ThreadPool {
 public:
  void run(int threads, int64_t items, bool wake, ItemFn fn, void* arg) {
    grow(threads - 1);
    const uint64_t job = (job_.load(std::memory_order_relaxed) + 1) & 0xffffffffu;
    fn_.store(fn, std::memory_order_relaxed);
    arg_.store(arg, std::memory_order_relaxed);
    items_.store(items, std::memory_order_relaxed);
    threads_.store(threads, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    for (int t = 0; t < threads; ++t) {
      const int64_t share = share_end(t, items, threads) - share_end(t - 1, items, threads);
      shares_[t].ticket.store(job << 32 | static_cast<uint64_t>(share), std::memory_order_release);
    }
    job_.store(static_cast<uint32_t>(job), std::memory_order_seq_cst);
    if (wake && sleeping_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    work(static_cast<uint32_t>(job), 0, threads);
    while (!looks([&] { return done_.load(std::memory_order_acquire) == items; }))
      std::this_thread::yield();
  }

 private:
  static int64_t share_end(int thread, int64_t items, int threads) {
    return (thread + 1) * items / threads;
  }

  // Runs items of `job` until none is unclaimed: the thread's own, then the others'.
  void work(uint32_t job, int thread, int threads) {
    int64_t done = 0;
    for (int i = 0; i < threads; ++i) done += work_on((thread + i) % threads, job, thread);
    if (done > 0) done_.fetch_add(done, std::memory_order_release);
  }

  // Runs what is left of one share; returns how many items that was. Nothing of the job is over as
  // long as a ticket of it has items left, so what is read before a claim holds if the claim does.
  int64_t work_on(int share, uint32_t job, int thread) {
    std::atomic<uint64_t>& shared = shares_[share].ticket;
    uint64_t ticket = shared.load(std::memory_order_acquire);
    int64_t done = 0;
    for (;;) {
      const int64_t left = static_cast<int64_t>(ticket & 0xffffffffu);
      if (static_cast<uint32_t>(ticket >> 32) != job || left == 0) return done;
      const ItemFn fn = fn_.load(std::memory_order_relaxed);
      void* arg = arg_.load(std::memory_order_relaxed);
      const int64_t end = share_end(share, items_.load(std::memory_order_relaxed),
                                    threads_.load(std::memory_order_relaxed));
      if (!shared.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
      fn(arg, end - left, thread);
      ++done;
      ticket = shared.load(std::memory_order_acquire);
    }
  }

  void worker(int thread) {
    uint32_t seen = 0;
    for (;;) {
      seen = next_job(seen);
      const int threads = threads_.load(std::memory_order_relaxed);
      if (thread < threads) work(seen, thread, threads);
    }
  }

  // Returns the number of a job other than `seen`, spinning briefly and then sleeping.
  uint32_t next_job(uint32_t seen) {
    const auto job = [this] { return job_.load(std::memory_order_seq_cst); };
    const auto end = std::chrono::steady_clock::now() + kAwake;
    do {
      if (looks([&] { return job() != seen; })) return job();
      // A worker that was woken on its caller's processor is in its way.
      std::this_thread::yield();
    } while (std::chrono::steady_clock::now() < end);
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

  // Each on cache lines of its own: what the caller writes, what all write, what one thread does.
  static constexpr size_t kLines = 128;
  struct alignas(kLines) Share {
    std::atomic<uint64_t> ticket{0};
  };
  alignas(kLines) std::atomic<uint32_t> job_{0};
  std::atomic<int> threads_{0};
  std::atomic<ItemFn> fn_{nullptr};
  std::atomic<void*> arg_{nullptr};
  std::atomic<int64_t> items_{0};
  alignas(kLines) std::atomic<int64_t> done_{0};
  Share shares_[kMaxThreads];
  alignas(kLines) std::atomic<int> sleeping_{0};
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

void run_items(int threads, int64_t items, bool wake, ItemFn fn, void* arg) {
  threads = static_cast<int>(threads < items ? threads : items);
  if (threads > 1 && items < (int64_t{1} << 32) && !busy.exchange(true)) {
    the_pool().run(threads, items, wake, fn, arg);
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
