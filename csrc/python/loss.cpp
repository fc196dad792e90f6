#include "array.h"

namespace convgrad::python {

void bind_loss(py::module_&) {}

}  // namespace convgrad::python
