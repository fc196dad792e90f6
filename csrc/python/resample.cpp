#include "array.h"

namespace convgrad::python {

void bind_resample(py::module_&) {}

}  // namespace convgrad::python
