#include "array.h"

namespace convgrad::python {
namespace {

// A dense array around one axis, in the order of its memory: (outer, n, inner).
struct Around {
  int64_t outer = 1, n = 1, inner = 1;
};
Around around(const Array& x, Layout layout, int64_t dim) {
  Around s;
  bool before = true;
  const auto step = [&](int axis) {
    if (axis == dim) {
      s.n = x.shape[axis];
      before = false;
    } else {
      (before ? s.outer : s.inner) *= x.shape[axis];
    }
  };
  const bool last = layout == Layout::kChannelsLast && x.rank > 1;
  for (int axis = 0; axis < x.rank; ++axis)
    if (!last || axis != 1) step(axis);
  if (last) step(1);
  return s;
}

// Channels-last, except that the rows of a C-contiguous array stay as they are.
Layout layout_for(const char* op, py::handle x_, int64_t dim) {
  const Array x = array_arg(op, "input", x_);
  const bool rows = dim == x.rank - 1 && x.is_dense(Layout::kC);
  return rows && !x.is_dense(Layout::kChannelsLast) ? Layout::kC : Layout::kChannelsLast;
}

py::object softmax_forward(py::handle x_, int64_t dim, bool log) {
  const char* op = log ? "log_softmax" : "softmax";
  const Layout layout = layout_for(op, x_, dim);
  const Array x = dense_arg(op, "input", x_, layout);
  if (dim < 0 || dim >= (x.rank > 0 ? x.rank : 1))
    value_error(op, "dim must be an axis of the input. Got " + std::to_string(dim) + " for shape " +
                        x.shape_text() + ".");
  const Around s = around(x, layout, dim);
  const Array y = empty(x.dtype, x.rank, x.shape, layout);
  with_float_type(op, x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().softmax_forward(exec, log, s.outer, s.n, s.inner, x.as<T>(), y.as<T>());
    });
  });
  return y.object;
}

py::object softmax_backward(py::handle y_, py::handle dy_, int64_t dim, bool log) {
  const char* op = log ? "log_softmax" : "softmax";
  const Layout layout = layout_for(op, y_, dim);
  const Array y = dense_arg(op, "output", y_, layout);
  const Array dy = dense_arg_like(op, "gradient", dy_, layout, y);
  if (!same_shape(y, dy))
    value_error(
        op, "The gradient must have shape " + y.shape_text() + ". Got " + dy.shape_text() + ".");
  const Around s = around(y, layout, dim);
  const Array dx = empty(y.dtype, y.rank, y.shape, layout);
  with_float_type(op, y.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().softmax_backward(exec, log, s.outer, s.n, s.inner, y.as<T>(), dy.as<T>(),
                                dx.as<T>());
    });
  });
  return dx.object;
}

}  // namespace

void bind_softmax(py::module_& m) {
  def(m, "softmax_forward", &softmax_forward);
  def(m, "softmax_backward", &softmax_backward);
}

}  // namespace convgrad::python
