#include "array.h"

namespace convgrad::python {

void bind_optim(py::module_&) {}

}  // namespace convgrad::python
