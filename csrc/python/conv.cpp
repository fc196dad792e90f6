#include <atomic>
#include <iterator>

#include "array.h"

namespace convgrad::python {
namespace {

// ---- the algorithm ----

constexpr const char* kAlgorithms[] = {"auto",      "generic",  "tile",    "slide",
                                       "depthwise", "winograd", "product", "fold"};
std::atomic<ConvAlgorithm> forced{ConvAlgorithm::kAuto};  // for tests and measurements
std::atomic<bool> exact{false};

void force_conv_algorithm(const std::string& name) {
  for (int i = 0; i < static_cast<int>(std::size(kAlgorithms)); ++i) {
    if (name != kAlgorithms[i]) continue;
    forced = static_cast<ConvAlgorithm>(i);
    return;
  }
  value_error("force_conv_algorithm",
              "The name must be auto, generic, tile, slide, depthwise, winograd, product or fold. "
              "Got '" +
                  name + "'.");
}

// Whether convolutions keep to the algorithms with the error of a plain sum.
void set_exact_algorithms(bool value) { exact = value; }
bool exact_algorithms() { return exact; }

// ---- arguments ----

// "conv2d": the op as the caller named it, for errors.
const char* op_name(bool transposed, int spatial) {
  static const char* const names[2][4] = {
      {"conv", "conv1d", "conv2d", "conv3d"},
      {"conv_transpose", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}};
  return names[transposed][spatial >= 1 && spatial <= 3 ? spatial : 0];
}

// padding: an int, a tuple of ints, a tuple of (low, high) pairs, 'same' or 'valid'.
void parse_padding(const char* op, py::handle padding, ConvArgs& a) {
  if (py::isinstance<py::str>(padding)) {
    const std::string word = py::cast<std::string>(padding);
    if (word != "same" && word != "valid")
      value_error(op, "padding must be ints, 'same' or 'valid'. Got '" + word + "'.");
    a.same = word == "same";
    for (int i = 0; i < 3; ++i) a.pad_lo[i] = a.pad_hi[i] = 0;
    return;
  }
  a.same = false;
  const bool pairs = PyTuple_Check(padding.ptr()) && PyTuple_Size(padding.ptr()) == a.spatial &&
                     PyTuple_Check(PyTuple_GetItem(padding.ptr(), 0));
  if (!pairs) {
    int_tuple(op, "padding", padding, a.spatial, a.pad_lo);
    for (int i = 0; i < a.spatial; ++i) a.pad_hi[i] = a.pad_lo[i];
    return;
  }
  for (int i = 0; i < a.spatial; ++i) {
    int64_t pair[2];
    int_tuple(op, "padding", PyTuple_GetItem(padding.ptr(), i), 2, pair);
    a.pad_lo[i] = pair[0];
    a.pad_hi[i] = pair[1];
  }
}

ConvArgs conv_args(const char* op, int spatial, py::handle stride, py::handle padding,
                   py::handle dilation, int64_t groups) {
  ConvArgs a{};
  a.spatial = spatial;
  a.groups = groups;
  a.algorithm = forced;
  a.exact = exact;
  int_tuple(op, "stride", stride, spatial, a.stride);
  int_tuple(op, "dilation", dilation, spatial, a.dilation);
  parse_padding(op, padding, a);
  return a;
}

int spatial_of(bool transposed, const Array& w) {
  if (w.rank < 3 || w.rank > 5)
    value_error(op_name(transposed, 0),
                "The weight must have 3 to 5 axes, (K, C / groups, ...). Got shape " +
                    w.shape_text() + ".");
  return w.rank - 2;
}

int64_t bias_size(const char* op, const Array& b) {
  if (!b) return -1;
  if (b.rank != 1) value_error(op, "bias must have 1 axis. Got shape " + b.shape_text() + ".");
  return b.shape[0];
}

// (n, c, *size) without the lifted axes.
Array empty_signal(DType dtype, int spatial, int64_t n, int64_t c, const int64_t size[3]) {
  int64_t shape[5] = {n, c};
  for (int i = 0; i < spatial; ++i) shape[2 + i] = size[3 - spatial + i];
  return empty(dtype, spatial + 2, shape, Layout::kChannelsLast);
}

void check_one_dtype(const char* op, const char* names, const Array& a, const Array& b) {
  if (a.dtype != b.dtype)
    type_error(op, std::string(names) + " must have one dtype. Got " + name_of(a.dtype) + " and " +
                       name_of(b.dtype) + ".");
}

void check_gradient(const char* op, const Array& dy, int64_t n, int64_t c, const int64_t size[3],
                    int spatial) {
  bool equal = dy.shape[0] == n && dy.shape[1] == c;
  for (int i = 0; i < spatial; ++i) equal = equal && dy.shape[2 + i] == size[3 - spatial + i];
  if (!equal)
    value_error(op, "The gradient must have the output's shape. Got " + dy.shape_text() + ".");
}

// An Epilogue of arrays that may be missing.
struct Result {
  Array bias;
  bool relu = false;
  Array mask;

  template <class T>
  Epilogue<T> epilogue() const {
    return {bias.as<T>(), relu, mask.as<T>()};
  }
};

// The mask of a gradient dx: an array of dx's shape, or none.
Array mask_arg(const char* op, py::handle mask_, const Array& dx, bool unbatched) {
  if (mask_.is_none()) return {};
  const int spatial = dx.rank - 2;
  bool mask_unbatched;
  const Array mask = signal_arg(op, "mask", mask_, spatial, &mask_unbatched);
  check_one_dtype(op, "gradient and mask", dx, mask);
  bool equal = unbatched == mask_unbatched;
  for (int i = 0; i < dx.rank; ++i) equal = equal && mask.shape[i] == dx.shape[i];
  if (!equal)
    value_error(op, "The mask must have the input's shape. Got " + mask.shape_text() + " for " +
                        dx.shape_text() + ".");
  return mask;
}

template <class T>
void forward(const ConvShape& s, const Array& x, const Array& w, const Result& to, const Array& y) {
  run([&](int threads) { return ops<T>().conv_forward_workspace(s, threads); },
      [&](const Exec& exec) {
        ops<T>().conv_forward(exec, s, x.as<T>(), w.as<T>(), to.epilogue<T>(), y.as<T>());
      });
}
template <class T>
void backward_input(const ConvShape& s, const Array& dy, const Array& w, const Result& to,
                    const Array& dx) {
  run([&](int threads) { return ops<T>().conv_backward_input_workspace(s, threads); },
      [&](const Exec& exec) {
        ops<T>().conv_backward_input(exec, s, dy.as<T>(), w.as<T>(), to.epilogue<T>(), dx.as<T>());
      });
}
template <class T>
void backward_weight(const ConvShape& s, const Array& dy, const Array& x, const Array& dw,
                     const Array& db) {
  run([&](int threads) { return ops<T>().conv_backward_weight_workspace(s, threads); },
      [&](const Exec& exec) {
        ops<T>().conv_backward_weight(exec, s, dy.as<T>(), x.as<T>(), dw.as<T>(), db.as<T>());
      });
}

py::object conv_forward(py::handle x_, py::handle w_, py::handle b_, py::handle stride,
                        py::handle padding, py::handle dilation, int64_t groups, bool relu) {
  const Array w = dense_arg("conv", "weight", w_, Layout::kChannelsLast);
  const int spatial = spatial_of(false, w);
  const char* op = op_name(false, spatial);
  bool unbatched;
  const Array x = signal_arg(op, "input", x_, spatial, &unbatched);
  check_one_dtype(op, "input and weight", x, w);
  const Array b = optional_arg_like(op, "bias", b_, Layout::kC, x);
  const ConvShape s = make_conv_shape(op, x.shape, w.shape, bias_size(op, b),
                                      conv_args(op, spatial, stride, padding, dilation, groups));
  const Array y = empty_signal(x.dtype, spatial, s.n, s.out_c, s.out);
  with_float_type(op, x.dtype, [&](auto t) { forward<decltype(t)>(s, x, w, {b, relu, {}}, y); });
  return result(y, unbatched);
}

// dx of conv_forward, 0 where `mask` (like x, or None) is not positive. x_shape is the input's,
// with its batch axis if it had one.
py::object conv_backward_input(py::handle dy_, py::handle w_, const py::tuple& x_shape,
                               py::handle stride, py::handle padding, py::handle dilation,
                               int64_t groups, py::handle mask_) {
  const Array w = dense_arg("conv", "weight", w_, Layout::kChannelsLast);
  const int spatial = spatial_of(false, w);
  const char* op = op_name(false, spatial);
  bool unbatched;
  const Array dy = signal_arg(op, "gradient", dy_, spatial, &unbatched);
  check_one_dtype(op, "gradient and weight", dy, w);
  int64_t shape[5] = {1};
  int_tuple(op, "x_shape", x_shape, spatial + 2 - unbatched, shape + unbatched);
  const ConvShape s = make_conv_shape(op, shape, w.shape, -1,
                                      conv_args(op, spatial, stride, padding, dilation, groups));
  check_gradient(op, dy, s.n, s.out_c, s.out, spatial);
  const Array dx = empty_signal(dy.dtype, spatial, s.n, s.in_c, s.in);
  const Array mask = mask_arg(op, mask_, dx, unbatched);
  with_float_type(op, dy.dtype,
                  [&](auto t) { backward_input<decltype(t)>(s, dy, w, {{}, false, mask}, dx); });
  return result(dx, unbatched);
}

// (dw, db) of conv_forward; db is None unless with_bias.
py::tuple conv_backward_weight(py::handle dy_, py::handle x_, const py::tuple& w_shape,
                               py::handle stride, py::handle padding, py::handle dilation,
                               int64_t groups, bool with_bias) {
  const int spatial = static_cast<int>(w_shape.size()) - 2;
  const char* op = op_name(false, spatial);
  bool unbatched;
  const Array x = signal_arg(op, "input", x_, spatial, &unbatched);
  const Array dy = signal_arg(op, "gradient", dy_, spatial, &unbatched);
  check_one_dtype(op, "gradient and input", dy, x);
  int64_t shape[5];
  int_tuple(op, "w_shape", w_shape, spatial + 2, shape);
  const ConvShape s = make_conv_shape(op, x.shape, shape, -1,
                                      conv_args(op, spatial, stride, padding, dilation, groups));
  check_gradient(op, dy, s.n, s.out_c, s.out, spatial);
  const Array dw = empty(x.dtype, spatial + 2, shape, Layout::kChannelsLast);
  const Array db = with_bias ? empty(x.dtype, 1, &s.out_c, Layout::kC) : Array{};
  with_float_type(op, x.dtype, [&](auto t) { backward_weight<decltype(t)>(s, dy, x, dw, db); });
  return py::make_tuple(result(dw), with_bias ? result(db) : py::none());
}

py::object conv_transpose_forward(py::handle x_, py::handle w_, py::handle b_, py::handle stride,
                                  py::handle padding, py::handle output_padding, int64_t groups,
                                  py::handle dilation, bool relu) {
  const Array w = dense_arg("conv_transpose", "weight", w_, Layout::kChannelsLast);
  const int spatial = spatial_of(true, w);
  const char* op = op_name(true, spatial);
  bool unbatched;
  const Array x = signal_arg(op, "input", x_, spatial, &unbatched);
  check_one_dtype(op, "input and weight", x, w);
  const Array b = optional_arg_like(op, "bias", b_, Layout::kC, x);
  ConvArgs a = conv_args(op, spatial, stride, padding, dilation, groups);
  if (py::isinstance<py::str>(padding))
    type_error(op, "padding must be an int or a tuple of ints. Got " +
                       std::string(py::repr(padding)) + ".");
  int_tuple(op, "output_padding", output_padding, spatial, a.output_pad);
  const ConvShape s = make_conv_transpose_shape(op, x.shape, w.shape, bias_size(op, b), a);
  const Array y = empty_signal(x.dtype, spatial, s.n, s.in_c, s.in);
  with_float_type(op, x.dtype,
                  [&](auto t) { backward_input<decltype(t)>(s, x, w, {b, relu, {}}, y); });
  return result(y, unbatched);
}

// The shape of a transposed convolution whose output's gradient and whose input's shape are known.
// output_padding may leave room in the output for one more window than the input has pixels.
ConvShape transposed_shape(const char* op, const Array& dy, const int64_t* w_shape,
                           const int64_t* x_shape, int spatial, py::handle stride,
                           py::handle padding, py::handle dilation, int64_t groups) {
  ConvShape s = make_conv_shape(op, dy.shape, w_shape, -1,
                                conv_args(op, spatial, stride, padding, dilation, groups));
  bool fits = x_shape[0] == s.n && x_shape[1] == s.out_c;
  for (int i = 0; i < spatial; ++i) {
    int64_t& out = s.out[3 - spatial + i];
    fits = fits && x_shape[2 + i] <= out;
    out = x_shape[2 + i];
  }
  if (!fits)
    value_error(op, "The gradient must have the output's shape. Got " + dy.shape_text() + ".");
  return s;
}

// dx of conv_transpose_forward, masked as that of conv_forward. output_padding adds rows that no
// window of dy reaches.
py::object conv_transpose_backward_input(py::handle dy_, py::handle w_, const py::tuple& x_shape,
                                         py::handle stride, py::handle padding, int64_t groups,
                                         py::handle dilation, py::handle mask_) {
  const Array w = dense_arg("conv_transpose", "weight", w_, Layout::kChannelsLast);
  const int spatial = spatial_of(true, w);
  const char* op = op_name(true, spatial);
  bool unbatched;
  const Array dy = signal_arg(op, "gradient", dy_, spatial, &unbatched);
  check_one_dtype(op, "gradient and weight", dy, w);
  int64_t shape[5] = {1};
  int_tuple(op, "x_shape", x_shape, spatial + 2 - unbatched, shape + unbatched);
  const ConvShape s =
      transposed_shape(op, dy, w.shape, shape, spatial, stride, padding, dilation, groups);
  const Array dx = empty_signal(dy.dtype, spatial, s.n, s.out_c, s.out);
  const Array mask = mask_arg(op, mask_, dx, unbatched);
  with_float_type(op, dy.dtype,
                  [&](auto t) { forward<decltype(t)>(s, dy, w, {{}, false, mask}, dx); });
  return result(dx, unbatched);
}

// dw of conv_transpose_forward.
py::object conv_transpose_backward_weight(py::handle dy_, py::handle x_, const py::tuple& w_shape,
                                          py::handle stride, py::handle padding, int64_t groups,
                                          py::handle dilation) {
  const int spatial = static_cast<int>(w_shape.size()) - 2;
  const char* op = op_name(true, spatial);
  bool unbatched;
  const Array x = signal_arg(op, "input", x_, spatial, &unbatched);
  const Array dy = signal_arg(op, "gradient", dy_, spatial, &unbatched);
  check_one_dtype(op, "gradient and input", dy, x);
  int64_t shape[5];
  int_tuple(op, "w_shape", w_shape, spatial + 2, shape);
  const ConvShape s =
      transposed_shape(op, dy, shape, x.shape, spatial, stride, padding, dilation, groups);
  const Array dw = empty(x.dtype, spatial + 2, shape, Layout::kChannelsLast);
  with_float_type(op, x.dtype,
                  [&](auto t) { backward_weight<decltype(t)>(s, x, dy, dw, Array{}); });
  return result(dw);
}

// The name of the algorithm that float32 arrays of these shapes get in the pass "forward",
// "backward_input" or "backward_weight".
const char* conv_algorithm(const py::tuple& x_shape, const py::tuple& w_shape, py::handle stride,
                           py::handle padding, py::handle dilation, int64_t groups,
                           const std::string& pass) {
  const int spatial = static_cast<int>(w_shape.size()) - 2;
  const char* op = op_name(false, spatial);
  int64_t x[5], w[5];
  int_tuple(op, "x_shape", x_shape, spatial + 2, x);
  int_tuple(op, "w_shape", w_shape, spatial + 2, w);
  const ConvShape s =
      make_conv_shape(op, x, w, -1, conv_args(op, spatial, stride, padding, dilation, groups));
  const Ops<float>& table = ops<float>();
  const auto algorithm = pass == "forward"           ? table.conv_forward_algorithm
                         : pass == "backward_input"  ? table.conv_backward_input_algorithm
                         : pass == "backward_weight" ? table.conv_backward_weight_algorithm
                                                     : nullptr;
  if (!algorithm)
    value_error("conv_algorithm",
                "The pass must be forward, backward_input or backward_weight. Got '" + pass + "'.");
  return kAlgorithms[static_cast<int>(algorithm(s))];
}

}  // namespace

void bind_conv(py::module_& m) {
  m.def("force_conv_algorithm", &force_conv_algorithm);
  m.def("conv_algorithm", &conv_algorithm);
  m.def("set_exact_algorithms", &set_exact_algorithms, py::arg("value"));
  m.def("exact_algorithms", &exact_algorithms);
  const auto relu = py::arg("relu") = false;
  const auto mask = py::arg("mask") = py::none();
  const auto x = py::arg("x"), dy = py::arg("dy"), w = py::arg("w"), b = py::arg("b");
  const auto x_shape = py::arg("x_shape"), stride = py::arg("stride");
  const auto padding = py::arg("padding"), dilation = py::arg("dilation");
  const auto groups = py::arg("groups");
  def(m, "conv_forward", &conv_forward, x, w, b, stride, padding, dilation, groups, relu);
  def(m, "conv_backward_input", &conv_backward_input, dy, w, x_shape, stride, padding, dilation,
      groups, mask);
  def(m, "conv_backward_weight", &conv_backward_weight);
  def(m, "conv_transpose_forward", &conv_transpose_forward, x, w, b, stride, padding,
      py::arg("output_padding"), groups, dilation, relu);
  def(m, "conv_transpose_backward_input", &conv_transpose_backward_input, dy, w, x_shape, stride,
      padding, groups, dilation, mask);
  def(m, "conv_transpose_backward_weight", &conv_transpose_backward_weight);
}

}  // namespace convgrad::python
