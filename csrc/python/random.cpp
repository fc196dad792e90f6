#include "array.h"

namespace convgrad::python {

void bind_random(py::module_&) {}

}  // namespace convgrad::python
