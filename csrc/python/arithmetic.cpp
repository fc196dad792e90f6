#include "array.h"

namespace convgrad::python {
namespace {

// A float array, or a number.
struct Argument {
  Array array;
  double number = 0;
  bool is_array = false;
};

// Whether `object` is an operand that the kernel takes.
bool operand_arg(const char* op, const char* name, py::handle object, Argument* out) {
  if (PyFloat_Check(object.ptr()) || PyLong_Check(object.ptr())) {
    out->number = PyFloat_AsDouble(object.ptr());
    if (out->number == -1 && PyErr_Occurred()) throw py::error_already_set();
    return true;
  }
  out->array = array_arg(op, name, object);
  out->is_array = true;
  return is_float(out->array.dtype);
}

bool is_dense(const Argument& x, Layout layout) { return !x.is_array || x.array.is_dense(layout); }

// a op b, elementwise, for float arrays of one shape and dtype or such an array and a number; None
// for any other operands. Channels-last, unless the arrays are all in C order alone. out (may be a
// or b): the array to write into, else a new one.
template <Binary kKind>
py::object binary(const char* op, py::handle a_, py::handle b_, py::handle out_) {
  Argument a, b;
  if (!operand_arg(op, "a", a_, &a) || !operand_arg(op, "b", b_, &b)) return py::none();
  if (!a.is_array && !b.is_array) return py::none();
  const Array& like = a.is_array ? a.array : b.array;
  if (a.is_array && b.is_array && !(a.array.dtype == b.array.dtype && same_shape(a.array, b.array)))
    return py::none();
  const bool in_c_order = is_dense(a, Layout::kC) && is_dense(b, Layout::kC);
  const Layout layout =
      in_c_order && !like.is_dense(Layout::kChannelsLast) ? Layout::kC : Layout::kChannelsLast;
  if (a.is_array) a.array = dense(op, a.array, layout);
  if (b.is_array) b.array = dense(op, b.array, layout);
  const Array out = out_arg(op, out_, like, layout);
  with_float_type(op, like.dtype, [&](auto t) {
    using T = decltype(t);
    const auto operand = [](const Argument& x) -> Operand<T> {
      if (x.is_array) return {x.array.as<T>(), 0};
      return {nullptr, static_cast<Stat<T>>(x.number)};
    };
    run([&](const Exec& exec) {
      ops<T>().binary(exec, kKind, like.size(), operand(a), operand(b), out.as<T>());
    });
  });
  return out.object;
}

template <Binary kKind>
void bind_binary(py::module_& m, const char* name) {
  def(
      m, name,
      [name](py::handle a, py::handle b, py::handle out) { return binary<kKind>(name, a, b, out); },
      py::arg("a"), py::arg("b"), py::arg("out") = py::none());
}

}  // namespace

void bind_arithmetic(py::module_& m) {
  bind_binary<Binary::kAdd>(m, "add");
  bind_binary<Binary::kSub>(m, "sub");
  bind_binary<Binary::kMul>(m, "mul");
  bind_binary<Binary::kDiv>(m, "div");
  bind_binary<Binary::kMaximum>(m, "maximum");
  bind_binary<Binary::kMinimum>(m, "minimum");
}

}  // namespace convgrad::python
