// Interpolation and repeating padding: both are one sparse matrix per axis, built here; the
// backward pass runs the same kernel with the matrices transposed.
#include <algorithm>
#include <cmath>
#include <vector>

#include "array.h"

namespace convgrad::python {
namespace {

// y[o] sums weight[e] * x[source[e]] over e in [start[o], start[o + 1]).
struct Matrix {
  std::vector<int64_t> start{0}, source;
  std::vector<double> weight;

  void entry(int64_t from, double w) {
    source.push_back(from);
    weight.push_back(w);
  }
  void end_row() { start.push_back(static_cast<int64_t>(source.size())); }
  int64_t rows() const { return static_cast<int64_t>(start.size()) - 1; }
};

// Entries of each row in the order of their source, so that sums have one order.
Matrix transposed(const Matrix& m, int64_t columns) {
  Matrix t;
  t.start.assign(static_cast<size_t>(columns) + 1, 0);
  t.source.resize(m.source.size());
  t.weight.resize(m.source.size());
  for (const int64_t from : m.source) ++t.start[static_cast<size_t>(from) + 1];
  for (size_t i = 1; i < t.start.size(); ++i) t.start[i] += t.start[i - 1];
  std::vector<int64_t> next = t.start;
  for (int64_t o = 0; o < m.rows(); ++o)
    for (int64_t e = m.start[o]; e < m.start[o + 1]; ++e) {
      const int64_t at = next[m.source[e]]++;
      t.source[at] = o;
      t.weight[at] = m.weight[e];
    }
  return t;
}

// A matrix has entries for each row: sizes that no memory holds are refused before it is built.
constexpr int64_t kMaxAxis = int64_t{1} << 30;

// ---- interpolation ----

// scale: what the caller multiplied the size by, 0 if only the sizes are known.
Matrix nearest(int64_t in, int64_t out, double scale) {
  // In float, whatever the arrays' type, as PyTorch: rounding decides which neighbour it is.
  const float step = scale > 0 ? static_cast<float>(1.0 / scale)
                               : static_cast<float>(in) / static_cast<float>(out);
  Matrix m;
  for (int64_t o = 0; o < out; ++o) {
    const auto from = static_cast<int64_t>(std::floor(static_cast<float>(o) * step));
    m.entry(std::min(from, in - 1), 1);
    m.end_row();
  }
  return m;
}

double linear_step(int64_t in, int64_t out, bool align_corners, double scale) {
  if (align_corners)
    return out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0;
  return scale > 0 ? 1.0 / scale : static_cast<double>(in) / static_cast<double>(out);
}

Matrix linear(int64_t in, int64_t out, bool align_corners, double scale) {
  const double step = linear_step(in, out, align_corners, scale);
  Matrix m;
  for (int64_t o = 0; o < out; ++o) {
    const double middle = step * (static_cast<double>(o) + 0.5) - 0.5;
    const double at = align_corners ? step * static_cast<double>(o) : std::max(middle, 0.0);
    const int64_t low = in == out ? o : std::min(static_cast<int64_t>(at), in - 1);
    const double share =
        in == out ? 0 : std::min(std::max(at - static_cast<double>(low), 0.0), 1.0);
    if (low + 1 < in) {
      m.entry(low, 1 - share);
      if (share > 0) m.entry(low + 1, share);
    } else {
      m.entry(low, 1);
    }
    m.end_row();
  }
  return m;
}

// A triangle as wide as the step when shrinking: every input counts.
Matrix antialiased(int64_t in, int64_t out, bool align_corners, double scale) {
  const double step = linear_step(in, out, align_corners, scale), reach = std::max(step, 1.0);
  Matrix m;
  for (int64_t o = 0; o < out; ++o) {
    const double centre = step * (static_cast<double>(o) + 0.5);
    const int64_t low = std::max(static_cast<int64_t>(centre - reach + 0.5), int64_t{0});
    const int64_t high = std::min(static_cast<int64_t>(centre + reach + 0.5), in);
    const auto share = [&](int64_t i) {
      return std::max(1 - std::abs(static_cast<double>(i) - centre + 0.5) / reach, 0.0);
    };
    double total = 0;
    for (int64_t i = low; i < high; ++i) total += share(i);
    for (int64_t i = low; i < high; ++i)
      if (share(i) > 0) m.entry(i, share(i) / total);
    m.end_row();
  }
  return m;
}

// ---- padding ----

Matrix padding(const char* op, const std::string& mode, int64_t in, int64_t low, int64_t high) {
  const int64_t most = mode == "reflect" ? in - 1 : mode == "circular" ? in : INT64_MAX;
  if (low > most || high > most)
    value_error(op, "mode='" + mode + "' can pad an axis of " + std::to_string(in) +
                        " by at most " + std::to_string(most) + ". Got " + std::to_string(low) +
                        " and " + std::to_string(high) + ".");
  if (in + low + high < 1)
    value_error(op, "The padded size must be at least 1. Got an axis of " + std::to_string(in) +
                        " with " + std::to_string(low) + " and " + std::to_string(high) + ".");
  // 'circular' crops first and repeats what is left, as PyTorch does.
  const int64_t begin = std::max(-low, int64_t{0}), left = in - begin - std::max(-high, int64_t{0});
  if (left < 1)
    value_error(op, "Cropping must leave at least 1 element. Got an axis of " + std::to_string(in) +
                        " with " + std::to_string(low) + " and " + std::to_string(high) + ".");
  Matrix m;
  for (int64_t o = 0; o < in + low + high; ++o) {
    int64_t from = o - low;
    if (mode == "replicate") {
      from = std::min(std::max(from, int64_t{0}), in - 1);
    } else if (mode == "reflect") {
      from = from < 0 ? -from : from >= in ? 2 * (in - 1) - from : from;
    } else {
      from = begin + ((from - begin) % left + left) % left;
    }
    m.entry(from, 1);
    m.end_row();
  }
  return m;
}

// ---- running either ----

template <class T>
void run_resample(const ResampleShape& s, const Matrix (&matrix)[3], const Array& x,
                  const Array& y) {
  std::vector<Stat<T>> weight[3];
  std::vector<Uploaded> uploaded;  // keeps what the maps point to
  const auto placed = [&](const auto& values) {
    uploaded.push_back(upload(values.data(), int64_t(values.size())));
    return uploaded.back().template as<typename std::decay_t<decltype(values)>::value_type>();
  };
  AxisMap<T> map[3];
  for (int axis = 0; axis < 3; ++axis) {
    weight[axis].assign(matrix[axis].weight.begin(), matrix[axis].weight.end());
    map[axis] = {placed(matrix[axis].start), placed(matrix[axis].source), placed(weight[axis])};
  }
  run([&](const Exec& exec) { ops<T>().resample(exec, s, map, x.as<T>(), y.as<T>()); });
}

// y (n, c, *rows of the matrices) of x, or with `backward` x's gradient of y's. `matrix_of(i, in)`
// makes the matrix of spatial axis i whose input has size `in`.
template <class MatrixOf>
py::object resample(const char* op, py::handle x_, int spatial, const py::object& x_shape,
                    const MatrixOf& matrix_of) {
  const bool backward = !x_shape.is_none();
  bool unbatched;
  const Array x = signal_arg(op, backward ? "gradient" : "input", x_, spatial, &unbatched);
  int64_t in[5] = {x.shape[0], x.shape[1]}, shape[5] = {x.shape[0], x.shape[1]};
  for (int i = 2; i < x.rank; ++i) in[i] = x.shape[i];
  if (backward) int_tuple(op, "x_shape", x_shape, spatial + 2 - unbatched, in + unbatched);
  ResampleShape s{x.shape[0], x.shape[1], {1, 1, 1}, {1, 1, 1}};
  Matrix matrix[3];
  for (int axis = 0; axis < 3 - spatial; ++axis) {
    matrix[axis].entry(0, 1);
    matrix[axis].end_row();
  }
  for (int i = 0; i < spatial; ++i) {
    const int axis = 3 - spatial + i;
    if (in[2 + i] < 1)
      value_error(
          op, "The input must not be empty but for its batch. Got shape " + x.shape_text() + ".");
    matrix[axis] = matrix_of(i, in[2 + i]);
    if (backward && matrix[axis].rows() != x.shape[2 + i])
      value_error(op, "The gradient must have the output's shape. Got " + x.shape_text() + ".");
    if (backward) matrix[axis] = transposed(matrix[axis], in[2 + i]);
    shape[2 + i] = matrix[axis].rows();
    s.in[axis] = x.shape[2 + i];
    s.out[axis] = shape[2 + i];
  }
  const Array y = empty(x.dtype, spatial + 2, shape, Layout::kChannelsLast);
  with_float_type(op, x.dtype, [&](auto t) { run_resample<decltype(t)>(s, matrix, x, y); });
  return result(y, unbatched);
}

// x_shape None: forward, x is the input; else backward, x is the gradient. scales: one per axis, 0
// where the sizes decide.
py::object interpolate(py::handle x, const py::object& x_shape, int spatial, const py::tuple& size,
                       const std::string& mode, bool align_corners, const py::tuple& scales,
                       bool antialias) {
  const char* op = "interpolate";
  int64_t out[3];
  int_tuple(op, "size", size, spatial, out);
  for (int i = 0; i < spatial; ++i)
    if (out[i] < 1)
      value_error(op,
                  "The output size must be at least 1. Got " + std::string(py::repr(size)) + ".");
  for (int i = 0; i < spatial; ++i)
    if (out[i] > kMaxAxis)
      value_error(op, "The output size must be at most " + std::to_string(kMaxAxis) +
                          " per axis. Got " + std::string(py::repr(size)) + ".");
  return resample(op, x, spatial, x_shape, [&](int i, int64_t in) {
    const double scale = py::cast<double>(scales[i]);
    if (mode == "nearest") return nearest(in, out[i], scale);
    if (antialias) return antialiased(in, out[i], align_corners, scale);
    return linear(in, out[i], align_corners, scale);
  });
}

// mode: 'reflect', 'replicate' or 'circular'; low and high: one entry per spatial axis.
py::object pad_repeat(py::handle x, const py::object& x_shape, int spatial, const py::tuple& low_,
                      const py::tuple& high_, const std::string& mode) {
  const char* op = "pad";
  int64_t low[3], high[3];
  int_tuple(op, "low", low_, spatial, low);
  int_tuple(op, "high", high_, spatial, high);
  for (int i = 0; i < spatial; ++i)
    if (std::max(low[i], high[i]) > kMaxAxis || std::min(low[i], high[i]) < -kMaxAxis)
      value_error(op, "An axis can be padded or cropped by at most " + std::to_string(kMaxAxis) +
                          ". Got " + std::to_string(low[i]) + " and " + std::to_string(high[i]) +
                          ".");
  return resample(op, x, spatial, x_shape,
                  [&](int i, int64_t in) { return padding(op, mode, in, low[i], high[i]); });
}

}  // namespace

void bind_resample(py::module_& m) {
  def(m, "interpolate", &interpolate);
  def(m, "pad_repeat", &pad_repeat);
}

}  // namespace convgrad::python
