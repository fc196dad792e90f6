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

void gemm(GemmShape s, const Array& a, const Array& b, const Array& bias, const Array& c,
          bool relu = false, const Array& mask = {}) {
  s.tf32 = use_tf32();
  with_float_type("gemm", a.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().gemm_workspace(s, threads); },
        [&](const Exec& exec) {
          ops<T>().gemm(exec, s, a.as<T>(), b.as<T>(), {bias.as<T>(), relu, mask.as<T>()},
                        c.as<T>());
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

// x (..., in), w (out, in), b (out) or None -> y (..., out), and max(0, y) for relu
py::object linear_forward(py::handle x_, py::handle w_, py::handle b_, bool relu) {
  const char* op = "linear";
  const Array x = dense_arg(op, "input", x_, Layout::kC);
  const Array w = dense_arg_like(op, "weight", w_, Layout::kC, x);
  const Array b = optional_arg_like(op, "bias", b_, Layout::kC, x);
  if (w.rank != 2 || x.rank < 1 || x.shape[x.rank - 1] != w.shape[1])
    value_error(op, "The input's last axis must equal the weight's, (out, in). Got input " +
                        x.shape_text() + " and weight " + w.shape_text() + ".");
  if (b && (b.rank != 1 || b.shape[0] != w.shape[0]))
    value_error(op, "bias must have one value per output, " + std::to_string(w.shape[0]) +
                        ". Got shape " + b.shape_text() + ".");
  int64_t shape[kMaxRank];
  for (int i = 0; i < x.rank; ++i) shape[i] = i + 1 < x.rank ? x.shape[i] : w.shape[0];
  const Array y = empty(x.dtype, x.rank, shape, Layout::kC);
  gemm({as_rows(x).rows, w.shape[0], w.shape[1], false, true}, x, w, b, y, relu);
  return y.object;
}

// dx = dy w, 0 where a mask is given (like dx) and <= 0: dy (..., out), w (out, in)
py::object linear_backward_input(py::handle dy_, py::handle w_, py::handle mask_) {
  const Array dy = dense_arg("linear", "gradient", dy_, Layout::kC);
  const Array w = dense_arg_like("linear", "weight", w_, Layout::kC, dy);
  int64_t shape[kMaxRank];
  for (int i = 0; i < dy.rank; ++i) shape[i] = i + 1 < dy.rank ? dy.shape[i] : w.shape[1];
  const Array dx = empty(dy.dtype, dy.rank, shape, Layout::kC);
  const Array mask = optional_arg_like("linear", "mask", mask_, Layout::kC, dy);
  if (mask && !same_shape(mask, dx))
    value_error("linear", "mask must have the input's shape, " + dx.shape_text() + ". Got " +
                              mask.shape_text() + ".");
  gemm({as_rows(dy).rows, w.shape[1], w.shape[0], false, false}, dy, w, Array{}, dx, false, mask);
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

// ---- matmul: torch.matmul's rules ----

// (batch..., m, k) times (batch..., k, n); a vector counts as a row, resp. a column, that the
// result drops again.
struct MatMulShape {
  int64_t m, n, k;
  int rank;                                           // of the common batch
  int64_t batch[kMaxRank], a[kMaxRank], b[kMaxRank];  // a, b: the operand's own sizes, or 1
  int out_rank;
  int64_t out[kMaxRank];

  int64_t batch_size() const {
    int64_t size = 1;
    for (int i = 0; i < rank; ++i) size *= batch[i];
    return size;
  }
};

MatMulShape matmul_shape(const Array& a, const Array& b) {
  const char* op = "matmul";
  const std::string got = " Got shapes " + a.shape_text() + " and " + b.shape_text() + ".";
  if (a.rank < 1 || b.rank < 1) value_error(op, "Both operands must have an axis." + got);
  MatMulShape s{};
  s.m = a.rank > 1 ? a.shape[a.rank - 2] : 1;
  s.k = a.shape[a.rank - 1];
  s.n = b.rank > 1 ? b.shape[b.rank - 1] : 1;
  if (s.k != b.shape[b.rank > 1 ? b.rank - 2 : 0])
    value_error(op, "The left operand's columns must equal the right one's rows." + got);
  const int rank_a = a.rank > 2 ? a.rank - 2 : 0, rank_b = b.rank > 2 ? b.rank - 2 : 0;
  s.rank = rank_a > rank_b ? rank_a : rank_b;
  for (int i = 0; i < s.rank; ++i) {
    const int in_a = i - (s.rank - rank_a), in_b = i - (s.rank - rank_b);
    s.a[i] = in_a >= 0 ? a.shape[in_a] : 1;
    s.b[i] = in_b >= 0 ? b.shape[in_b] : 1;
    if (s.a[i] != s.b[i] && s.a[i] != 1 && s.b[i] != 1)
      value_error(op, "The batch axes must be equal or 1." + got);
    s.batch[i] = s.a[i] == 1 ? s.b[i] : s.a[i];
    s.out[s.out_rank++] = s.batch[i];
  }
  if (a.rank > 1) s.out[s.out_rank++] = s.m;
  if (b.rank > 1) s.out[s.out_rank++] = s.n;
  return s;
}

// One operand of a batched product: the sizes of its batch axes and the elements of one matrix.
struct BatchOperand {
  const int64_t* size;
  int64_t matrix;

  // Elements to the operand's matrix for batch index `item` of `shape`.
  int64_t offset(const MatMulShape& shape, int64_t item) const {
    int64_t at = 0, pitch = matrix;
    for (int i = shape.rank - 1; i >= 0; --i) {
      if (size[i] != 1) at += item % shape.batch[i] * pitch;
      item /= shape.batch[i];
      pitch *= size[i];
    }
    return at;
  }
  bool whole(const MatMulShape& shape, int from) const {
    for (int i = from; i < shape.rank; ++i)
      if (size[i] != shape.batch[i]) return false;
    return true;
  }
  bool repeated(const MatMulShape& shape, int from) const {
    for (int i = from; i < shape.rank; ++i)
      if (size[i] != 1) return false;
    return true;
  }
};

// c[i] = op(x[i]) op(y[i]) for each batch index; `g` gives sizes and transpositions. The last batch
// axes, along which each operand is either whole or repeated, are one call of the kernel.
void batched_gemm(const MatMulShape& s, GemmShape g, const BatchOperand& a, const BatchOperand& b,
                  const Array& x, const Array& y, const Array& c) {
  int first = s.rank;
  const auto regular = [&](const BatchOperand& o, int i) {
    return o.whole(s, i) || o.repeated(s, i);
  };
  while (first > 0 && regular(a, first - 1) && regular(b, first - 1)) --first;
  for (int i = first; i < s.rank; ++i) g.batch *= s.batch[i];
  g.stride_a = a.whole(s, first) ? a.matrix : 0;
  g.stride_b = b.whole(s, first) ? b.matrix : 0;
  g.tf32 = use_tf32();
  const int64_t total = s.batch_size();
  with_float_type("matmul", x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](int threads) { return ops<T>().gemm_workspace(g, threads); },
        [&](const Exec& exec) {
          for (int64_t i = 0; i < total; i += g.batch)
            ops<T>().gemm(exec, g, x.as<T>() + a.offset(s, i), y.as<T>() + b.offset(s, i),
                          Epilogue<T>{}, c.as<T>() + i * g.m * g.n);
        });
  });
}

// Sums (batch..., matrix) over the batch axes that the operand repeats, one axis at a time.
Array sum_to(const MatMulShape& s, const BatchOperand& to, Array full) {
  int64_t size[kMaxRank + 1];
  for (int i = 0; i < s.rank; ++i) size[i] = s.batch[i];
  for (int axis = 0; axis < s.rank; ++axis) {
    if (to.size[axis] == size[axis]) continue;
    int64_t outer = 1, inner = to.matrix;
    for (int i = 0; i < axis; ++i) outer *= size[i];
    for (int i = axis + 1; i < s.rank; ++i) inner *= size[i];
    const int64_t rows = size[axis], shape[2] = {outer, inner};
    const Array sum = empty(full.dtype, 2, shape, Layout::kC);
    with_float_type("matmul", full.dtype, [&](auto t) {
      using T = decltype(t);
      run([&](int threads) { return ops<T>().column_sum_workspace(rows, inner, threads); },
          [&](const Exec& exec) {
            for (int64_t i = 0; i < outer; ++i)
              ops<T>().column_sum(exec, rows, inner, full.as<T>() + i * rows * inner,
                                  sum.as<T>() + i * inner);
          });
    });
    full = sum;
    size[axis] = 1;
  }
  return full;
}

py::object matmul_forward(py::handle a_, py::handle b_) {
  const Array a = dense_arg("matmul", "left operand", a_, Layout::kC);
  const Array b = dense_arg_like("matmul", "right operand", b_, Layout::kC, a);
  const MatMulShape s = matmul_shape(a, b);
  const Array c = empty(a.dtype, s.out_rank, s.out, Layout::kC);
  batched_gemm(s, {s.m, s.n, s.k, false, false}, {s.a, s.m * s.k}, {s.b, s.k * s.n}, a, b, c);
  return c.object;
}

// The gradient of one operand, in that operand's shape: `product` sums over the batch.
template <class Product>
py::object operand_gradient(const MatMulShape& s, const Array& operand, const BatchOperand& o,
                            const Product& product) {
  if (o.whole(s, 0)) {
    const Array d = empty(operand.dtype, operand.rank, operand.shape, Layout::kC);
    product(d);
    return d.object;
  }
  const int64_t shape[2] = {s.batch_size(), o.matrix};
  const Array full = empty(operand.dtype, 2, shape, Layout::kC);
  product(full);
  return sum_to(s, o, full).object.attr("reshape")(operand.object.attr("shape"));
}

// (da, db) = (dy b', a' dy), summed over the batch axes that an operand repeats; None where not
// needed.
py::tuple matmul_backward(py::handle dy_, py::handle a_, py::handle b_, bool need_a, bool need_b) {
  const Array dy = dense_arg("matmul", "gradient", dy_, Layout::kC);
  const Array a = dense_arg_like("matmul", "left operand", a_, Layout::kC, dy);
  const Array b = dense_arg_like("matmul", "right operand", b_, Layout::kC, dy);
  MatMulShape s = matmul_shape(a, b);
  if (dy.size() != s.batch_size() * s.m * s.n)
    value_error("matmul",
                "The gradient must have the product's shape. Got " + dy.shape_text() + ".");
  if (s.rank > 0 && b.rank <= 2 && a.rank > 2) {  // one matrix for all: the batch is more rows
    s.m *= s.batch_size();
    s.rank = 0;
  }
  const BatchOperand in_a = {s.a, s.m * s.k}, in_b = {s.b, s.k * s.n}, in_dy = {s.batch, s.m * s.n};
  py::object da = py::none(), db = py::none();
  if (need_a)
    da = operand_gradient(s, a, in_a, [&](const Array& d) {
      batched_gemm(s, {s.m, s.k, s.n, false, true}, in_dy, in_b, dy, b, d);
    });
  if (need_b)
    db = operand_gradient(s, b, in_b, [&](const Array& d) {
      batched_gemm(s, {s.k, s.n, s.m, true, false}, in_a, in_dy, a, dy, d);
    });
  return py::make_tuple(da, db);
}

}  // namespace

void bind_linear(py::module_& m) {
  const auto arg = [](const char* name) { return py::arg(name); };
  def(m, "linear_forward", &linear_forward, arg("x"), arg("w"), arg("b"), arg("relu") = false);
  def(m, "linear_backward_input", &linear_backward_input, arg("dy"), arg("w"),
      arg("mask") = py::none());
  def(m, "linear_backward_weight", &linear_backward_weight);
  def(m, "channel_sum", &channel_sum);
  def(m, "matmul_forward", &matmul_forward);
  def(m, "matmul_backward", &matmul_backward);
}

}  // namespace convgrad::python
