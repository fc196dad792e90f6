#include "loss.h"

namespace convgrad::python {
namespace {

LossKind kind_arg(const std::string& kind) {
  if (kind == "squared") return LossKind::kSquared;
  if (kind == "absolute") return LossKind::kAbsolute;
  if (kind == "smooth_l1") return LossKind::kSmoothL1;
  if (kind == "huber") return LossKind::kHuber;
  if (kind == "bce") return LossKind::kBce;
  if (kind == "bce_logits") return LossKind::kBceLogits;
  if (kind == "soft_margin") return LossKind::kSoftMargin;
  if (kind == "margin") return LossKind::kMargin;
  if (kind == "hinge_embedding") return LossKind::kHingeEmbedding;
  value_error("loss", "unknown kind. Got '" + kind + "'.");
}

struct PointwiseArgs {
  LossShape shape;
  Array a, b, weight, pos_weight;
};
PointwiseArgs pointwise_args(const char* op, const std::string& kind, py::handle a_, py::handle b_,
                             py::handle weight_, py::handle pos_weight_,
                             const std::string& reduction, double parameter) {
  const Reduction how = reduction_arg(op, reduction);
  const Array a = dense_arg(op, "input", a_, Layout::kChannelsLast);
  const Array b = dense_arg_like(op, "target", b_, Layout::kChannelsLast, a);
  const auto like_input = [&](const char* name, py::handle object) {
    const Array x = optional_arg_like(op, name, object, Layout::kChannelsLast, a);
    if (!object.is_none() && !same_shape(x, a))
      value_error(op, std::string("input and ") + name + " must have one shape. Got " +
                          a.shape_text() + " and " + x.shape_text() + ".");
    return x;
  };
  return {{kind_arg(kind), a.size(), how, parameter},
          a,
          like_input("target", b_),
          like_input("weight", weight_),
          like_input("pos_weight", pos_weight_)};
}

// Of the input's shape for 'none', else without axes.
py::object pointwise_loss_forward(const char* op, const std::string& kind, py::handle a_,
                                  py::handle b_, py::handle weight_, py::handle pos_weight_,
                                  const std::string& reduction, double parameter) {
  const auto [s, a, b, weight, pos_weight] =
      pointwise_args(op, kind, a_, b_, weight_, pos_weight_, reduction, parameter);
  const bool none = s.reduction == Reduction::kNone;
  const Array loss = empty(stat_of(a.dtype), none ? a.rank : 0, a.shape, Layout::kChannelsLast);
  int64_t bad = -1;
  with_float_type(op, a.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().pointwise_loss_workspace(s, threads); },
        [&](const Exec& exec) {
          ops<T>().pointwise_loss_forward(exec, s, a.as<T>(), b.as<T>(), weight.as<T>(),
                                          pos_weight.as<T>(), loss.as<Stat<T>>(), &bad);
        });
    if (bad >= 0)
      value_error(op, "The input must be from 0 to 1. Got " +
                          std::string(py::str(py::float_(a.as<T>()[bad]))) + ".");
  });
  return loss.object;
}

// (da, db), None for what is not needed.
py::tuple pointwise_loss_backward(const char* op, const std::string& kind, py::handle dy_,
                                  py::handle a_, py::handle b_, py::handle weight_,
                                  py::handle pos_weight_, const std::string& reduction,
                                  double parameter, bool need_a, bool need_b) {
  const auto [s, a, b, weight, pos_weight] =
      pointwise_args(op, kind, a_, b_, weight_, pos_weight_, reduction, parameter);
  const Array dy = stat_arg_like(op, "gradient", dy_, Layout::kChannelsLast, a);
  Array da, db;
  if (need_a) da = empty(a.dtype, a.rank, a.shape, Layout::kChannelsLast);
  if (need_b) db = empty(a.dtype, a.rank, a.shape, Layout::kChannelsLast);
  with_float_type(op, a.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().pointwise_loss_backward(exec, s, a.as<T>(), b.as<T>(), weight.as<T>(),
                                       pos_weight.as<T>(), dy.as<Stat<T>>(), da.as<T>(),
                                       db.as<T>());
    });
  });
  return py::make_tuple(need_a ? da.object : py::none(), need_b ? db.object : py::none());
}

// ---- multi-class margin ----

[[noreturn]] void class_error(const char* op, int64_t c, int64_t got) {
  value_error(op, "A target class must be in [0, " + std::to_string(c) + "). Got " +
                      std::to_string(got) + ".");
}

struct MultiMarginArgs {
  MultiMarginShape shape;
  Array x, classes, weight;
};
MultiMarginArgs multi_margin_args(py::handle x_, py::handle target_, py::handle weight_, int power,
                                  double margin, const std::string& reduction) {
  const char* op = "multi_margin_loss";
  const Reduction how = reduction_arg(op, reduction);
  const Array x = dense_arg(op, "input", x_, Layout::kC);
  if (x.rank < 1 || x.rank > 2 || x.shape[x.rank - 1] < 1)
    value_error(op, "The input must be (N, C) or (C) with at least one class. Got shape " +
                        x.shape_text() + ".");
  if (power != 1 && power != 2)
    value_error(op, "p must be 1 or 2. Got " + std::to_string(power) + ".");
  const int64_t c = x.shape[x.rank - 1];
  return {{x.size() / c, c, how, margin, power == 2},
          x,
          classes_arg(op, x, target_),
          class_weight_arg(op, weight_, x)};
}

py::object multi_margin_forward(py::handle x_, py::handle target_, py::handle weight_, int power,
                                double margin, const std::string& reduction) {
  const auto [s, x, classes, weight] =
      multi_margin_args(x_, target_, weight_, power, margin, reduction);
  const int rank = s.reduction == Reduction::kNone ? x.rank - 1 : 0;
  const Array loss = empty(stat_of(x.dtype), rank, x.shape, Layout::kC);
  int64_t bad = -1;
  with_float_type("multi_margin_loss", x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().multi_margin_workspace(s, threads); },
        [&](const Exec& exec) {
          ops<T>().multi_margin_forward(exec, s, x.as<T>(), classes.as<int64_t>(),
                                        weight.as<Stat<T>>(), loss.as<Stat<T>>(), &bad);
        });
  });
  if (bad >= 0) class_error("multi_margin_loss", s.c, classes.as<int64_t>()[bad]);
  return loss.object;
}

py::object multi_margin_backward(py::handle dy_, py::handle x_, py::handle target_,
                                 py::handle weight_, int power, double margin,
                                 const std::string& reduction) {
  const auto [s, x, classes, weight] =
      multi_margin_args(x_, target_, weight_, power, margin, reduction);
  const Array dy = stat_arg_like("multi_margin_loss", "gradient", dy_, Layout::kC, x);
  const Array dx = empty(x.dtype, x.rank, x.shape, Layout::kC);
  with_float_type("multi_margin_loss", x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().multi_margin_backward(exec, s, x.as<T>(), classes.as<int64_t>(),
                                     weight.as<Stat<T>>(), dy.as<Stat<T>>(), dx.as<T>());
    });
  });
  return dx.object;
}

// ---- dice ----

struct DiceTarget {
  Array classes, mask;
};
DiceTarget dice_target(const Array& x, py::handle target_) {
  if (array_arg("dice_loss", "target", target_).dtype == DType::kInt64)
    return {classes_arg("dice_loss", x, target_), Array{}};
  const Array mask = dense_arg_like("dice_loss", "target", target_, Layout::kChannelsLast, x);
  if (!same_shape(mask, x))
    value_error("dice_loss", "logits and a float target must have one shape. Got " +
                                 x.shape_text() + " and " + mask.shape_text() + ".");
  return {Array{}, mask};
}

DiceShape dice_shape(const Array& x, double smooth) {
  if (x.rank < 2 || x.shape[1] < 1)
    value_error("dice_loss", "logits must be (N, C, ...) with at least one channel. Got shape " +
                                 x.shape_text() + ".");
  int64_t pixels = 1;
  for (int i = 2; i < x.rank; ++i) pixels *= x.shape[i];
  return {x.shape[0], pixels, x.shape[1], smooth};
}

// (loss, p, dp)
py::tuple dice_forward(py::handle x_, py::handle target_, double smooth) {
  const Array x = dense_arg("dice_loss", "logits", x_, Layout::kChannelsLast);
  const DiceShape s = dice_shape(x, smooth);
  const auto [classes, mask] = dice_target(x, target_);
  const int64_t slopes[3] = {s.n, s.c, 2};
  const Array loss = empty(stat_of(x.dtype), 0, nullptr, Layout::kC);
  const Array p = empty(x.dtype, x.rank, x.shape, Layout::kChannelsLast);
  const Array dp = empty(stat_of(x.dtype), 3, slopes, Layout::kC);
  int64_t bad = -1;
  with_float_type("dice_loss", x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().dice_workspace(s, threads); },
        [&](const Exec& exec) {
          ops<T>().dice_forward(exec, s, x.as<T>(), classes.as<int64_t>(), mask.as<T>(),
                                loss.as<Stat<T>>(), p.as<T>(), dp.as<Stat<T>>(), &bad);
        });
  });
  if (bad >= 0) class_error("dice_loss", s.c, classes.as<int64_t>()[bad]);
  return py::make_tuple(loss.object, p.object, dp.object);
}

py::object dice_backward(py::handle dy_, py::handle target_, py::handle p_, py::handle dp_) {
  const Array p = dense_arg("dice_loss", "p", p_, Layout::kChannelsLast);
  const DiceShape s = dice_shape(p, 0);
  const auto [classes, mask] = dice_target(p, target_);
  const Array dp = array_arg("dice_loss", "dp", dp_, stat_of(p.dtype));
  const Array dy = array_arg("dice_loss", "gradient", dy_, stat_of(p.dtype));
  const Array dx = empty(p.dtype, p.rank, p.shape, Layout::kChannelsLast);
  with_float_type("dice_loss", p.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().dice_backward(exec, s, classes.as<int64_t>(), mask.as<T>(), p.as<T>(),
                             dp.as<Stat<T>>(), dy.as<Stat<T>>(), dx.as<T>());
    });
  });
  return dx.object;
}

}  // namespace

void bind_loss_pointwise(py::module_& m) {
  def(m, "pointwise_loss_forward", &pointwise_loss_forward);
  def(m, "pointwise_loss_backward", &pointwise_loss_backward);
  def(m, "multi_margin_forward", &multi_margin_forward);
  def(m, "multi_margin_backward", &multi_margin_backward);
  def(m, "dice_forward", &dice_forward);
  def(m, "dice_backward", &dice_backward);
}

}  // namespace convgrad::python
