// The bindings of one backend: convgrad._cpu or convgrad._cuda. Functions only, no classes: two
// modules must not register one C++ type.
#include "array.h"

namespace convgrad::python {

void bind_conv(py::module_& m);
void bind_linear(py::module_& m);
void bind_local(py::module_& m);
void bind_pool(py::module_& m);
void bind_activation(py::module_& m);
void bind_arithmetic(py::module_& m);
void bind_softmax(py::module_& m);
void bind_loss(py::module_& m);
void bind_loss_pointwise(py::module_& m);
void bind_norm(py::module_& m);
void bind_move(py::module_& m);
void bind_resample(py::module_& m);
void bind_random(py::module_& m);
void bind_optim(py::module_& m);
void bind_machine(py::module_& m);
void bind_simulator(py::module_& m);  // of _cuda_sim alone

}  // namespace convgrad::python

PYBIND11_MODULE(CONVGRAD_BACKEND, m, pybind11::mod_gil_not_used()) {
  using namespace convgrad::python;
  bind_backend(m);
  bind_conv(m);
  bind_linear(m);
  bind_local(m);
  bind_pool(m);
  bind_activation(m);
  bind_arithmetic(m);
  bind_softmax(m);
  bind_loss(m);
  bind_loss_pointwise(m);
  bind_norm(m);
  bind_move(m);
  bind_resample(m);
  bind_random(m);
  bind_optim(m);
  bind_machine(m);
#ifdef CONVGRAD_SIM
  bind_simulator(m);
#endif
}
