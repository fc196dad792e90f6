#include "array.h"

namespace convgrad::python {
namespace {

// The last two axes of a C-contiguous array as (rows, columns); rank 1 is one row.
struct Matrix {
  int64_t rows, cols;
};
Matrix as_rows(const Array& a) {
  const int64_t cols = a.rank ? a.shape[a.rank - 1] : 1;
  int64_t rows = 1;
  for (int i = 0; i + 1 < a.rank; ++i) rows *= a.shape[i];
  return {rows, cols};
}

void gemm(const GemmShape& s, const Array& a, const Array& b, const Array& bias, const Array& c) {
  with_float_type("gemm", a.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().gemm_workspace(s, threads); },
        [&](const Exec& exec) {
          ops<T>().gemm(exec, s, a.as<T>(), b.as<T>(), bias.as<T>(), c.as<T>());
        });
  });
}

void column_sum(int64_t rows, int64_t c, const Array& x, const Array& out) {
  with_float_type("column_sum", x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().column_sum_workspace(rows, c, threads); },
        [&](const Exec& exec) { ops<T>().column_sum(exec, rows, c, x.as<T>(), out.as<T>()); });
  });
}

// x (..., in), w (out, in), b (out) or None -> y (..., out)
py::object linear_forward(py::handle x_, py::handle w_, py::handle b_) {
  const char* op = "linear";
  const Array x = dense_arg(op, "input", x_, Layout::kC);
  const Array w = dense_arg_like(op, "weight", w_, Layout::kC, x);
  const Array b = dense_arg_like(op, "bias", b_, Layout::kC, x);
  if (w.rank != 2 || x.rank < 1 || x.shape[x.rank - 1] != w.shape[1])
    value_error(op, "The input's last axis must equal the weight's, (out, in). Got input " +
                        x.shape_text() + " and weight " + w.shape_text() + ".");
  if (b && (b.rank != 1 || b.shape[0] != w.shape[0]))
    value_error(op, "bias must have one value per output, " + std::to_string(w.shape[0]) +
                        ". Got shape " + b.shape_text() + ".");
  int64_t shape[kMaxRank];
  for (int i = 0; i < x.rank; ++i) shape[i] = i + 1 < x.rank ? x.shape[i] : w.shape[0];
  const Array y = empty(x.dtype, x.rank, shape, Layout::kC);
  gemm({as_rows(x).rows, w.shape[0], w.shape[1], false, true}, x, w, b, y);
  return y.object;
}

// dx = dy w: dy (..., out), w (out, in)
py::object linear_backward_input(py::handle dy_, py::handle w_) {
  const Array dy = dense_arg("linear", "gradient", dy_, Layout::kC);
  const Array w = dense_arg_like("linear", "weight", w_, Layout::kC, dy);
  int64_t shape[kMaxRank];
  for (int i = 0; i < dy.rank; ++i) shape[i] = i + 1 < dy.rank ? dy.shape[i] : w.shape[1];
  const Array dx = empty(dy.dtype, dy.rank, shape, Layout::kC);
  gemm({as_rows(dy).rows, w.shape[1], w.shape[0], false, false}, dy, w, Array{}, dx);
  return dx.object;
}

// (dw, db): dw = dy' x (out, in); db = column sums of dy, None unless with_bias.
py::tuple linear_backward_weight(py::handle dy_, py::handle x_, bool with_bias) {
  const Array dy = dense_arg("linear", "gradient", dy_, Layout::kC);
  const Array x = dense_arg_like("linear", "input", x_, Layout::kC, dy);
  const Matrix d = as_rows(dy), in = as_rows(x);
  const int64_t shape[2] = {d.cols, in.cols};
  const Array dw = empty(dy.dtype, 2, shape, Layout::kC);
  gemm({d.cols, in.cols, d.rows, true, false}, dy, x, Array{}, dw);
  if (!with_bias) return py::make_tuple(dw.object, py::none());
  const Array db = empty(dy.dtype, 1, &d.cols, Layout::kC);
  column_sum(d.rows, d.cols, dy, db);
  return py::make_tuple(dw.object, db.object);
}

// The sum over every axis but the channels': x (N, C, ...), or (C, ...) without the batch -> (C).
py::object channel_sum(py::handle x_, int spatial) {
  bool unbatched;
  const Array x = signal_arg("channel_sum", "array", x_, spatial, &unbatched);
  const int64_t c = x.shape[1];
  int64_t rows = x.shape[0];
  for (int i = 2; i < x.rank; ++i) rows *= x.shape[i];
  const Array out = empty(x.dtype, 1, &c, Layout::kC);
  column_sum(rows, c, x, out);
  return out.object;
}

}  // namespace

void bind_linear(py::module_& m) {
  m.def("linear_forward", &linear_forward);
  m.def("linear_backward_input", &linear_backward_input);
  m.def("linear_backward_weight", &linear_backward_weight);
  m.def("channel_sum", &channel_sum);
}

}  // namespace convgrad::python
