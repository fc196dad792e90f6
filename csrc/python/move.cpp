#include "array.h"

namespace convgrad::python {
namespace {

// The array itself if it is dense in channels-last order, else a converted copy.
py::object channels_last(py::handle x) {
  return dense_arg("channels_last", "array", x, Layout::kChannelsLast).object;
}
py::object contiguous(py::handle x) { return dense_arg("contiguous", "array", x, Layout::kC).object; }

bool is_channels_last(py::handle x) {
  return array_arg("is_channels_last", "array", x).is_dense(Layout::kChannelsLast);
}

// An uninitialised channels-last float array of `like`'s shape and dtype.
py::object empty_like(py::handle like) {
  const Array a = array_arg("empty_like", "array", like);
  return empty(a.dtype, a.rank, a.shape, Layout::kChannelsLast).object;
}

// a + b of equal shapes, channels-last.
py::object add(py::handle a_, py::handle b_) {
  const Array a = dense_arg("add", "a", a_, Layout::kChannelsLast);
  const Array b = dense_arg_like("add", "b", b_, Layout::kChannelsLast, a);
  bool equal = a.rank == b.rank;
  for (int i = 0; equal && i < a.rank; ++i) equal = a.shape[i] == b.shape[i];
  if (!equal)
    value_error("add", "a and b must have one shape. Got " + a.shape_text() + " and " +
                           b.shape_text() + ".");
  const Array out = empty(a.dtype, a.rank, a.shape, Layout::kChannelsLast);
  with_float_type("add", a.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) { ops<T>().add(exec, a.size(), a.as<T>(), b.as<T>(), out.as<T>()); });
  });
  return out.object;
}

}  // namespace

void bind_move(py::module_& m) {
  m.def("channels_last", &channels_last);
  m.def("contiguous", &contiguous);
  m.def("is_channels_last", &is_channels_last);
  m.def("empty_like", &empty_like);
  m.def("add", &add);
}

}  // namespace convgrad::python
