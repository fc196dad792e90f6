#include "array.h"

namespace convgrad::python {

void bind_local(py::module_&) {}

}  // namespace convgrad::python
