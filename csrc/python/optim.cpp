#include <vector>

#include "array.h"

namespace convgrad::python {
namespace {

// An array to be changed in place. One that lies in no dense layout is worked on in a copy, which
// write_back() returns to its place.
struct InPlace {
  Array original, dense;

  template <class T>
  void write_back() const {
    if (dense.data == original.data) return;
    StridedShape s{};
    s.rank = dense.rank;
    for (int i = 0; i < s.rank; ++i) {
      s.size[i] = dense.shape[i];
      s.src_stride[i] = dense.stride[i];
      s.dst_stride[i] = original.stride[i];
    }
    run([&](const Exec& exec) { ops<T>().copy(exec, s, dense.as<T>(), original.as<T>()); });
  }
};
// `filled`: it holds something that the kernel reads.
InPlace in_place(const char* op, const char* name, Array&& a, Layout layout, bool filled = true) {
  if (!is_float(a.dtype)) float_error(op, name, a.dtype);
  InPlace out{std::move(a), {}};
  const Array& original = out.original;
  out.dense = filled || original.is_dense(layout)
                  ? dense(op, original, layout)
                  : empty(original.dtype, original.rank, original.shape, layout);
  return out;
}

Layout layout_of(const Array& a) {
  return a.is_dense(Layout::kChannelsLast) || !a.is_dense(Layout::kC) ? Layout::kChannelsLast
                                                                      : Layout::kC;
}

void same_as_parameter(const char* op, const char* name, const Array& a, const Array& p) {
  if (!same_shape(a, p) || a.dtype != p.dtype)
    value_error(op, std::string(name) + " must have its parameter's shape and dtype, " +
                        p.shape_text() + " " + name_of(p.dtype) + ". Got " + a.shape_text() + " " +
                        name_of(a.dtype) + ".");
}

// One parameter with everything of its step, in one layout; keeps the arrays alive.
struct Param {
  InPlace p;
  Array g;
  InPlace kept[3];
  size_t kept_count = 0;
  double* step = nullptr;
  bool first = false;
};

Param param_arg(const char* op, py::handle p_, py::handle g_) {
  Param out;
  Array p = array_arg(op, "parameter", p_);
  const Layout layout = layout_of(p);
  out.p = in_place(op, "parameter", std::move(p), layout);
  if (g_) {
    out.g = dense_arg(op, "gradient", g_, layout);
    same_as_parameter(op, "gradient", out.g, out.p.dense);
  }
  return out;
}

// `filled`: the buffer holds something that must last.
void keep(const char* op, Param& param, py::handle buffer, bool filled) {
  InPlace& kept = param.kept[param.kept_count++];
  kept = in_place(op, "buffer", array_arg(op, "buffer", buffer), layout_of(param.p.dense), filled);
  same_as_parameter(op, "buffer", kept.dense, param.p.dense);
}

// kernel(exec, count, refs) once for the parameters of each type, if any.
template <class WorkspaceBytes, class Kernel>
void run_list(const std::vector<Param>& params, const WorkspaceBytes& workspace_bytes,
              const Kernel& kernel) {
  const auto run_type = [&](auto t) {
    using T = decltype(t);
    std::vector<ParamRef<T>> refs;
    for (const Param& param : params) {
      if (param.p.dense.dtype != dtype_of<T>()) continue;
      ParamRef<T> r{};
      r.p = param.p.dense.as<T>();
      r.g = param.g.as<T>();
      for (size_t i = 0; i < param.kept_count; ++i) r.kept[i] = param.kept[i].dense.as<T>();
      r.step = param.step;
      r.n = param.p.dense.size();
      r.first = param.first;
      refs.push_back(r);
    }
    if (refs.empty()) return;
    const int64_t count = int64_t(refs.size());
    run([&](int) { return workspace_bytes(count, refs.data()); },
        [&](const Exec& exec) { kernel(exec, count, refs.data()); });
    for (const Param& param : params) {
      if (param.p.dense.dtype != dtype_of<T>()) continue;
      param.p.write_back<T>();
      for (size_t i = 0; i < param.kept_count; ++i) param.kept[i].write_back<T>();
    }
  };
  run_type(float{});
  run_type(double{});
#if defined(CONVGRAD_CUDA_ARRAYS)
  run_type(bfloat16{});
  run_type(float16{});
#endif
}
constexpr auto kNoWorkspace = [](int64_t, const auto*) { return int64_t{0}; };

const double* hyper_arg(const char* op, py::handle hyper, int count) {
  const Array a = array_arg(op, "hyper", hyper, DType::kFloat64);
  if (a.rank != 1 || a.shape[0] != count || !a.is_dense(Layout::kC))
    value_error(op, "hyper must have " + std::to_string(count) + " values. Got shape " +
                        a.shape_text() + ".");
  return a.as<double>();
}

// Null, or a float64 array of one element: Exec::skip.
const double* skip_arg(const char* op, py::handle skip) {
  return skip.is_none() ? nullptr : array_arg(op, "skip", skip, DType::kFloat64).as<double>();
}
Exec with_skip(Exec exec, const double* skip) {
  exec.skip = skip;
  return exec;
}

template <class T>
const Ops<T>& table(const ParamRef<T>*) {
  return ops<T>();
}

// One step for lists of equal length. buffers: a list of arrays, or None without momentum;
// first[i]: buffer i holds nothing yet. hyper: lr, momentum, dampening, weight_decay. skip: None,
// or a float64 number on the device that makes this no step where it is not 0.
void sgd_step(const py::list& ps, const py::list& gs, py::handle buffers, py::handle first,
              bool nesterov, py::handle hyper_, py::handle skip_) {
  const double* hyper = hyper_arg("sgd", hyper_, 4);
  const double* skip = skip_arg("sgd", skip_);
  std::vector<Param> params;
  params.reserve(ps.size());
  for (size_t i = 0; i < ps.size(); ++i) {
    params.push_back(param_arg("sgd", ps[i], gs[i]));
    if (buffers.is_none()) continue;
    params[i].first = first[py::int_(i)].cast<bool>();
    keep("sgd", params[i], buffers[py::int_(i)], !params[i].first || skip);
  }
  run_list(params, kNoWorkspace, [&](const Exec& exec, int64_t count, const auto* refs) {
    table(refs).sgd_step(with_skip(exec, skip), count, refs, nesterov, hyper);
  });
}

// buffers: a tuple per parameter: exp_avg, exp_avg_sq and, with amsgrad, max_exp_avg_sq. steps:
// a float64 array of one element per parameter, counted up. hyper: lr, beta1, beta2, eps,
// weight_decay. skip: as for sgd_step.
void adam_step(const py::list& ps, const py::list& gs, const py::list& buffers,
               const py::list& steps, bool amsgrad, bool decoupled, py::handle hyper_,
               py::handle skip_) {
  const double* hyper = hyper_arg("adam", hyper_, 5);
  const double* skip = skip_arg("adam", skip_);
  std::vector<Param> params;
  params.reserve(ps.size());
  for (size_t i = 0; i < ps.size(); ++i) {
    params.push_back(param_arg("adam", ps[i], gs[i]));
    const py::tuple kept = buffers[i];
    for (size_t k = 0; k < (amsgrad ? 3u : 2u); ++k) keep("adam", params[i], kept[k], true);
    params[i].step = array_arg("adam", "step", steps[i], DType::kFloat64).as<double>();
  }
  run_list(params, kNoWorkspace, [&](const Exec& exec, int64_t count, const auto* refs) {
    table(refs).adam_step(with_skip(exec, skip), count, refs, amsgrad, decoupled, hyper);
  });
}

std::vector<Param> list_arg(const char* op, const py::list& list) {
  std::vector<Param> out;
  out.reserve(list.size());
  for (const py::handle p : list) out.push_back(param_arg(op, p, py::handle()));
  return out;
}

NormKind kind_arg(const std::string& kind) {
  if (kind == "abs_sum") return NormKind::kAbsSum;
  if (kind == "square_sum") return NormKind::kSquareSum;
  if (kind == "abs_max") return NormKind::kAbsMax;
  if (kind == "power_sum") return NormKind::kPowerSum;
  value_error("list_norm", "unknown kind. Got '" + kind + "'.");
}

// The sum (or maximum) over all elements of all arrays, a float64 array without axes.
py::object list_norm(const py::list& list, const std::string& kind_, double power) {
  const NormKind kind = kind_arg(kind_);
  const std::vector<Param> params = list_arg("list_norm", list);
  for (const Param& param : params)
    if (param.p.dense.dtype != params[0].p.dense.dtype)
      type_error("list_norm", std::string("The tensors must have one dtype. Got ") +
                                  name_of(params[0].p.dense.dtype) + " and " +
                                  name_of(param.p.dense.dtype) + ".");
  if (params.empty()) value_error("list_norm", "There must be at least 1 array. Got none.");
  const Array out = empty(DType::kFloat64, 0, nullptr, Layout::kC);
  run_list(
      params,
      [](int64_t count, const auto* refs) { return table(refs).list_norm_workspace(count, refs); },
      [&](const Exec& exec, int64_t count, const auto* refs) {
        table(refs).list_norm(exec, count, refs, kind, power, out.as<double>());
      });
  return out.object;
}

// Multiplies all arrays, in place, by a float64 array of one element.
void list_scale(const py::list& list, py::handle factor_) {
  const double* factor = array_arg("list_scale", "factor", factor_, DType::kFloat64).as<double>();
  run_list(list_arg("list_scale", list), kNoWorkspace,
           [&](const Exec& exec, int64_t count, const auto* refs) {
             table(refs).list_scale(exec, count, refs, factor);
           });
}

// dy * factor * the slope of |p| or p^2 for each element.
py::object penalty_backward(py::handle p_, const std::string& kind_, double factor,
                            py::handle dy_) {
  const NormKind kind = kind_arg(kind_);
  const Array p = dense_arg("penalty", "parameter", p_, Layout::kChannelsLast);
  const Array dy = array_arg("penalty", "gradient", dy_, stat_of(p.dtype));
  const Array dp = empty(p.dtype, p.rank, p.shape, Layout::kChannelsLast);
  with_float_type("penalty", p.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().penalty_backward(exec, p.size(), p.as<T>(), kind, factor, dy.as<Stat<T>>(),
                                dp.as<T>());
    });
  });
  return dp.object;
}

}  // namespace

void bind_optim(py::module_& m) {
  const auto arg = [](const char* name) { return py::arg(name); };
  def(m, "sgd_step", &sgd_step, arg("ps"), arg("gs"), arg("buffers"), arg("first"), arg("nesterov"),
      arg("hyper"), arg("skip") = py::none());
  def(m, "adam_step", &adam_step, arg("ps"), arg("gs"), arg("buffers"), arg("steps"),
      arg("amsgrad"), arg("decoupled"), arg("hyper"), arg("skip") = py::none());
  def(m, "list_norm", &list_norm);
  def(m, "list_scale", &list_scale);
  def(m, "penalty_backward", &penalty_backward);
}

}  // namespace convgrad::python
