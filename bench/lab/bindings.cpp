// convgrad._cuda_lab, and convgrad._cuda_sim_lab on the simulator: lab.h for Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>

#include "lab.h"
#if defined(CONVGRAD_SIM)
#include "cuda/sim/runtime.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;
namespace convgrad::cuda::lab {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// A block of the GPU's memory, freed with its last reference.
py::capsule allocate(size_t floats) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, floats * sizeof(float)));
  return py::capsule(memory, [](void* p) { cudaFree(p); });
}
py::capsule upload(const Floats& host) {
  const py::capsule memory = allocate(size_t(host.size()));
  check(
      cudaMemcpy(memory.get_pointer(), host.data(), size_t(host.nbytes()), cudaMemcpyHostToDevice));
  return memory;
}
Floats download(const py::capsule& memory, const std::vector<py::ssize_t>& shape) {
  Floats host(shape);
  check(cudaMemcpy(host.mutable_data(), memory.get_pointer(), size_t(host.nbytes()),
                   cudaMemcpyDeviceToHost));
  return host;
}

std::vector<std::pair<std::string, int>> version_names() {
  std::vector<std::pair<std::string, int>> names;
  for (const Version& version : versions()) names.emplace_back(version.name, version.multiple);
  return names;
}

void run_named(const std::string& name, const std::array<int, 6>& shape, const py::capsule& x,
               const py::capsule& weight, const py::capsule& y) {
  const auto& [n, h, w, c, k, r] = shape;
  const int least = std::min({n, h, w, c, k, r});
  const double largest = double(n) * h * w * std::max(c, k), weights = double(r) * r * c * k;
  if (least < 1 || r % 2 == 0 || largest >= 2147483648.0 || weights >= 2147483648.0)
    throw std::invalid_argument(
        "[lab] n, h, w, c, k, r must be positive, r odd, and every array below 2^31 elements. "
        "Got " +
        std::string(py::str(py::tuple(py::cast(shape)))) + ".");
  for (const Version& version : versions()) {
    if (name != version.name) continue;
    if (c % version.multiple || k % version.multiple)
      throw std::invalid_argument("[lab] " + name + " takes channels in multiples of " +
                                  std::to_string(version.multiple) + ". Got " + std::to_string(c) +
                                  " and " + std::to_string(k) + ".");
    return run(version, {n, h, w, c, k, r}, x.get_pointer<float>(), weight.get_pointer<float>(),
               y.get_pointer<float>());
  }
  throw std::invalid_argument("[lab] There is no version called '" + name + "'.");
}

}  // namespace
}  // namespace convgrad::cuda::lab

PYBIND11_MODULE(CONVGRAD_LAB, m) {
  using namespace convgrad::cuda;
  m.def("versions", lab::version_names);  // [(name, what channels are multiples of)]
  m.def("allocate", lab::allocate);
  m.def("upload", lab::upload);
  m.def("download", lab::download);
  m.def("run", lab::run_named);  // does not wait for the GPU
}
