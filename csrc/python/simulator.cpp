// What the tests ask of the simulator of CUDA: memory for arrays, and how kernels run. Part of
// convgrad._cuda_sim alone.
#include "array.h"
#include "cuda/device.h"
#include "cuda/sim/runtime.h"

namespace convgrad::python {
namespace {

namespace sim = cuda::sim;

void* at(uintptr_t address) { return reinterpret_cast<void*>(address); }

uintptr_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

// A stream that is never destroyed.
uintptr_t create_stream() {
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  return address(stream);
}

}  // namespace

void bind_simulator(py::module_& m) {
  // The address of a new block between guards, of NaN bytes that count as never written; 0 for
  // none.
  m.def("sim_allocate",
        [](size_t bytes, int device) { return address(sim::allocate(bytes, device)); });
  m.def("sim_release", [](uintptr_t p) { sim::release(at(p)); });
  m.def("sim_mark_written", [](uintptr_t p, size_t bytes) { sim::mark_written(at(p), bytes); });
  m.def("sim_is_initialised",
        [](uintptr_t p, size_t bytes) { return sim::is_initialised(at(p), bytes); });
  m.def("sim_bytes_in_use", &sim::bytes_in_use);
  m.def("sim_current_device", [] { return cuda::current_device("current_device"); });
  m.def("sim_set_device", [](int device) { cuda::set_device("set_device", device); });
  m.def("sim_create_stream", &create_stream);
  m.def("sim_set_seed", &sim::set_seed);
  m.def("sim_seed", &sim::seed);
  m.def("sim_set_check", &sim::set_check);
  m.def("sim_check", &sim::check);
}

}  // namespace convgrad::python
