// convgrad._tape: the part of the tape that runs once per operation of every step. It knows nothing
// of any backend; arrays are Python objects to it.
#include "objects.h"

namespace convgrad::tape {
namespace {

// Tells the tape of the Python side; see Python in objects.h.
void connect(py::type tensor, py::type deferred, py::type pending, py::function refused,
             py::function total, py::function hooked, py::function collect) {
  const auto type = [](py::type& t) { return reinterpret_cast<PyTypeObject*>(t.release().ptr()); };
  python = {type(tensor),           type(deferred),
            type(pending),          refused.release().ptr(),
            total.release().ptr(),  hooked.release().ptr(),
            collect.release().ptr()};
}

// Sets whether this thread records; returns what it was.
bool set_recording(bool value) { return std::exchange(recording, value); }

}  // namespace
}  // namespace convgrad::tape

PYBIND11_MODULE(_tape, m) {
  using namespace convgrad::tape;
  add_types(m);
  m.def("connect", &connect, py::kw_only(), py::arg("tensor"), py::arg("deferred"),
        py::arg("pending"), py::arg("refused"), py::arg("total"), py::arg("hooked"),
        py::arg("collect"));
  m.def("is_recording", [] { return recording; });
  m.def("set_recording", &set_recording);
  m.def("walk", &walk);
}
