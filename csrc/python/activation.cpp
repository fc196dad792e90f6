#include "array.h"

namespace convgrad::python {
namespace {

Unary unary_kind(const std::string& name) {
#define CONVGRAD_MATCH(functor, text) \
  if (name == text) return Unary::k##functor;
  CONVGRAD_UNARIES(CONVGRAD_MATCH)
#undef CONVGRAD_MATCH
  value_error("unary", "There is no elementwise function of this name. Got '" + name + "'.");
}

void check_equal_shapes(const char* op, const Array& a, const Array& dy) {
  if (!same_shape(a, dy))
    value_error(
        op, "The gradient must have shape " + a.shape_text() + ". Got " + dy.shape_text() + ".");
}

// y = f(x); a and b are the function's parameters, see ops.h.
py::object unary_forward(const std::string& name, py::handle x_, double a, double b) {
  const Unary kind = unary_kind(name);
  const char* op = name.c_str();
  const Array x = dense_arg(op, "input", x_, Layout::kChannelsLast);
  const Array y = empty(x.dtype, x.rank, x.shape, Layout::kChannelsLast);
  with_float_type(op, x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().unary_forward(exec, kind, {a, b}, x.size(), x.as<T>(), y.as<T>());
    });
  });
  return y.object;
}

// out (may be dy): the array to write dx into, else a new one.
py::object unary_backward(const std::string& name, py::handle saved_, py::handle dy_, double a,
                          double b, py::handle out) {
  const Unary kind = unary_kind(name);
  const char* op = name.c_str();
  const Array saved = dense_arg(op, "saved", saved_, Layout::kChannelsLast);
  const Array dy = dense_arg_like(op, "gradient", dy_, Layout::kChannelsLast, saved);
  check_equal_shapes(op, saved, dy);
  const Array dx = out_arg(op, out, dy, Layout::kChannelsLast);
  with_float_type(op, dy.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().unary_backward(exec, kind, {a, b}, dy.size(), saved.as<T>(), dy.as<T>(), dx.as<T>());
    });
  });
  return dx.object;
}

// How prelu reads its arrays: (rows, c), c = 1 where one slope serves all.
struct Channels {
  int64_t rows, c;
};
Channels prelu_shape(const Array& x, const Array& a) {
  const int64_t channels = x.rank > 1 ? x.shape[1] : 1;
  if (a.rank > 1 || a.size() < 1 || (a.size() != 1 && a.size() != channels))
    value_error("prelu", "weight must have one value, or one per channel (axis 1), " +
                             std::to_string(channels) + ". Got weight " + a.shape_text() +
                             " for input " + x.shape_text() + ".");
  return a.size() == 1 ? Channels{x.size(), 1} : Channels{x.size() / a.size(), a.size()};
}

py::object prelu_forward(py::handle x_, py::handle a_) {
  const Array x = dense_arg("prelu", "input", x_, Layout::kChannelsLast);
  const Array a = dense_arg_like("prelu", "weight", a_, Layout::kC, x);
  const Channels s = prelu_shape(x, a);
  const Array y = empty(x.dtype, x.rank, x.shape, Layout::kChannelsLast);
  with_float_type("prelu", x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().prelu_forward(exec, s.rows, s.c, x.as<T>(), a.as<T>(), y.as<T>());
    });
  });
  return y.object;
}

// (dx, da)
py::tuple prelu_backward(py::handle x_, py::handle a_, py::handle dy_) {
  const Array x = dense_arg("prelu", "input", x_, Layout::kChannelsLast);
  const Array a = dense_arg_like("prelu", "weight", a_, Layout::kC, x);
  const Array dy = dense_arg_like("prelu", "gradient", dy_, Layout::kChannelsLast, x);
  check_equal_shapes("prelu", x, dy);
  const Channels s = prelu_shape(x, a);
  const Array dx = empty(x.dtype, x.rank, x.shape, Layout::kChannelsLast);
  const Array da = empty(a.dtype, a.rank, a.shape, Layout::kC);
  with_float_type("prelu", x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().prelu_backward_workspace(s.rows, s.c, threads); },
        [&](const Exec& exec) {
          ops<T>().prelu_backward(exec, s.rows, s.c, x.as<T>(), a.as<T>(), dy.as<T>(), dx.as<T>(),
                                  da.as<T>());
        });
  });
  return py::make_tuple(dx.object, da.object);
}

// x (N, C, ...) -> y (N, C / k, ...)
py::object maxout_forward(py::handle x_, int64_t k) {
  const Array x = dense_arg("maxout", "input", x_, Layout::kChannelsLast);
  if (x.rank < 2 || k < 1 || x.shape[1] % k != 0)
    value_error("maxout", "k must be at least 1 and divide the input's channels (axis 1). Got k " +
                              std::to_string(k) + " and input " + x.shape_text() + ".");
  int64_t shape[kMaxRank];
  for (int i = 0; i < x.rank; ++i) shape[i] = i == 1 ? x.shape[1] / k : x.shape[i];
  const Array y = empty(x.dtype, x.rank, shape, Layout::kChannelsLast);
  with_float_type("maxout", x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().maxout_forward(exec, y.size(), k, x.as<T>(), y.as<T>());
    });
  });
  return y.object;
}

py::object maxout_backward(py::handle x_, py::handle dy_, int64_t k) {
  const Array x = dense_arg("maxout", "input", x_, Layout::kChannelsLast);
  const Array dy = dense_arg_like("maxout", "gradient", dy_, Layout::kChannelsLast, x);
  if (k < 1 || dy.size() * k != x.size())
    value_error("maxout",
                "The gradient must have the output's shape. Got " + dy.shape_text() + ".");
  const Array dx = empty(x.dtype, x.rank, x.shape, Layout::kChannelsLast);
  with_float_type("maxout", x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().maxout_backward(exec, dy.size(), k, x.as<T>(), dy.as<T>(), dx.as<T>());
    });
  });
  return dx.object;
}

}  // namespace

void bind_activation(py::module_& m) {
  def(m, "unary_forward", &unary_forward, py::arg("name"), py::arg("x"), py::arg("a") = 0.0,
      py::arg("b") = 0.0);
  def(m, "unary_backward", &unary_backward, py::arg("name"), py::arg("saved"), py::arg("dy"),
      py::arg("a") = 0.0, py::arg("b") = 0.0, py::arg("out") = py::none());
  def(m, "prelu_forward", &prelu_forward);
  def(m, "prelu_backward", &prelu_backward);
  def(m, "maxout_forward", &maxout_forward);
  def(m, "maxout_backward", &maxout_backward);
}

}  // namespace convgrad::python
