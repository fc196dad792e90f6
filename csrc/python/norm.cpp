#include "array.h"

namespace convgrad::python {

void bind_norm(py::module_&) {}

}  // namespace convgrad::python
