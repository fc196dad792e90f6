// What of array.h is the same for every backend.
#include "array.h"

#include <sstream>

namespace convgrad::python {

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    case DType::kInt64:
      return "int64";
    case DType::kInt32:
      return "int32";
    case DType::kUInt8:
      return "uint8";
    case DType::kBool:
      return "bool";
  }
  return "?";
}

DType dtype_named(const char* op, const std::string& name) {
  for (int i = 0; i < kDTypes; ++i)
    if (name == name_of(static_cast<DType>(i))) return static_cast<DType>(i);
  type_error(op, "The dtype must be one that tensors have. Got " + name + ".");
}

int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
      return 2;
    default:
      return 1;
  }
}

// Axes of length 1 say nothing about layout; an array without elements has every layout.
bool Array::is_dense(Layout layout) const {
  int64_t expected = 1;
  const auto step = [&](int axis) {
    if (shape[axis] != 1 && stride[axis] != expected) return false;
    expected *= shape[axis];
    return true;
  };
  if (size() == 0) return true;
  const bool last = layout == Layout::kChannelsLast && rank > 1;
  if (last && !step(1)) return false;
  for (int axis = rank - 1; axis >= 0; --axis) {
    if (last && axis == 1) continue;
    if (!step(axis)) return false;
  }
  return true;
}

std::string Array::shape_text() const {
  std::ostringstream out;
  out << '(';
  for (int i = 0; i < rank; ++i) out << shape[i] << (i + 1 < rank ? ", " : rank == 1 ? "," : "");
  out << ')';
  return out.str();
}

bool same_shape(const Array& a, const Array& b) {
  bool equal = a.rank == b.rank;
  for (int i = 0; equal && i < a.rank; ++i) equal = a.shape[i] == b.shape[i];
  return equal;
}

void value_error(const char* op, const std::string& text) {
  throw py::value_error("[" + std::string(op) + "] " + text);
}
void type_error(const char* op, const std::string& text) {
  throw py::type_error("[" + std::string(op) + "] " + text);
}

void float_error(const char* op, const char* name, DType got) {
#if defined(CONVGRAD_CUDA_ARRAYS)
  const char* const types = "float32, float64, bfloat16 or float16";
#else
  const char* const types = "float32 or float64";
#endif
  type_error(op, std::string(name) + " must be " + types + ". Got " + name_of(got) + ".");
}

Array array_arg(const char* op, const char* name, py::handle object, DType dtype) {
  Array a = array_arg(op, name, object);
  if (a.dtype != dtype)
    type_error(
        op, std::string(name) + " must be " + name_of(dtype) + ". Got " + name_of(a.dtype) + ".");
  return a;
}

namespace {

Array converted(const char* op, const Array& a, Layout layout) {
  Array out = empty(a.dtype, a.rank, a.shape, layout);
  StridedShape s{};
  s.rank = a.rank;
  // Axes in the order of the output's memory, so that the kernel's inner loop writes densely.
  int order[kMaxRank], n = 0;
  const bool last = layout == Layout::kChannelsLast && a.rank > 1;
  for (int axis = 0; axis < a.rank; ++axis)
    if (!last || axis != 1) order[n++] = axis;
  if (last) order[n++] = 1;
  for (int i = 0; i < a.rank; ++i) {
    s.size[i] = a.shape[order[i]];
    s.src_stride[i] = a.stride[order[i]];
    s.dst_stride[i] = out.stride[order[i]];
  }
  with_word_type(op, a.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) { ops<T>().copy(exec, s, a.as<const T>(), out.as<T>()); });
  });
  return out;
}

}  // namespace

Array dense(const char* op, const Array& a, Layout layout) {
  // Of 16-bit arrays kernels copy 16 bytes at once, and there is no smaller way for single
  // elements.
  const bool placed = !is_16_bit(a.dtype) || reinterpret_cast<uintptr_t>(a.data) % 16 == 0;
  return placed && a.is_dense(layout) ? a : converted(op, a, layout);
}

Array dense_arg(const char* op, const char* name, py::handle object, Layout layout) {
  Array a = array_arg(op, name, object);
  if (!is_float(a.dtype)) float_error(op, name, a.dtype);
  return dense(op, a, layout);
}

Array dense_arg_like(const char* op, const char* name, py::handle object, Layout layout,
                     const Array& like) {
  Array a = dense_arg(op, name, object, layout);
  if (a.dtype != like.dtype)
    type_error(op, std::string(name) + " must have the input's dtype, " + name_of(like.dtype) +
                       ". Got " + name_of(a.dtype) + ".");
  return a;
}

Array stat_arg_like(const char* op, const char* name, py::handle object, Layout layout,
                    const Array& like) {
  if (!is_16_bit(like.dtype)) return optional_arg_like(op, name, object, layout, like);
  if (object.is_none()) return {};
  Array a = dense_arg(op, name, object, layout);
  if (a.dtype != stat_of(like.dtype))
    type_error(op, std::string(name) + " must be " + name_of(stat_of(like.dtype)) + " for a " +
                       name_of(like.dtype) + " input. Got " + name_of(a.dtype) + ".");
  return a;
}

Array optional_arg_like(const char* op, const char* name, py::handle object, Layout layout,
                        const Array& like) {
  return object.is_none() ? Array{} : dense_arg_like(op, name, object, layout, like);
}

namespace {

int64_t checked_bytes(const Array& a) {
  int64_t bytes = size_of(a.dtype);
  bool overflow = false;
  for (int i = 0; i < a.rank; ++i) {
    if (a.shape[i] == 0) return 0;  // whatever the other axes
    overflow |= __builtin_mul_overflow(bytes, a.shape[i], &bytes);
  }
  if (overflow)
    value_error("empty", "The size of an array must fit 64 bits. Got shape " + a.shape_text() +
                             " of " + name_of(a.dtype) + ".");
  return bytes;
}

}  // namespace

Array empty(DType dtype, int rank, const int64_t* shape, Layout layout) {
  Array a;
  a.dtype = dtype;
  a.rank = rank;
  for (int i = 0; i < rank; ++i) a.shape[i] = shape[i];
  int64_t stride = 1;
  const bool last = layout == Layout::kChannelsLast && rank > 1;
  const auto step = [&](int axis) {
    a.stride[axis] = stride;
    stride *= shape[axis] > 0 ? shape[axis] : 1;
  };
  const int64_t bytes = checked_bytes(a);
  if (last) step(1);
  for (int axis = rank - 1; axis >= 0; --axis)
    if (!last || axis != 1) step(axis);
  allocate(a, bytes);
  return a;
}

py::object result(const Array& array, bool unbatched) {
  if (!unbatched) return array.object;
  return array.object[py::int_(0)];
}

Array out_arg(const char* op, py::handle object, const Array& like, Layout layout) {
  if (object.is_none()) return empty(like.dtype, like.rank, like.shape, layout);
  const Array out = array_arg(op, "out", object, like.dtype);
  if (!same_shape(out, like) || !out.is_dense(layout))
    value_error(op, "out must have shape " + like.shape_text() + ", dense in the result's layout." +
                        " Got shape " + out.shape_text() + ".");
  return out;
}

Array signal_arg(const char* op, const char* name, py::handle object, int spatial,
                 bool* unbatched) {
  Array a = array_arg(op, name, object);
  *unbatched = a.rank == spatial + 1;
  if (!*unbatched && a.rank != spatial + 2)
    value_error(op, std::string(name) + " must have " + std::to_string(spatial + 2) +
                        " axes, (N, C, ...), or " + std::to_string(spatial + 1) +
                        " without the batch. Got shape " + a.shape_text() + ".");
  if (*unbatched) {
    for (int i = a.rank; i > 0; --i) {
      a.shape[i] = a.shape[i - 1];
      a.stride[i] = a.stride[i - 1];
    }
    a.shape[0] = 1;
    ++a.rank;
  }
  if (!is_float(a.dtype)) float_error(op, name, a.dtype);
  return dense(op, a, Layout::kChannelsLast);
}

void int_tuple(const char* op, const char* name, py::handle value, int count, int64_t* out) {
  const auto as_int = [&](py::handle item) -> int64_t {
    const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(item.ptr()));
    if (!index) {
      PyErr_Clear();
      type_error(op, std::string(name) + " must be an int or a tuple of ints. Got " +
                         std::string(py::repr(value)) + ".");
    }
    const long long v = PyLong_AsLongLong(index.ptr());
    if (v == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      value_error(op, std::string(name) + " does not fit 64 bits. Got " +
                          std::string(py::repr(value)) + ".");
    }
    return v;
  };
  if (!PyTuple_Check(value.ptr()) && !PyList_Check(value.ptr())) {
    const int64_t v = as_int(value);
    for (int i = 0; i < count; ++i) out[i] = v;
    return;
  }
  const Py_ssize_t n = PySequence_Length(value.ptr());
  if (n != count && n != 1)
    value_error(op, std::string(name) + " must be an int or have " + std::to_string(count) +
                        " entries. Got " + std::string(py::repr(value)) + ".");
  for (int i = 0; i < count; ++i)
    out[i] =
        as_int(py::reinterpret_steal<py::object>(PySequence_GetItem(value.ptr(), n == 1 ? 0 : i)));
}

}  // namespace convgrad::python
