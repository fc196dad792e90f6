// convgrad._cuda_sim_selftest and convgrad._cuda_selftest: selftest.h for Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "cuda/sim/selftest/selftest.h"

#if defined(CONVGRAD_SIM)
#include "cuda/sim/runtime.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;
namespace convgrad::cuda::selftest {
namespace {

using Words = py::array_t<uint32_t, py::array::c_style | py::array::forcecast>;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

class DeviceWords {
 public:
  explicit DeviceWords(size_t bytes) { check(cudaMalloc(&data_, bytes)); }
  ~DeviceWords() { cudaFree(data_); }
  DeviceWords(const DeviceWords&) = delete;
  DeviceWords& operator=(const DeviceWords&) = delete;
  uint32_t* data() const { return static_cast<uint32_t*>(data_); }

 private:
  void* data_ = nullptr;
};

// in (n, 32, inputs): n warps, one launch each -> (n, 32, outputs).
Words run_wrapper(const std::string& name, const Words& in) {
  for (const Wrapper& wrapper : wrappers()) {
    if (name != wrapper.name) continue;
    if (in.ndim() != 3 || in.shape(1) != 32 || in.shape(2) != wrapper.inputs)
      throw std::invalid_argument("the input of " + name + " is (n, 32, " +
                                  std::to_string(wrapper.inputs) + ")");
    Words out(std::vector<py::ssize_t>{in.shape(0), 32, wrapper.outputs});
    const size_t in_words = size_t(32 * wrapper.inputs), out_words = size_t(32 * wrapper.outputs);
    const DeviceWords device_in(in_words * 4), device_out(out_words * 4);
    for (py::ssize_t i = 0; i < in.shape(0); ++i) {
      check(cudaMemcpy(device_in.data(), in.data(i, 0, 0), in_words * 4, cudaMemcpyHostToDevice));
      wrapper.run(device_in.data(), device_out.data());
      check(cudaMemcpy(out.mutable_data(i, 0, 0), device_out.data(), out_words * 4,
                       cudaMemcpyDeviceToHost));
    }
    return out;
  }
  throw std::invalid_argument("no wrapper is called " + name);
}

std::vector<std::tuple<std::string, int, int>> wrapper_names() {
  std::vector<std::tuple<std::string, int, int>> names;
  for (const Wrapper& wrapper : wrappers())
    names.emplace_back(wrapper.name, wrapper.inputs, wrapper.outputs);
  return names;
}

std::string device_name() {
#if defined(CONVGRAD_SIM)
  return "simulator";
#else
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0));
  return properties.name;
#endif
}

}  // namespace
}  // namespace convgrad::cuda::selftest

PYBIND11_MODULE(CONVGRAD_SELFTEST, m) {
  using namespace convgrad::cuda;
  m.def("wrappers", selftest::wrapper_names);  // [(name, words in, words out)] per lane
  m.def("run_wrapper", selftest::run_wrapper);
  m.def("device_name", selftest::device_name);
#if defined(CONVGRAD_SIM)
  m.def("case_names", selftest::case_names);
  m.def("run_case", selftest::run_case, py::call_guard<py::gil_scoped_release>());
  m.def("seed", sim::seed);
  m.def("check", sim::check);
  m.def("set_seed", sim::set_seed);
  m.def("set_check", sim::set_check);
#endif
}
