#include "array.h"

namespace convgrad::python {
namespace {

// x (N, C, ...) as (batches, rows, c).
NormShape norm_shape(const char* op, const Array& x, bool per_sample, int64_t groups, double eps) {
  if (x.rank < 2)
    value_error(
        op, "The input must have at least 2 axes, (N, C, ...). Got shape " + x.shape_text() + ".");
  const int64_t c = x.shape[1];
  if (c < 1)
    value_error(
        op, "The input must have at least 1 channel (axis 1). Got shape " + x.shape_text() + ".");
  if (groups < 1 || c % groups != 0)
    value_error(op, "num_groups must divide the number of channels, " + std::to_string(c) +
                        ". Got " + std::to_string(groups) + ".");
  int64_t pixels = 1;
  for (int i = 2; i < x.rank; ++i) pixels *= x.shape[i];
  return {per_sample ? x.shape[0] : 1, per_sample ? pixels : x.shape[0] * pixels, c, groups, eps};
}

// None, or one value per channel.
Array channel_arg(const char* op, const char* name, py::handle object, const Array& x) {
  const Array a = stat_arg_like(op, name, object, Layout::kC, x);
  if (a && (a.rank != 1 || a.shape[0] != x.shape[1]))
    value_error(op, std::string(name) + " must have one value per channel, " +
                        std::to_string(x.shape[1]) + ". Got shape " + a.shape_text() + ".");
  return a;
}

// The same, to be changed in place.
Array running_arg(const char* op, const char* name, py::handle object, const Array& x) {
  const Array a = channel_arg(op, name, object, x);
  if (a && !a.object.is(object))
    value_error(op, std::string(name) + " must be contiguous to be updated in place.");
  return a;
}

// None, or an array of x's shape and layout.
Array like_arg(const char* op, const char* name, py::handle object, const Array& x) {
  const Array a = optional_arg_like(op, name, object, Layout::kChannelsLast, x);
  if (a && !same_shape(a, x))
    value_error(op, std::string(name) + " must have the input's shape, " + x.shape_text() +
                        ". Got " + a.shape_text() + ".");
  return a;
}

// ValueError unless there is more than one value to take a variance of.
void check_enough_values(const char* op, const NormShape& s, const Array& x) {
  if (s.batches * s.rows > 0 && s.rows * (s.c / s.groups) == 1)
    value_error(op, "Expected more than 1 value per channel when training, got input size " +
                        x.shape_text() + ".");
}

void check_running(const char* op, const Array& running_mean, const Array& running_var,
                   bool training) {
  if (bool(running_mean) != bool(running_var) || (!training && !running_mean))
    value_error(op, "running_mean and running_var must both be given, or, in training, neither.");
}

// A number, or a float64 array of one that lies where the kernels run.
class Momentum {
 public:
  Momentum(const char* op, py::handle object, bool used = true)
      : is_number_(PyFloat_Check(object.ptr()) || PyLong_Check(object.ptr())),
        number_(is_number_ ? object.cast<double>() : 0),
        uploaded_(upload(&number_, is_number_ && used ? 1 : 0)) {
    if (is_number_) return;
    if (!py::hasattr(object, "dtype"))
      type_error(op, std::string("momentum must be a number. Got ") +
                         Py_TYPE(object.ptr())->tp_name + ".");
    array_ = array_arg(op, "momentum", object, DType::kFloat64);
    if (array_.size() != 1)
      value_error(op, "momentum must be one number. Got shape " + array_.shape_text() + ".");
  }
  const double* get() const { return is_number_ ? uploaded_.as<double>() : array_.as<double>(); }

 private:
  bool is_number_;
  double number_;
  Uploaded uploaded_;
  Array array_;
};

// (mean, var), each (batches, c), and running_mean and running_var brought up to date. weight and
// bias are for norm_apply, and checked here already.
py::tuple norm_statistics(const char* op, py::handle x_, py::handle w, py::handle b,
                          py::handle running_mean_, py::handle running_var_, bool per_sample,
                          int64_t groups, py::handle momentum_, double eps) {
  const Array x = dense_arg(op, "input", x_, Layout::kChannelsLast);
  const NormShape s = norm_shape(op, x, per_sample, groups > 0 ? groups : x.shape[1], eps);
  channel_arg(op, "weight", w, x);
  channel_arg(op, "bias", b, x);
  const Array running_mean = running_arg(op, "running_mean", running_mean_, x);
  const Array running_var = running_arg(op, "running_var", running_var_, x);
  check_running(op, running_mean, running_var, true);
  check_enough_values(op, s, x);
  const int64_t shape[2] = {s.batches, s.c};
  const Array mean = empty(stat_of(x.dtype), 2, shape, Layout::kC);
  const Array var = empty(stat_of(x.dtype), 2, shape, Layout::kC);
  const Momentum momentum(op, momentum_);
  with_float_type(op, x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().norm_workspace(s, threads); },
        [&](const Exec& exec) {
          ops<T>().norm_statistics(exec, s, x.as<T>(), mean.as<Stat<T>>(), var.as<Stat<T>>(),
                                   momentum.get(), running_mean.as<Stat<T>>(),
                                   running_var.as<Stat<T>>());
        });
  });
  return py::make_tuple(mean.object, var.object);
}

// y of norm_forward by the mean and var that norm_statistics found.
py::object norm_apply(const char* op, py::handle x_, py::handle w_, py::handle b_, py::handle mean_,
                      py::handle var_, bool per_sample, int64_t groups, double eps, bool relu,
                      py::handle residual_) {
  const Array x = dense_arg(op, "input", x_, Layout::kChannelsLast);
  const NormShape s = norm_shape(op, x, per_sample, groups > 0 ? groups : x.shape[1], eps);
  const Array w = channel_arg(op, "weight", w_, x), b = channel_arg(op, "bias", b_, x);
  const Array residual = like_arg(op, "residual", residual_, x);
  const Array mean = array_arg(op, "mean", mean_, stat_of(x.dtype));
  const Array var = array_arg(op, "var", var_, stat_of(x.dtype));
  const Array y = empty(x.dtype, x.rank, x.shape, Layout::kChannelsLast);
  with_float_type(op, x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().norm_workspace(s, threads); },
        [&](const Exec& exec) {
          ops<T>().norm_apply(exec, s, x.as<T>(), mean.as<Stat<T>>(), var.as<Stat<T>>(),
                              w.as<Stat<T>>(), b.as<Stat<T>>(), residual.as<T>(), relu, y.as<T>());
        });
  });
  return y.object;
}

// (y, mean, var), y = norm(x) + residual, and max(0, .) of that for relu. Not training: mean and
// var are running_mean and running_var themselves.
py::tuple norm_forward(const char* op, py::handle x_, py::handle w_, py::handle b_,
                       py::handle running_mean_, py::handle running_var_, bool per_sample,
                       int64_t groups, bool training, py::handle momentum_, double eps, bool relu,
                       py::handle residual_) {
  const Array x = dense_arg(op, "input", x_, Layout::kChannelsLast);
  const NormShape s = norm_shape(op, x, per_sample, groups > 0 ? groups : x.shape[1], eps);
  const Array w = channel_arg(op, "weight", w_, x), b = channel_arg(op, "bias", b_, x);
  const Array residual = like_arg(op, "residual", residual_, x);
  const Array running_mean = running_arg(op, "running_mean", running_mean_, x);
  const Array running_var = running_arg(op, "running_var", running_var_, x);
  check_running(op, running_mean, running_var, training);
  if (training) check_enough_values(op, s, x);
  const Array y = empty(x.dtype, x.rank, x.shape, Layout::kChannelsLast);
  const int64_t shape[2] = {s.batches, s.c};
  const DType stat = stat_of(x.dtype);
  const Array mean = training ? empty(stat, 2, shape, Layout::kC) : running_mean;
  const Array var = training ? empty(stat, 2, shape, Layout::kC) : running_var;
  const Momentum momentum(op, momentum_, training);
  with_float_type(op, x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().norm_workspace(s, threads); },
        [&](const Exec& exec) {
          if (training)
            ops<T>().norm_statistics(exec, s, x.as<T>(), mean.as<Stat<T>>(), var.as<Stat<T>>(),
                                     momentum.get(), running_mean.as<Stat<T>>(),
                                     running_var.as<Stat<T>>());
          ops<T>().norm_apply(exec, s, x.as<T>(), mean.as<Stat<T>>(), var.as<Stat<T>>(),
                              w.as<Stat<T>>(), b.as<Stat<T>>(), residual.as<T>(), relu, y.as<T>());
        });
  });
  return py::make_tuple(y.object, mean.object, var.object);
}

// (dx, dw, db, dresidual), None for what is not needed. mean and var as norm_forward returned them;
// mask: its y where that went through a ReLU. Without one the residual's gradient is dy itself.
py::tuple norm_backward(const char* op, py::handle dy_, py::handle x_, py::handle w_,
                        py::handle mean_, py::handle var_, bool per_sample, int64_t groups,
                        bool fixed, double eps, bool need_x, bool need_w, bool need_b,
                        py::handle mask_, bool need_residual) {
  const Array x = dense_arg(op, "input", x_, Layout::kChannelsLast);
  const Array dy = like_arg(op, "gradient", dy_, x), mask = like_arg(op, "mask", mask_, x);
  const Array w = channel_arg(op, "weight", w_, x);
  const Array mean = array_arg(op, "mean", mean_, stat_of(x.dtype));
  const Array var = array_arg(op, "var", var_, stat_of(x.dtype));
  const NormShape s = norm_shape(op, x, per_sample, groups > 0 ? groups : x.shape[1], eps);
  Array dx, dw, db, dmasked;
  if (need_x) dx = empty(x.dtype, x.rank, x.shape, Layout::kChannelsLast);
  if (need_residual && mask) dmasked = empty(x.dtype, x.rank, x.shape, Layout::kChannelsLast);
  if (need_w) dw = empty(stat_of(x.dtype), 1, &s.c, Layout::kC);
  if (need_b) db = empty(stat_of(x.dtype), 1, &s.c, Layout::kC);
  with_float_type(op, x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().norm_workspace(s, threads); },
        [&](const Exec& exec) {
          ops<T>().norm_backward(exec, s, x.as<T>(), dy.as<T>(), mask.as<T>(), mean.as<Stat<T>>(),
                                 var.as<Stat<T>>(), w.as<Stat<T>>(), fixed, dx.as<T>(),
                                 dw.as<Stat<T>>(), db.as<Stat<T>>(), dmasked.as<T>());
        });
  });
  if (need_residual && !mask) dmasked = dy;
  const auto given = [](const Array& a) { return a ? a.object : py::none(); };
  return py::make_tuple(given(dx), given(dw), given(db), given(dmasked));
}

// The last axes of x that `normalized` (a tuple) names, as rows and columns.
struct Rows {
  int64_t rows = 1, c = 1;
};
Rows layer_rows(const Array& x, const py::tuple& normalized) {
  const char* op = "layer_norm";
  const int count = int(normalized.size());
  int64_t shape[kMaxRank];
  if (count > 0 && count <= x.rank) int_tuple(op, "normalized_shape", normalized, count, shape);
  bool fits = count > 0 && count <= x.rank;
  Rows out;
  for (int i = 0; i < x.rank; ++i) {
    const int j = i - (x.rank - count);
    if (fits && j >= 0) fits = shape[j] == x.shape[i];
    (j >= 0 ? out.c : out.rows) *= x.shape[i];
  }
  if (!fits)
    value_error(op, "normalized_shape must be the input's last axes. Got " +
                        std::string(py::repr(normalized)) + " for input " + x.shape_text() + ".");
  return out;
}

// None, or of the normalized axes' shape.
Array layer_arg(const char* name, py::handle object, const Array& x, int count) {
  const Array a = stat_arg_like("layer_norm", name, object, Layout::kC, x);
  bool fits = !a || a.rank == count;
  for (int i = 0; a && fits && i < count; ++i) fits = a.shape[i] == x.shape[x.rank - count + i];
  if (!fits)
    value_error("layer_norm", std::string(name) + " must have normalized_shape. Got shape " +
                                  a.shape_text() + ".");
  return a;
}

// (y, mean, inv_std), the latter one per row.
py::tuple layer_norm_forward(py::handle x_, const py::tuple& normalized, py::handle w_,
                             py::handle b_, double eps) {
  const Array x = dense_arg("layer_norm", "input", x_, Layout::kC);
  const Rows s = layer_rows(x, normalized);
  const Array w = layer_arg("weight", w_, x, int(normalized.size()));
  const Array b = layer_arg("bias", b_, x, int(normalized.size()));
  const Array y = empty(x.dtype, x.rank, x.shape, Layout::kC);
  const Array mean = empty(stat_of(x.dtype), 1, &s.rows, Layout::kC);
  const Array inv_std = empty(stat_of(x.dtype), 1, &s.rows, Layout::kC);
  with_float_type("layer_norm", x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().layer_norm_forward(exec, s.rows, s.c, eps, x.as<T>(), w.as<Stat<T>>(),
                                  b.as<Stat<T>>(), y.as<T>(), mean.as<Stat<T>>(),
                                  inv_std.as<Stat<T>>());
    });
  });
  return py::make_tuple(y.object, mean.object, inv_std.object);
}

// (dx, dw, db), None for what is not needed.
py::tuple layer_norm_backward(py::handle dy_, py::handle x_, py::handle w_, py::handle mean_,
                              py::handle inv_std_, const py::tuple& normalized, bool need_x,
                              bool need_w, bool need_b) {
  const char* op = "layer_norm";
  const Array x = dense_arg(op, "input", x_, Layout::kC);
  const Array dy = dense_arg_like(op, "gradient", dy_, Layout::kC, x);
  const int count = int(normalized.size());
  const Array w = layer_arg("weight", w_, x, count);
  const Array mean = array_arg(op, "mean", mean_, stat_of(x.dtype));
  const Array inv_std = array_arg(op, "inv_std", inv_std_, stat_of(x.dtype));
  const Rows s = layer_rows(x, normalized);
  const int64_t* shape = x.shape + (x.rank - count);
  Array dx, dw, db;
  if (need_x) dx = empty(x.dtype, x.rank, x.shape, Layout::kC);
  if (need_w) dw = empty(stat_of(x.dtype), count, shape, Layout::kC);
  if (need_b) db = empty(stat_of(x.dtype), count, shape, Layout::kC);
  with_float_type(op, x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().layer_norm_backward_workspace(s.rows, s.c, threads); },
        [&](const Exec& exec) {
          ops<T>().layer_norm_backward(exec, s.rows, s.c, x.as<T>(), dy.as<T>(), mean.as<Stat<T>>(),
                                       inv_std.as<Stat<T>>(), w.as<Stat<T>>(), dx.as<T>(),
                                       dw.as<Stat<T>>(), db.as<Stat<T>>());
        });
  });
  const auto given = [](const Array& a) { return a ? a.object : py::none(); };
  return py::make_tuple(given(dx), given(dw), given(db));
}

}  // namespace

void bind_norm(py::module_& m) {
  using namespace py::literals;
  def(m, "norm_forward", &norm_forward, "op"_a, "x"_a, "weight"_a, "bias"_a, "running_mean"_a,
      "running_var"_a, "per_sample"_a, "groups"_a, "training"_a, "momentum"_a, "eps"_a,
      "relu"_a = false, "residual"_a = py::none());
  def(m, "norm_statistics", &norm_statistics, "op"_a, "x"_a, "weight"_a, "bias"_a, "running_mean"_a,
      "running_var"_a, "per_sample"_a, "groups"_a, "momentum"_a, "eps"_a);
  def(m, "norm_apply", &norm_apply, "op"_a, "x"_a, "weight"_a, "bias"_a, "mean"_a, "var"_a,
      "per_sample"_a, "groups"_a, "eps"_a, "relu"_a, "residual"_a);
  def(m, "norm_backward", &norm_backward, "op"_a, "dy"_a, "x"_a, "weight"_a, "mean"_a, "var"_a,
      "per_sample"_a, "groups"_a, "fixed"_a, "eps"_a, "need_x"_a, "need_w"_a, "need_b"_a,
      "mask"_a = py::none(), "need_residual"_a = false);
  def(m, "layer_norm_forward", &layer_norm_forward);
  def(m, "layer_norm_backward", &layer_norm_backward);
}

}  // namespace convgrad::python
