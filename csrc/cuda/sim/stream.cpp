// Streams, events and graphs of the simulator.
//
// Work is done when it is handed over, unless something before it on its stream is left to be done:
// a replayed graph, a copy from pinned memory, a wait for another stream's event. Such work, and
// all that follows it there, is done when somebody waits for it and not sooner: as late as a card
// may do it. So whoever reads, frees or overwrites memory without waiting meets the state before.
//
// While a stream is captured its work goes into a graph and is not done.
#include "cuda/sim/stream.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cuda/sim/machine.h"

namespace sim = convgrad::cuda::sim;

// A point in a stream's work.
struct Mark {
  cudaStream_t stream;
  bool reached = false;
};
struct CUevent_st {
  std::shared_ptr<Mark> mark;  // where it was recorded last
};
struct CUgraph_st {
  std::shared_ptr<const std::vector<sim::Work>> work;
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<sim::Work>> work;
};
struct CUstream_st {
  int device;
  bool blocking;  // ordered with the device's default stream
  bool capturing = false, invalid = false;
  std::vector<sim::Work> captured{};
  std::deque<sim::Work> left{};
  std::thread::id runner{};  // the thread that does its work
  int depth = 0;             // of that thread's calls: waits for each other's events
};

namespace convgrad::cuda::sim {
namespace {

constexpr std::chrono::seconds kPatience{20};

std::mutex mutex;  // of all below, never held while work is done
std::condition_variable changed;
std::vector<cudaStream_t>& streams() {
  static auto* const all = new std::vector<cudaStream_t>;  // never freed: work may hold Python's
  return *all;
}

cudaStream_t make_stream(int device, bool blocking) {
  const std::lock_guard lock(mutex);
  streams().push_back(new CUstream_st{device, blocking});
  return streams().back();
}

cudaStream_t resolved(cudaStream_t stream) {
  if (stream != nullptr) return stream;
  static const cudaStream_t defaults[kDevices] = {make_stream(0, true), make_stream(1, true)};
  int device = 0;
  cudaGetDevice(&device);
  return defaults[device];
}
bool is_default(cudaStream_t stream) {
  for (int i = 0; i < kDevices; ++i)
    if (stream == streams()[size_t(i)]) return true;
  return false;
}

class OnDevice {
 public:
  explicit OnDevice(int device) {
    cudaGetDevice(&before_);
    cudaSetDevice(device);
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

// Does the stream's work in order until `mark` (null: until none is left).
void drain(cudaStream_t stream, const Mark* mark) {
  const OnDevice device(stream->device);
  std::unique_lock lock(mutex);
  const auto self = std::this_thread::get_id();
  if (!changed.wait_for(lock, kPatience,
                        [&] { return stream->depth == 0 || stream->runner == self; }))
    throw std::runtime_error("CUDA simulator: two threads wait for each other's streams.");
  stream->runner = self;
  ++stream->depth;
  const auto leave = [&] {
    --stream->depth;
    changed.notify_all();
  };
  while (!stream->left.empty() && (mark == nullptr || !mark->reached)) {
    Work work = std::move(stream->left.front());
    stream->left.pop_front();
    lock.unlock();
    try {
      work();
    } catch (...) {
      work = nullptr;
      lock.lock();
      std::deque<Work> lost;
      lost.swap(stream->left);
      leave();
      lock.unlock();
      throw;
    }
    work = nullptr;
    lock.lock();
  }
  leave();
}

// The default stream comes after what blocking streams have been given, and before what they will.
void order_with_default(cudaStream_t stream) {
  if (!stream->blocking) return;
  std::vector<cudaStream_t> before;
  {
    const std::lock_guard lock(mutex);
    for (const cudaStream_t other : streams()) {
      if (other == stream || other->device != stream->device || !other->blocking) continue;
      if (is_default(stream) == is_default(other)) continue;
      if (other->capturing)
        throw std::runtime_error(
            "cudaErrorStreamCaptureImplicit: operation would make the legacy stream depend on a "
            "capturing blocking stream");
      if (!other->left.empty()) before.push_back(other);
    }
  }
  for (const cudaStream_t other : before) drain(other, nullptr);
}

// Waiting for a stream that is captured is an error, and ends the capture in one.
cudaError_t refuse_capturing(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  if (!stream->capturing) return cudaSuccess;
  stream->invalid = true;
  return cudaErrorStreamCaptureUnsupported;
}

}  // namespace

bool runs_at_once(cudaStream_t stream) {
  stream = resolved(stream);
  if (!stream->capturing) order_with_default(stream);
  const std::lock_guard lock(mutex);
  return !stream->capturing && stream->left.empty();
}

void submit(cudaStream_t stream, Work work) {
  if (runs_at_once(stream)) return work();
  stream = resolved(stream);
  const std::lock_guard lock(mutex);
  if (stream->capturing) {
    stream->captured.push_back(std::move(work));
  } else {
    stream->left.push_back(std::move(work));
  }
}

void defer(cudaStream_t stream, Work work) {
  stream = resolved(stream);
  if (runs_at_once(stream)) {
    const std::lock_guard lock(mutex);
    stream->left.push_back(std::move(work));
  } else {
    submit(stream, std::move(work));
  }
}

void finish_device(int device) {
  std::vector<cudaStream_t> all;
  {
    const std::lock_guard lock(mutex);
    all = streams();
  }
  for (const cudaStream_t stream : all)
    if (stream->device == device) drain(stream, nullptr);
}

void release_in_order(void* p, cudaStream_t stream) {
  {
    const OnDevice device(device_of(p));
    stream = resolved(stream);
  }
  {
    const std::lock_guard lock(mutex);
    if (!stream->left.empty()) {
      stream->left.push_back([p] { release(p); });
      return;
    }
  }
  release(p);
}

void run(const Launch& launch) {
  check_limits(launch);
  const auto stream = static_cast<cudaStream_t>(launch.stream);
  if (runs_at_once(stream)) return run_now(launch);
  const std::shared_ptr<const void> arguments(launch.copy(launch.arguments), launch.destroy);
  Launch later = launch;
  later.arguments = arguments.get();
  submit(stream, [later, arguments] { run_now(later); });
}

}  // namespace convgrad::cuda::sim

// ---- the CUDA runtime's functions ----

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  sim::resolved(nullptr);  // the default streams come first
  int device = 0;
  cudaGetDevice(&device);
  *stream = sim::make_stream(device, (flags & cudaStreamNonBlocking) == 0);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  sim::drain(stream, nullptr);
  const std::lock_guard lock(sim::mutex);
  std::erase(sim::streams(), stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  stream = sim::resolved(stream);
  const cudaError_t error = sim::refuse_capturing(stream);
  if (error != cudaSuccess) return error;
  sim::order_with_default(stream);
  sim::drain(stream, nullptr);
  return cudaSuccess;
}
cudaError_t cudaStreamGetDevice(cudaStream_t stream, int* device) {
  *device = sim::resolved(stream)->device;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  int device = 0;
  cudaGetDevice(&device);
  std::vector<cudaStream_t> all;
  {
    const std::lock_guard lock(sim::mutex);
    all = sim::streams();
  }
  for (const cudaStream_t stream : all) {
    if (stream->device != device) continue;
    const cudaError_t error = sim::refuse_capturing(stream);
    if (error != cudaSuccess) return error;
  }
  sim::finish_device(device);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream) {
  if (stream == nullptr || sim::is_default(stream)) return cudaErrorStreamCaptureUnsupported;
  const std::lock_guard lock(sim::mutex);
  if (stream->capturing) return cudaErrorIllegalState;
  stream->capturing = true;
  stream->invalid = false;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, bool* capturing) {
  *capturing = sim::resolved(stream)->capturing;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  std::vector<sim::Work> work;
  {
    const std::lock_guard lock(sim::mutex);
    if (!stream->capturing) return cudaErrorIllegalState;
    stream->capturing = false;
    work.swap(stream->captured);
  }
  *graph = nullptr;
  if (stream->invalid) return cudaErrorStreamCaptureInvalidated;
  *graph = new CUgraph_st{std::make_shared<const std::vector<sim::Work>>(std::move(work))};
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph) {
  *exec = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (exec->work->empty()) return cudaSuccess;
  const auto work = exec->work;
  for (size_t i = 0; i < work->size(); ++i) sim::defer(stream, [work, i] { (*work)[i](); });
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const auto mark = std::make_shared<Mark>(Mark{sim::resolved(stream)});
  event->mark = mark;
  sim::submit(stream, [mark] { mark->reached = true; });
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return event->mark == nullptr || event->mark->reached ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::shared_ptr<Mark> mark = event->mark;
  if (mark == nullptr || mark->reached) return cudaSuccess;
  const cudaError_t error = sim::refuse_capturing(mark->stream);
  if (error == cudaSuccess) sim::drain(mark->stream, mark.get());
  return error;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event) {
  const std::shared_ptr<Mark> mark = event->mark;
  if (mark == nullptr || mark->reached) return cudaSuccess;
  sim::defer(stream, [mark] { sim::drain(mark->stream, mark.get()); });
  return cudaSuccess;
}
