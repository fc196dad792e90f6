#include "array.h"

namespace convgrad::python {
namespace {

const char* op_name(int spatial) {
  static const char* const names[4] = {"locally_connected", "locally_connected1d",
                                       "locally_connected2d", "locally_connected3d"};
  return names[spatial];
}

// Of the weight (K, C, *out, *kernel).
int spatial_of(int rank) {
  if (rank != 4 && rank != 6 && rank != 8)
    value_error(op_name(0), "The weight must have 4, 6 or 8 axes, (K, C, *out, *kernel). Got " +
                                std::to_string(rank) + ".");
  return (rank - 2) / 2;
}

std::string shape_text(const int64_t* shape, int rank) {
  Array a;
  a.rank = rank;
  for (int i = 0; i < rank; ++i) a.shape[i] = shape[i];
  return a.shape_text();
}

// The convolution of the same geometry; its w is one position's.
ConvShape local_shape(const char* op, int spatial, const int64_t* x_shape, const int64_t* w_shape,
                      py::handle stride, py::handle padding, py::handle dilation) {
  ConvArgs a{};
  a.spatial = spatial;
  a.groups = 1;
  int_tuple(op, "stride", stride, spatial, a.stride);
  int_tuple(op, "padding", padding, spatial, a.pad_lo);
  int_tuple(op, "dilation", dilation, spatial, a.dilation);
  int64_t filter[5] = {w_shape[0], w_shape[1]};
  for (int i = 0; i < spatial; ++i) {
    a.pad_hi[i] = a.pad_lo[i];
    filter[2 + i] = w_shape[2 + spatial + i];
  }
  const ConvShape s = make_conv_shape(op, x_shape, filter, -1, a);
  for (int i = 0; i < spatial; ++i)
    if (w_shape[2 + i] != s.out[3 - spatial + i])
      value_error(op, "The weight's positions must be the output's, " +
                          shape_text(s.out + 3 - spatial, spatial) + ". Got weight " +
                          shape_text(w_shape, 2 + 2 * spatial) + " for input " +
                          shape_text(x_shape, spatial + 2) + ".");
  return s;
}

Array empty_signal(DType dtype, int spatial, int64_t n, int64_t c, const int64_t size[3]) {
  int64_t shape[5] = {n, c};
  for (int i = 0; i < spatial; ++i) shape[2 + i] = size[3 - spatial + i];
  return empty(dtype, spatial + 2, shape, Layout::kChannelsLast);
}

void check_gradient(const char* op, const Array& dy, const ConvShape& s, int spatial) {
  bool equal = dy.shape[0] == s.n && dy.shape[1] == s.out_c;
  for (int i = 0; i < spatial; ++i) equal = equal && dy.shape[2 + i] == s.out[3 - spatial + i];
  if (!equal)
    value_error(op, "The gradient must have the output's shape. Got " + dy.shape_text() + ".");
}

py::object local_forward(py::handle x_, py::handle w_, py::handle b_, py::handle stride,
                         py::handle padding, py::handle dilation) {
  const Array w = dense_arg(op_name(0), "weight", w_, Layout::kChannelsLast);
  const int spatial = spatial_of(w.rank);
  const char* op = op_name(spatial);
  bool unbatched;
  const Array x = signal_arg(op, "input", x_, spatial, &unbatched);
  if (x.dtype != w.dtype)
    type_error(op, std::string("input and weight must have one dtype. Got ") + name_of(x.dtype) +
                       " and " + name_of(w.dtype) + ".");
  const Array b = optional_arg_like(op, "bias", b_, Layout::kC, x);
  const ConvShape s = local_shape(op, spatial, x.shape, w.shape, stride, padding, dilation);
  bool fits = b.rank == spatial + 1 && b.shape[0] == s.out_c;
  for (int i = 0; fits && i < spatial; ++i) fits = b.shape[1 + i] == w.shape[2 + i];
  if (b && !fits)
    value_error(
        op, "bias must be (K, *out) of weight " + w.shape_text() + ". Got " + b.shape_text() + ".");
  const Array y = empty_signal(x.dtype, spatial, s.n, s.out_c, s.out);
  with_float_type(op, x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().local_forward_workspace(s, threads); },
        [&](const Exec& exec) {
          ops<T>().local_forward(exec, s, x.as<T>(), w.as<T>(), b.as<T>(), y.as<T>());
        });
  });
  return result(y, unbatched);
}

py::object local_backward_input(py::handle dy_, py::handle w_, const py::tuple& x_shape,
                                py::handle stride, py::handle padding, py::handle dilation) {
  const Array w = dense_arg(op_name(0), "weight", w_, Layout::kChannelsLast);
  const int spatial = spatial_of(w.rank);
  const char* op = op_name(spatial);
  bool unbatched;
  const Array dy = signal_arg(op, "gradient", dy_, spatial, &unbatched);
  int64_t shape[5] = {1};
  int_tuple(op, "x_shape", x_shape, spatial + 2 - unbatched, shape + unbatched);
  const ConvShape s = local_shape(op, spatial, shape, w.shape, stride, padding, dilation);
  check_gradient(op, dy, s, spatial);
  const Array dx = empty_signal(dy.dtype, spatial, s.n, s.in_c, s.in);
  with_float_type(op, dy.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().local_backward_input_workspace(s, threads); },
        [&](const Exec& exec) {
          ops<T>().local_backward_input(exec, s, dy.as<T>(), w.as<T>(), dx.as<T>());
        });
  });
  return result(dx, unbatched);
}

// (dw, db) of local_forward; db is None unless with_bias.
py::tuple local_backward_weight(py::handle dy_, py::handle x_, const py::tuple& w_shape,
                                py::handle stride, py::handle padding, py::handle dilation,
                                bool with_bias) {
  const int rank = static_cast<int>(w_shape.size()), spatial = spatial_of(rank);
  const char* op = op_name(spatial);
  bool unbatched;
  const Array x = signal_arg(op, "input", x_, spatial, &unbatched);
  const Array dy = signal_arg(op, "gradient", dy_, spatial, &unbatched);
  int64_t shape[kMaxRank], bias_shape[4];
  int_tuple(op, "w_shape", w_shape, rank, shape);
  const ConvShape s = local_shape(op, spatial, x.shape, shape, stride, padding, dilation);
  check_gradient(op, dy, s, spatial);
  bias_shape[0] = shape[0];
  for (int i = 0; i < spatial; ++i) bias_shape[1 + i] = shape[2 + i];
  const Array dw = empty(x.dtype, rank, shape, Layout::kChannelsLast);
  const Array db = with_bias ? empty(x.dtype, spatial + 1, bias_shape, Layout::kC) : Array{};
  with_float_type(op, x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().local_backward_weight_workspace(s, threads); },
        [&](const Exec& exec) {
          ops<T>().local_backward_weight(exec, s, dy.as<T>(), x.as<T>(), dw.as<T>(), db.as<T>());
        });
  });
  return py::make_tuple(result(dw), with_bias ? result(db) : py::none());
}

}  // namespace

void bind_local(py::module_& m) {
  def(m, "local_forward", &local_forward);
  def(m, "local_backward_input", &local_backward_input);
  def(m, "local_backward_weight", &local_backward_weight);
}

}  // namespace convgrad::python
