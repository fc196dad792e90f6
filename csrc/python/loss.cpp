#include "loss.h"

namespace convgrad::python {
namespace {

// The target: classes (int64, one per row) or a distribution per row of x's shape and dtype.
struct Targets {
  Array classes, probs;
};
Targets targets_arg(const char* op, const Array& x, py::handle target_) {
  const Array target = array_arg(op, "target", target_);
  if (target.dtype == DType::kInt64) return {classes_arg(op, x, target_), Array{}};
  if (!is_float(target.dtype))
    type_error(op, std::string("target must be int64 classes or float probabilities. Got ") +
                       name_of(target.dtype) + ".");
  const Array probs = dense_arg_like(op, "target", target_, Layout::kChannelsLast, x);
  if (!same_shape(probs, x))
    value_error(op, "A target of probabilities must have the input's shape, " + x.shape_text() +
                        ". Got " + probs.shape_text() + ".");
  return {Array{}, probs};
}

struct CrossEntropyArgs {
  CrossEntropyShape shape;
  Array x, weight;
  Targets target;
};
CrossEntropyArgs cross_entropy_args(const char* op, py::handle x_, py::handle target_,
                                    py::handle weight_, int64_t ignore_index,
                                    const std::string& reduction, double label_smoothing,
                                    bool log_probs) {
  const Reduction how = reduction_arg(op, reduction);
  const Array x = dense_arg(op, "input", x_, Layout::kChannelsLast);
  if (x.rank < 1 || x.shape[class_axis(x)] < 1)
    value_error(op,
                "The input must be (C), (N, C) or (N, C, ...) with at least one class. Got "
                "shape " +
                    x.shape_text() + ".");
  if (!(label_smoothing >= 0 && label_smoothing <= 1))
    value_error(op, "label_smoothing must be from 0 to 1. Got " +
                        std::string(py::str(py::float_(label_smoothing))) + ".");
  const int64_t c = x.shape[class_axis(x)];
  const Array weight = class_weight_arg(op, weight_, x);
  const CrossEntropyShape s{x.size() / c, c, ignore_index, label_smoothing, how, log_probs};
  return {s, x, weight, targets_arg(op, x, target_)};
}

// (loss, stats, norm); a class outside its range is a ValueError that names it.
py::tuple cross_entropy_forward(const char* op, py::handle x_, py::handle target_,
                                py::handle weight_, int64_t ignore_index,
                                const std::string& reduction, double label_smoothing,
                                bool log_probs) {
  const auto [s, x, weight, target] = cross_entropy_args(op, x_, target_, weight_, ignore_index,
                                                         reduction, label_smoothing, log_probs);
  const RowShape rows = row_shape(x);
  const bool none = s.reduction == Reduction::kNone;
  const DType stat = stat_of(x.dtype);
  const Array loss = empty(stat, none ? rows.rank : 0, rows.shape, Layout::kC);
  const int64_t stats_size = log_probs ? 0 : 2 * s.rows;
  const Array stats = empty(stat, 1, &stats_size, Layout::kC);
  const Array norm = empty(stat, 0, nullptr, Layout::kC);
  int64_t bad_row = -1;
  with_float_type(op, x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().cross_entropy_workspace(s, threads); },
        [&](const Exec& exec) {
          ops<T>().cross_entropy_forward(exec, s, x.as<T>(), target.classes.as<int64_t>(),
                                         target.probs.as<T>(), weight.as<Stat<T>>(),
                                         loss.as<Stat<T>>(), stats.as<Stat<T>>(),
                                         norm.as<Stat<T>>(), &bad_row);
        });
  });
  if (bad_row >= 0)
    value_error(op, "A target class must be in [0, " + std::to_string(s.c) + ") or ignore_index, " +
                        std::to_string(ignore_index) + ". Got " +
                        std::to_string(target.classes.as<int64_t>()[bad_row]) + ".");
  return py::make_tuple(loss.object, stats.object, norm.object);
}

// (dx, dtarget): dtarget is None unless asked for, and for classes.
py::tuple cross_entropy_backward(const char* op, py::handle dy_, py::handle x_, py::handle target_,
                                 py::handle weight_, py::handle stats_, py::handle norm_,
                                 int64_t ignore_index, const std::string& reduction,
                                 double label_smoothing, bool log_probs, bool need_target) {
  const auto [s, x, weight, target] = cross_entropy_args(op, x_, target_, weight_, ignore_index,
                                                         reduction, label_smoothing, log_probs);
  const Array dy = stat_arg_like(op, "gradient", dy_, Layout::kC, x);
  const Array stats = array_arg(op, "stats", stats_, stat_of(x.dtype));
  const Array norm = array_arg(op, "norm", norm_, stat_of(x.dtype));
  const Array dx = empty(x.dtype, x.rank, x.shape, Layout::kChannelsLast);
  Array dprobs;
  if (need_target && target.probs) dprobs = empty(x.dtype, x.rank, x.shape, Layout::kChannelsLast);
  with_float_type(op, x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().cross_entropy_backward(exec, s, x.as<T>(), target.classes.as<int64_t>(),
                                      target.probs.as<T>(), weight.as<Stat<T>>(),
                                      stats.as<Stat<T>>(), norm.as<Stat<T>>(), dy.as<Stat<T>>(),
                                      dx.as<T>(), dprobs.as<T>());
    });
  });
  return py::make_tuple(dx.object, dprobs ? dprobs.object : py::none());
}

}  // namespace

void bind_loss(py::module_& m) {
  def(m, "cross_entropy_forward", &cross_entropy_forward);
  def(m, "cross_entropy_backward", &cross_entropy_backward);
}

}  // namespace convgrad::python
