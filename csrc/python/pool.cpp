#include "array.h"

namespace convgrad::python {
namespace {

std::string op_name(const char* what, bool adaptive, int spatial) {
  return (adaptive ? "adaptive_" : "") + (what + std::to_string(spatial)) + "d";
}

// What the caller asked for: `spec` is (output_size,) of adaptive pooling, with -1 for the input's
// size, else (kernel_size, stride, padding, dilation, ceil_mode) of max pooling or (kernel_size,
// stride, padding, ceil_mode, count_include_pad, divisor_override) of average pooling.
struct Pool {
  std::string name;
  int spatial;
  py::tuple spec;
  bool average;

  Pool(const char* what, int spatial_, const py::tuple& spec_)
      : name(op_name(what, spec_.size() == 1, spatial_)),
        spatial(spatial_),
        spec(spec_),
        average(spec_.size() == 6) {}
  const char* op() const { return name.c_str(); }

  // x_shape: (N, C, *spatial)
  PoolShape shape(const int64_t* x_shape) const {
    if (spec.size() == 1) {
      int64_t out[3];
      int_tuple(op(), "output_size", spec[0], spatial, out);
      return make_adaptive_pool_shape(op(), spatial, x_shape, out);
    }
    PoolArgs a{};
    a.spatial = spatial;
    int_tuple(op(), "kernel_size", spec[0], spatial, a.kernel);
    int_tuple(op(), "stride", spec[1].is_none() ? spec[0] : spec[1], spatial, a.stride);
    int_tuple(op(), "padding", spec[2], spatial, a.pad);
    int_tuple(op(), "dilation", average ? py::object(py::int_(1)) : py::object(spec[3]), spatial,
              a.dilation);
    a.ceil_mode = py::cast<bool>(spec[average ? 3 : 4]);
    PoolShape s = make_pool_shape(op(), x_shape, a);
    if (average) {
      s.count_pad = py::cast<bool>(spec[4]);
      if (!spec[5].is_none()) int_tuple(op(), "divisor_override", spec[5], 1, &s.divisor);
      if (!spec[5].is_none() && s.divisor == 0)
        value_error(op(), "divisor_override must not be 0. Got 0.");
    }
    return s;
  }
};

// (n, c, *size) without the lifted axes.
Array empty_signal(DType dtype, int spatial, const PoolShape& s, const int64_t size[3]) {
  int64_t shape[5] = {s.n, s.c};
  for (int i = 0; i < spatial; ++i) shape[2 + i] = size[3 - spatial + i];
  return empty(dtype, spatial + 2, shape, Layout::kChannelsLast);
}

// The pool's shape for the input's (with its batch axis if it had one); dy must fit it.
PoolShape backward_shape(const Pool& pool, const Array& dy, const py::tuple& x_shape,
                         bool unbatched) {
  int64_t shape[5] = {1};
  int_tuple(pool.op(), "x_shape", x_shape, pool.spatial + 2 - unbatched, shape + unbatched);
  const PoolShape s = pool.shape(shape);
  bool equal = dy.shape[0] == s.n && dy.shape[1] == s.c;
  for (int i = 0; i < pool.spatial; ++i)
    equal = equal && dy.shape[2 + i] == s.out[3 - pool.spatial + i];
  if (!equal)
    value_error(pool.op(),
                "The gradient must have the output's shape. Got " + dy.shape_text() + ".");
  return s;
}

// (y, tap, index): tap is what backward needs, None unless with_tap; index counts in the planes of
// the input, int64, None unless with_index.
py::tuple max_pool_forward(py::handle x_, int spatial, const py::tuple& spec, bool with_tap,
                           bool with_index) {
  const Pool pool("max_pool", spatial, spec);
  bool unbatched;
  const Array x = signal_arg(pool.op(), "input", x_, spatial, &unbatched);
  const PoolShape s = pool.shape(x.shape);
  const Array y = empty_signal(x.dtype, spatial, s, s.out);
  Array tap, index;
  if (with_tap || with_index)
    tap = empty_signal(s.tap_bytes() == 1 ? DType::kUInt8 : DType::kInt32, spatial, s, s.out);
  if (with_index) index = empty_signal(DType::kInt64, spatial, s, s.out);
  with_float_type(pool.op(), x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().max_pool_forward(exec, s, x.as<T>(), y.as<T>(), tap.data);
      if (with_index) ops<T>().max_pool_index(exec, s, tap.data, index.as<int64_t>());
    });
  });
  return py::make_tuple(result(y, unbatched), with_tap ? tap.object : py::none(),
                        with_index ? result(index, unbatched) : py::none());
}

// mask: the output of a max pool over a ReLU, whose backward pass this then does too; or None.
py::object max_pool_backward(py::handle dy_, py::handle tap_, const py::tuple& x_shape, int spatial,
                             const py::tuple& spec, py::handle mask_) {
  const Pool pool("max_pool", spatial, spec);
  bool unbatched;
  const Array dy = signal_arg(pool.op(), "gradient", dy_, spatial, &unbatched);
  const PoolShape s = backward_shape(pool, dy, x_shape, unbatched);
  const Array tap =
      array_arg(pool.op(), "tap", tap_, s.tap_bytes() == 1 ? DType::kUInt8 : DType::kInt32);
  if (tap.size() != s.y_size() || !tap.is_dense(Layout::kChannelsLast))
    value_error(pool.op(), "tap must be the forward pass's. Got shape " + tap.shape_text() + ".");
  Array mask;
  if (!mask_.is_none()) {
    bool mask_unbatched;
    mask = signal_arg(pool.op(), "mask", mask_, spatial, &mask_unbatched);
    if (!same_shape(mask, dy) || mask.dtype != dy.dtype)
      value_error(pool.op(), "mask must have the gradient's shape, " + dy.shape_text() +
                                 ", and dtype. Got " + mask.shape_text() + " " +
                                 name_of(mask.dtype) + ".");
  }
  const Array dx = empty_signal(dy.dtype, spatial, s, s.in);
  with_float_type(pool.op(), dy.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().max_pool_backward(exec, s, dy.as<T>(), tap.data, mask.as<T>(), dx.as<T>());
    });
  });
  return result(dx, unbatched);
}

py::object avg_pool_forward(py::handle x_, int spatial, const py::tuple& spec) {
  const Pool pool("avg_pool", spatial, spec);
  bool unbatched;
  const Array x = signal_arg(pool.op(), "input", x_, spatial, &unbatched);
  const PoolShape s = pool.shape(x.shape);
  const Array y = empty_signal(x.dtype, spatial, s, s.out);
  with_float_type(pool.op(), x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().avg_pool_forward_workspace(s, threads); },
        [&](const Exec& exec) { ops<T>().avg_pool_forward(exec, s, x.as<T>(), y.as<T>()); });
  });
  return result(y, unbatched);
}

py::object avg_pool_backward(py::handle dy_, const py::tuple& x_shape, int spatial,
                             const py::tuple& spec) {
  const Pool pool("avg_pool", spatial, spec);
  bool unbatched;
  const Array dy = signal_arg(pool.op(), "gradient", dy_, spatial, &unbatched);
  const PoolShape s = backward_shape(pool, dy, x_shape, unbatched);
  const Array dx = empty_signal(dy.dtype, spatial, s, s.in);
  with_float_type(pool.op(), dy.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) { ops<T>().avg_pool_backward(exec, s, dy.as<T>(), dx.as<T>()); });
  });
  return result(dx, unbatched);
}

// ---- unpooling ----

// What both directions share: `small` (N, C, *in) and index of its shape, planes of `out` inputs.
struct Unpool {
  int64_t n, c, in, out;
  Array index;

  Unpool(const char* op, const Array& small, py::handle index_, bool unbatched,
         const int64_t* out_size)
      : n(small.shape[0]), c(small.shape[1]), in(1), out(1) {
    for (int i = 2; i < small.rank; ++i) {
      in *= small.shape[i];
      out *= out_size[i - 2];
    }
    index = array_arg(op, "indices", index_, DType::kInt64);
    bool equal = index.rank == small.rank - unbatched;
    for (int i = 0; equal && i < index.rank; ++i)
      equal = index.shape[i] == small.shape[i + unbatched];
    if (!equal)
      value_error(op, "indices must have the input's shape. Got " + index.shape_text() + ".");
    if (unbatched) {  // channels-last with the batch axis
      index = array_arg(op, "indices", index.object[py::none()], DType::kInt64);
    }
    index = dense(op, index, Layout::kChannelsLast);
    int64_t bad = -1;
    run([&](const Exec& exec) {
      bad = ops<float>().find_outside(exec, index.size(), index.as<int64_t>(), 0, out);
    });
    if (bad >= 0)
      value_error(op, "Each index must be from 0 to " + std::to_string(out - 1) + ". Got " +
                          std::to_string(index.as<int64_t>()[bad]) + ".");
  }
};

// y[n, c, index[n, c, i]] = x[n, c, i], zero elsewhere; out_size: *spatial of y.
py::object max_unpool_forward(py::handle x_, py::handle index, int spatial,
                              const py::tuple& out_size) {
  const std::string op = "max_unpool" + std::to_string(spatial) + "d";
  bool unbatched;
  const Array x = signal_arg(op.c_str(), "input", x_, spatial, &unbatched);
  int64_t shape[5] = {x.shape[0], x.shape[1]};
  int_tuple(op.c_str(), "output_size", out_size, spatial, shape + 2);
  for (int i = 0; i < spatial; ++i)
    if (shape[2 + i] < 1)
      value_error(op.c_str(),
                  "output_size must be at least 1. Got " + std::string(py::repr(out_size)) + ".");
  const Array y = empty(x.dtype, spatial + 2, shape, Layout::kChannelsLast);
  const Unpool u(op.c_str(), x, index, unbatched, shape + 2);
  with_float_type(op.c_str(), x.dtype, [&](auto t) {
    using T = decltype(t);
    run(
        [&](int threads) {
          return ops<T>().max_unpool_forward_workspace(u.n, u.out, u.c, threads);
        },
        [&](const Exec& exec) {
          ops<T>().max_unpool_forward(exec, u.n, u.in, u.out, u.c, x.as<T>(), u.index.as<int64_t>(),
                                      y.as<T>());
        });
  });
  return result(y, unbatched);
}

// dx[n, c, i] = dy[n, c, index[n, c, i]]; x has index's shape.
py::object max_unpool_backward(py::handle dy_, py::handle index_, int spatial) {
  const std::string op = "max_unpool" + std::to_string(spatial) + "d";
  bool unbatched;
  const Array dy = signal_arg(op.c_str(), "gradient", dy_, spatial, &unbatched);
  const Array index = array_arg(op.c_str(), "indices", index_, DType::kInt64);
  if (index.rank != spatial + 2 - unbatched)
    value_error(op.c_str(), "indices must have the input's shape. Got " + index.shape_text() + ".");
  int64_t shape[5] = {1};
  for (int i = 0; i < index.rank; ++i) shape[i + unbatched] = index.shape[i];
  const Array dx = empty(dy.dtype, spatial + 2, shape, Layout::kChannelsLast);
  const Unpool u(op.c_str(), dx, index_, unbatched, dy.shape + 2);
  with_float_type(op.c_str(), dy.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().max_unpool_backward(exec, u.n, u.in, u.out, u.c, dy.as<T>(), u.index.as<int64_t>(),
                                   dx.as<T>());
    });
  });
  return result(dx, unbatched);
}

}  // namespace

void bind_pool(py::module_& m) {
  def(m, "max_pool_forward", &max_pool_forward);
  def(m, "max_pool_backward", &max_pool_backward, py::arg("dy"), py::arg("tap"), py::arg("x_shape"),
      py::arg("spatial"), py::arg("spec"), py::arg("mask") = py::none());
  def(m, "avg_pool_forward", &avg_pool_forward);
  def(m, "avg_pool_backward", &avg_pool_backward);
  def(m, "max_unpool_forward", &max_unpool_forward);
  def(m, "max_unpool_backward", &max_unpool_backward);
}

}  // namespace convgrad::python
