#include "array.h"

namespace convgrad::python {

void bind_activation(py::module_&) {}

}  // namespace convgrad::python
