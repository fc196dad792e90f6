#include <pybind11/stl.h>

#include <vector>

#include "array.h"

namespace convgrad::python {
namespace {

// The array itself if it is dense in channels-last order, else a converted copy.
py::object channels_last(py::handle x) {
  const char* op = "channels_last";
  return dense(op, array_arg(op, "array", x), Layout::kChannelsLast).object;
}
py::object contiguous(py::handle x) {
  const char* op = "contiguous";
  return dense(op, array_arg(op, "array", x), Layout::kC).object;
}

bool is_channels_last(py::handle x) {
  return array_arg("is_channels_last", "array", x).is_dense(Layout::kChannelsLast);
}

// An uninitialised channels-last float array of `like`'s shape and dtype.
py::object empty_like(py::handle like) {
  const Array a = array_arg("empty_like", "array", like);
  return empty(a.dtype, a.rank, a.shape, Layout::kChannelsLast).object;
}

// dst[0 .. shape) = src, from element `src_at` to element `dst_at` on, over the axes of `shape`.
void copy_block(const char* op, const Array& src, int64_t src_at, const Array& dst, int64_t dst_at,
                const int64_t* shape) {
  StridedShape s{};
  s.rank = src.rank;
  for (int i = 0; i < src.rank; ++i) {
    s.size[i] = shape[i];
    s.src_stride[i] = src.stride[i];
    s.dst_stride[i] = dst.stride[i];
  }
  with_word_type(op, src.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().copy(exec, s, src.as<T>() + src_at, dst.as<T>() + dst_at);
    });
  });
}

int checked_axis(const char* op, const Array& a, int64_t axis) {
  if (axis < -a.rank || axis >= a.rank)
    value_error(op, "axis must be from " + std::to_string(-a.rank) + " to " +
                        std::to_string(a.rank - 1) + " for shape " + a.shape_text() + ". Got " +
                        std::to_string(axis) + ".");
  return static_cast<int>(axis < 0 ? axis + a.rank : axis);
}

// Arrays one after another along `axis` of a channels-last array: matrices side by side.
struct Columns {
  int64_t rows = 1;
  std::vector<int64_t> cols;  // of each part

  // `lengths`: each part's along the axis.
  Columns(const Array& whole, int axis, const std::vector<int64_t>& lengths) : cols(lengths) {
    bool before = true;  // in the order of memory
    const bool last = whole.rank > 1;
    for (int i = 0; i < whole.rank; ++i) {
      const int at = !last || i == 0 ? i : i == whole.rank - 1 ? 1 : i + 1;
      if (at == axis)
        before = false;
      else if (before)
        rows *= whole.shape[at];
      else
        for (int64_t& n : cols) n *= whole.shape[at];
    }
  }
  // Whether rows alone make enough work for many threads.
  bool has_many_rows() const { return rows >= 64; }
};

// The arrays one after another along `axis`, into a new channels-last array.
py::object cat(const py::sequence& arrays, int64_t axis_) {
  const char* op = "cat";
  if (arrays.size() == 0) value_error(op, "There must be at least 1 array. Got none.");
  std::vector<Array> parts;
  for (const auto& part : arrays) parts.push_back(array_arg(op, "array", part));
  const Array& first = parts[0];
  const int axis = checked_axis(op, first, axis_);
  int64_t shape[kMaxRank];
  for (int i = 0; i < first.rank; ++i) shape[i] = first.shape[i];
  shape[axis] = 0;
  for (const Array& part : parts) {
    if (part.dtype != first.dtype)
      type_error(op, std::string("The arrays must have one dtype. Got ") + name_of(first.dtype) +
                         " and " + name_of(part.dtype) + ".");
    bool fits = part.rank == first.rank;
    for (int i = 0; fits && i < first.rank; ++i) fits = i == axis || part.shape[i] == shape[i];
    if (!fits)
      value_error(op, "The arrays must have equal shapes except along axis " +
                          std::to_string(axis) + ". Got " + first.shape_text() + " and " +
                          part.shape_text() + ".");
    shape[axis] += part.shape[axis];
  }
  const Array out = empty(first.dtype, first.rank, shape, Layout::kChannelsLast);
  bool dense = true;
  std::vector<int64_t> lengths;
  for (const Array& part : parts) {
    dense = dense && part.is_dense(Layout::kChannelsLast);
    lengths.push_back(part.shape[axis]);
  }
  const Columns columns(out, axis, lengths);
  if (dense && columns.has_many_rows()) {
    with_word_type(op, out.dtype, [&](auto t) {
      using T = decltype(t);
      std::vector<const T*> from;
      for (const Array& part : parts) from.push_back(part.as<T>());
      run([&](const Exec& exec) {
        ops<T>().join_columns(exec, columns.rows, static_cast<int64_t>(from.size()),
                              columns.cols.data(), from.data(), out.as<T>());
      });
    });
    return out.object;
  }
  int64_t at = 0;
  for (const Array& part : parts) {
    if (part.size() > 0) copy_block(op, part, 0, out, at * out.stride[axis], part.shape);
    at += part.shape[axis];
  }
  return out.object;
}

// x[..., start : start + length, ...] along `axis`, as a new channels-last array.
py::object narrow(py::handle x_, int64_t axis_, int64_t start, int64_t length) {
  const char* op = "narrow";
  const Array x = array_arg(op, "array", x_);
  const int axis = checked_axis(op, x, axis_);
  if (start < 0 || length < 0 || start > x.shape[axis] - length)
    value_error(op, "start and start + length must lie in axis " + std::to_string(axis) +
                        " of shape " + x.shape_text() + ". Got start " + std::to_string(start) +
                        " and length " + std::to_string(length) + ".");
  int64_t shape[kMaxRank];
  for (int i = 0; i < x.rank; ++i) shape[i] = i == axis ? length : x.shape[i];
  const Array out = empty(x.dtype, x.rank, shape, Layout::kChannelsLast);
  if (out.size() > 0) copy_block(op, x, start * x.stride[axis], out, 0, shape);
  return out.object;
}

// x cut along `axis` into parts of these lengths, as new channels-last arrays.
py::list split(py::handle x_, int64_t axis_, const std::vector<int64_t>& lengths) {
  const char* op = "split";
  const Array x = array_arg(op, "array", x_);
  const int axis = checked_axis(op, x, axis_);
  int64_t total = 0, shape[kMaxRank];
  for (const int64_t n : lengths) total += n < 0 ? x.shape[axis] + 1 : n;
  if (total != x.shape[axis])
    value_error(op, "The lengths must add up to that of axis " + std::to_string(axis) +
                        " of shape " + x.shape_text() + ". Got " +
                        std::string(py::str(py::cast(lengths))) + ".");
  for (int i = 0; i < x.rank; ++i) shape[i] = x.shape[i];
  std::vector<Array> parts;
  py::list out;
  for (const int64_t n : lengths) {
    shape[axis] = n;
    parts.push_back(empty(x.dtype, x.rank, shape, Layout::kChannelsLast));
    out.append(parts.back().object);
  }
  const Columns columns(x, axis, lengths);
  if (x.is_dense(Layout::kChannelsLast) && columns.has_many_rows()) {
    with_word_type(op, x.dtype, [&](auto t) {
      using T = decltype(t);
      std::vector<T*> to;
      for (const Array& part : parts) to.push_back(part.as<T>());
      run([&](const Exec& exec) {
        ops<T>().split_columns(exec, columns.rows, static_cast<int64_t>(to.size()),
                               columns.cols.data(), x.as<T>(), to.data());
      });
    });
    return out;
  }
  int64_t at = 0;
  for (const Array& part : parts) {
    if (part.size() > 0) copy_block(op, x, at * x.stride[axis], part, 0, part.shape);
    at += part.shape[axis];
  }
  return out;
}

// index (count,) int64, dense, of values in [-rows, rows): negative ones count from the end.
// IndexError, as everywhere in Python, for one outside.
Array index_vector(const char* op, py::handle index_, int64_t rows) {
  Array index = array_arg(op, "index", index_, DType::kInt64);
  if (index.rank != 1)
    value_error(op, "index must have 1 axis. Got shape " + index.shape_text() + ".");
  index = dense(op, index, Layout::kChannelsLast);
  int64_t bad = -1;
  run([&](const Exec& exec) {
    bad = ops<float>().find_outside(exec, index.size(), index.as<int64_t>(), -rows, rows);
  });
  if (bad >= 0)
    throw py::index_error("[" + std::string(op) + "] Each index must be from " +
                          std::to_string(-rows) + " to " + std::to_string(rows - 1) + ". Got " +
                          std::to_string(index.as<int64_t>()[bad]) + ".");
  return index;
}

// IndexError unless every element of `index`, of any shape and integer type, is in [-rows, rows);
// on CUDA the error comes later, as a ValueError.
void check_index(py::handle index, int64_t rows) {
  index_vector("index", index.attr("astype")("int64").attr("ravel")(), rows);
}

int64_t row_size(const Array& a) {
  int64_t cols = 1;
  for (int i = 1; i < a.rank; ++i) cols *= a.shape[i];
  return cols;
}

// x[index] along axis 0: x (rows, ...), index (count,) int64 -> (count, ...), channels-last.
py::object index_rows(py::handle x_, py::handle index_) {
  const char* op = "index_rows";
  Array x = array_arg(op, "array", x_);
  if (x.rank < 1) value_error(op, "The array must have at least 1 axis. Got shape ().");
  x = dense(op, x, Layout::kChannelsLast);
  const Array index = index_vector(op, index_, x.shape[0]);
  int64_t shape[kMaxRank];
  for (int i = 0; i < x.rank; ++i) shape[i] = i == 0 ? index.shape[0] : x.shape[i];
  const Array out = empty(x.dtype, x.rank, shape, Layout::kChannelsLast);
  with_word_type(op, x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().index_rows(exec, index.shape[0], row_size(x), index.as<int64_t>(), x.shape[0],
                          x.as<T>(), out.as<T>());
    });
  });
  return out.object;
}

// The adjoint of index_rows: out (rows, ...) with out[index[i]] += values[i], duplicates in the
// order of i. values (count, ...); with values of 1 axis it is a sum into flat positions.
py::object index_add(py::handle index_, py::handle values_, int64_t rows) {
  const char* op = "index_add";
  const Array values = dense_arg(op, "values", values_, Layout::kChannelsLast);
  if (rows < 0) value_error(op, "rows must not be negative. Got " + std::to_string(rows) + ".");
  const Array index = index_vector(op, index_, rows);
  if (values.rank < 1 || values.shape[0] != index.shape[0])
    value_error(op, "values must have one row per index, " + std::to_string(index.shape[0]) +
                        ". Got shape " + values.shape_text() + ".");
  int64_t shape[kMaxRank];
  for (int i = 0; i < values.rank; ++i) shape[i] = i == 0 ? rows : values.shape[i];
  const Array out = empty(values.dtype, values.rank, shape, Layout::kChannelsLast);
  with_float_type(op, values.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().index_add(exec, index.shape[0], row_size(values), index.as<int64_t>(),
                         values.as<T>(), rows, out.as<T>());
    });
  });
  return out.object;
}

// x with `low` and `high` more elements of `value` on each axis (fewer where negative): one entry
// per axis each. Channels-last.
py::object pad_constant(py::handle x_, py::handle low_, py::handle high_, double value) {
  const char* op = "pad";
  const Array x = dense_arg(op, "input", x_, Layout::kChannelsLast);
  int64_t low[kMaxRank], high[kMaxRank], shape[kMaxRank];
  int_tuple(op, "low", low_, x.rank, low);
  int_tuple(op, "high", high_, x.rank, high);
  for (int i = 0; i < x.rank; ++i) {
    if (__builtin_add_overflow(x.shape[i], low[i], &shape[i]) ||
        __builtin_add_overflow(shape[i], high[i], &shape[i]) || shape[i] < 0)
      value_error(op, "The padded size of axis " + std::to_string(i) +
                          " must not be negative. Got " + "shape " + x.shape_text() + " with " +
                          std::to_string(low[i]) + " and " + std::to_string(high[i]) + ".");
  }
  const Array y = empty(x.dtype, x.rank, shape, Layout::kChannelsLast);
  PadShape s{};
  const auto push = [&](int axis) {
    const int i = s.rank - 1;
    if (s.rank > 0 && low[axis] == 0 && high[axis] == 0) {  // whole rows: one longer axis
      s.in[i] *= x.shape[axis];
      s.out[i] *= x.shape[axis];
      s.low[i] *= x.shape[axis];
      return;
    }
    s.in[s.rank] = x.shape[axis];
    s.out[s.rank] = shape[axis];
    s.low[s.rank++] = low[axis];
  };
  for (int axis = 0; axis < x.rank; ++axis)
    if (axis != 1) push(axis);
  if (x.rank > 1) push(1);
  if (s.rank == 0) s = {1, {1}, {1}, {0}};
  if (y.size() == 0) return y.object;
  with_float_type(op, x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().pad_constant(exec, s, x.as<T>(), T(static_cast<Stat<T>>(value)), y.as<T>());
    });
  });
  return y.object;
}

// x in the float type `to`; one of the two is float32. In x's layout where that is dense, else
// channels-last.
py::object convert(py::handle x_, const std::string& to_) {
  const char* op = "convert";
  Array x = array_arg(op, "array", x_);
  const DType to = dtype_named(op, to_);
  if (!is_float(x.dtype) || !is_float(to) || (x.dtype != DType::kFloat32 && to != DType::kFloat32))
    type_error(op, std::string("One type must be float32, the other a float type. Got ") +
                       name_of(x.dtype) + " to " + name_of(to) + ".");
  const bool in_c_order = x.is_dense(Layout::kC) && !x.is_dense(Layout::kChannelsLast);
  const Layout layout = in_c_order ? Layout::kC : Layout::kChannelsLast;
  x = dense(op, x, layout);
  const Array y = empty(to, x.rank, x.shape, layout);
  with_float_type(op, to == DType::kFloat32 ? x.dtype : to, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      if (to == DType::kFloat32)
        ops<T>().to_float(exec, x.size(), x.as<T>(), y.as<float>());
      else
        ops<T>().from_float(exec, x.size(), x.as<float>(), y.as<T>());
    });
  });
  return y.object;
}

}  // namespace

void bind_move(py::module_& m) {
  def(m, "channels_last", &channels_last);
  def(m, "contiguous", &contiguous);
  def(m, "is_channels_last", &is_channels_last);
  def(m, "empty_like", &empty_like);
  def(m, "convert", &convert);
  def(m, "cat", &cat);
  def(m, "narrow", &narrow);
  def(m, "split", &split);
  def(m, "check_index", &check_index);
  def(m, "index_rows", &index_rows);
  def(m, "index_add", &index_add);
  def(m, "pad_constant", &pad_constant);
}

}  // namespace convgrad::python
