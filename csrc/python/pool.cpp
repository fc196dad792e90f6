#include "array.h"

namespace convgrad::python {

void bind_pool(py::module_&) {}

}  // namespace convgrad::python
