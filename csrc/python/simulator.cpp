// What the tests ask of the simulator of CUDA: memory for arrays, streams and their work, and how
// kernels run. Part of convgrad._cuda_sim alone.
#include <memory>

#include "array.h"
#include "cuda/device.h"
#include "cuda/sim/runtime.h"
#include "cuda/sim/stream.h"

namespace convgrad::python {
namespace {

namespace sim = cuda::sim;

void* at(uintptr_t address) { return reinterpret_cast<void*>(address); }
uintptr_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }
cudaStream_t stream_at(uintptr_t p) { return static_cast<cudaStream_t>(at(p)); }
cudaEvent_t event_at(uintptr_t p) { return static_cast<cudaEvent_t>(at(p)); }
cudaGraphExec_t graph_at(uintptr_t p) { return static_cast<cudaGraphExec_t>(at(p)); }

void check(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(cudaGetErrorName(error)) + ": " +
                             cudaGetErrorString(error));
}

// A Python function as a stream's work: called and given up with the GIL, whoever does the work.
sim::Work as_work(const py::function& function) {
  const std::shared_ptr<py::function> kept(new py::function(function), [](py::function* f) {
    const py::gil_scoped_acquire locked;
    delete f;
  });
  return [kept] {
    const py::gil_scoped_acquire locked;
    (*kept)();
  };
}

// A stream that is never destroyed.
uintptr_t create_stream(bool non_blocking) {
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, non_blocking ? cudaStreamNonBlocking : 0);
  return address(stream);
}

uintptr_t end_capture(uintptr_t stream) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream_at(stream), &graph));
  cudaGraphExec_t exec = nullptr;
  check(cudaGraphInstantiate(&exec, graph));
  cudaGraphDestroy(graph);
  return address(exec);
}

uintptr_t create_event() {
  cudaEvent_t event = nullptr;
  cudaEventCreate(&event);
  return address(event);
}

void bind_streams(py::module_& m) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  m.def("sim_create_stream", &create_stream);
  m.def("sim_submit", [](uintptr_t stream, const py::function& work) {
    sim::submit(stream_at(stream), as_work(work));
  });
  m.def("sim_defer", [](uintptr_t stream, const py::function& work) {
    sim::defer(stream_at(stream), as_work(work));
  });
  m.def("sim_runs_at_once", [](uintptr_t stream) { return sim::runs_at_once(stream_at(stream)); });
  m.def(
      "sim_stream_synchronize",
      [](uintptr_t stream) { check(cudaStreamSynchronize(stream_at(stream))); }, Unlocked());
  m.def("sim_finish_device", &sim::finish_device, Unlocked());
  m.def("sim_begin_capture",
        [](uintptr_t stream) { check(cudaStreamBeginCapture(stream_at(stream))); });
  m.def("sim_end_capture", &end_capture);
  m.def("sim_is_capturing", [](uintptr_t stream) {
    bool capturing = false;
    check(cudaStreamIsCapturing(stream_at(stream), &capturing));
    return capturing;
  });
  m.def("sim_graph_launch", [](uintptr_t graph, uintptr_t stream) {
    check(cudaGraphLaunch(graph_at(graph), stream_at(stream)));
  });
  m.def("sim_graph_destroy", [](uintptr_t graph) { check(cudaGraphExecDestroy(graph_at(graph))); });
  m.def("sim_create_event", &create_event);
  m.def("sim_destroy_event", [](uintptr_t event) { check(cudaEventDestroy(event_at(event))); });
  m.def("sim_event_record", [](uintptr_t event, uintptr_t stream) {
    check(cudaEventRecord(event_at(event), stream_at(stream)));
  });
  m.def("sim_event_done",
        [](uintptr_t event) { return cudaEventQuery(event_at(event)) == cudaSuccess; });
  m.def(
      "sim_event_synchronize",
      [](uintptr_t event) { check(cudaEventSynchronize(event_at(event))); }, Unlocked());
  m.def("sim_wait_event", [](uintptr_t stream, uintptr_t event) {
    check(cudaStreamWaitEvent(stream_at(stream), event_at(event)));
  });
}

// Pinned memory.
uintptr_t host_allocate(size_t bytes) {
  void* p = nullptr;
  check(cudaHostAlloc(&p, bytes, cudaHostAllocPortable));
  return address(p);
}

}  // namespace

void bind_simulator(py::module_& m) {
  // The address of a new block between guards, of NaN bytes that count as never written; 0 for
  // none.
  m.def("sim_allocate",
        [](size_t bytes, int device) { return address(sim::allocate(bytes, device)); });
  m.def("sim_host_allocate", &host_allocate);
  m.def("sim_release", [](uintptr_t p) { sim::release(at(p)); });
  m.def("sim_release_in_order",
        [](uintptr_t p, uintptr_t stream) { sim::release_in_order(at(p), stream_at(stream)); });
  m.def("sim_mark_written", [](uintptr_t p, size_t bytes) { sim::mark_written(at(p), bytes); });
  m.def("sim_mark_unwritten", [](uintptr_t p, size_t bytes) { sim::mark_unwritten(at(p), bytes); });
  m.def("sim_is_initialised",
        [](uintptr_t p, size_t bytes) { return sim::is_initialised(at(p), bytes); });
  m.def("sim_is_allocated",
        [](uintptr_t p, size_t bytes) { return sim::is_allocated(at(p), bytes); });
  m.def("sim_device_of", [](uintptr_t p) { return sim::device_of(at(p)); });
  m.def("sim_bytes_in_use", &sim::bytes_in_use);
  m.def("sim_current_device", [] { return cuda::current_device("current_device"); });
  m.def("sim_set_device", [](int device) { cuda::set_device("set_device", device); });
  m.def("sim_set_seed", &sim::set_seed);
  m.def("sim_seed", &sim::seed);
  m.def("sim_set_check", &sim::set_check);
  m.def("sim_check", &sim::check);
  bind_streams(m);
}

}  // namespace convgrad::python
