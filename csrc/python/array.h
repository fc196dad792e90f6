// Arrays on their way in and out of the bindings: what every backend's arrays have in common.
//
// A binding takes `py::handle`s, wraps each in Array (which checks and describes it), asks for
// outputs by empty_*(), and runs a kernel through run(). Each backend implements the few functions
// at the end (array_numpy.cpp, array_cupy.cpp).
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "ops.h"

namespace convgrad::python {

namespace py = pybind11;

enum class DType { kFloat32, kFloat64, kBFloat16, kFloat16, kInt64, kInt32, kUInt8, kBool };
constexpr int kDTypes = 8;
const char* name_of(DType dtype);
DType dtype_named(const char* op, const std::string& name);
int64_t size_of(DType dtype);
constexpr bool is_16_bit(DType dtype) {
  return dtype == DType::kBFloat16 || dtype == DType::kFloat16;
}
constexpr bool is_float(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 || is_16_bit(dtype);
}
// Of Stat<T>, for arrays of T.
constexpr DType stat_of(DType dtype) { return is_16_bit(dtype) ? DType::kFloat32 : dtype; }
template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::kFloat32;
}
template <>
constexpr DType dtype_of<double>() {
  return DType::kFloat64;
}
template <>
constexpr DType dtype_of<bfloat16>() {
  return DType::kBFloat16;
}
template <>
constexpr DType dtype_of<float16>() {
  return DType::kFloat16;
}
template <>
constexpr DType dtype_of<int64_t>() {
  return DType::kInt64;
}
template <>
constexpr DType dtype_of<int32_t>() {
  return DType::kInt32;
}
template <>
constexpr DType dtype_of<uint8_t>() {
  return DType::kUInt8;
}

// How the elements of an array lie in memory, densely.
enum class Layout {
  kChannelsLast,  // axis order 0, 2, 3, ..., 1: activations and weights
  kC,             // axis order 0, 1, 2, ...: matrices, rows
};

// A described array. Strides are in elements and may be negative or zero.
struct Array {
  py::object object;  // keeps the memory alive
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int rank = 0;
  int64_t shape[kMaxRank] = {}, stride[kMaxRank] = {};

  int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  explicit operator bool() const { return data != nullptr || rank > 0; }
  bool is_dense(Layout layout) const;
  std::string shape_text() const;  // "(2, 3)"
};

bool same_shape(const Array& a, const Array& b);

// Throws ValueError, resp. TypeError, "[op] " + text.
[[noreturn]] void value_error(const char* op, const std::string& text);
[[noreturn]] void type_error(const char* op, const std::string& text);

// The array behind `object`; TypeError unless it is of this backend, of a type above (on the CPU
// none of 16 bits), of native byte order and aligned.
Array array_arg(const char* op, const char* name, py::handle object);
// The same, of exactly `dtype`.
Array array_arg(const char* op, const char* name, py::handle object, DType dtype);
// The same, of a float type, and dense in `layout`: converted into a new array where it is not.
Array dense_arg(const char* op, const char* name, py::handle object, Layout layout);
// dense_arg whose dtype must be `like`'s.
Array dense_arg_like(const char* op, const char* name, py::handle object, Layout layout,
                     const Array& like);
// The same, or an empty Array for None.
Array optional_arg_like(const char* op, const char* name, py::handle object, Layout layout,
                        const Array& like);
// The same of the dtype of what the kernels keep of `like`'s values: float32 for 16-bit types.
Array stat_arg_like(const char* op, const char* name, py::handle object, Layout layout,
                    const Array& like);
// dense_arg for a signal with or without batch axis: rank spatial + 2 or spatial + 1. The latter
// comes back with a leading axis of 1, and unbatched = true.
Array signal_arg(const char* op, const char* name, py::handle object, int spatial, bool* unbatched);

// The array itself if it is dense in `layout`, and of 16 bits at a multiple of 16 bytes, else a
// converted copy; any type of 2 bytes or more.
Array dense(const char* op, const Array& array, Layout layout);

// Uninitialised arrays from the backend's memory pool.
Array empty(DType dtype, int rank, const int64_t* shape, Layout layout);
// Where to write a result of `like`'s dtype and shape: `object`, which must be dense in `layout`,
// or a new array for None.
Array out_arg(const char* op, py::handle object, const Array& like, Layout layout);
// The array as the caller sees it; unbatched drops the leading axis (of length 1).
py::object result(const Array& array, bool unbatched = false);

// An int, or a sequence of `count` ints, into out[0 .. count).
void int_tuple(const char* op, const char* name, py::handle value, int count, int64_t* out);

// "The arrays must be float32 or float64. Got int64."
[[noreturn]] void float_error(const char* op, const char* name, DType got);

// Calls fn(T{}) with the float type; TypeError for any other dtype.
template <class Fn>
decltype(auto) with_float_type(const char* op, DType dtype, Fn&& fn) {
  if (dtype == DType::kFloat32) return fn(float{});
  if (dtype == DType::kFloat64) return fn(double{});
#if defined(CONVGRAD_CUDA_ARRAYS)
  if (dtype == DType::kBFloat16) return fn(bfloat16{});
  if (dtype == DType::kFloat16) return fn(float16{});
#endif
  float_error(op, "The arrays", dtype);
}

// The same for moves, which look at no value: with a T of the element's size, so that integers of 4
// and 8 bytes go through the float kernels.
template <class Fn>
void with_word_type(const char* op, DType dtype, Fn&& fn) {
#if defined(CONVGRAD_CUDA_ARRAYS)
  if (size_of(dtype) == 2) return fn(bfloat16{});
#endif
  if (size_of(dtype) == 4) {
    fn(float{});
  } else if (size_of(dtype) == 8) {
    fn(double{});
  } else {
    type_error(op, std::string("The arrays must have 4 or 8 bytes per element. Got ") +
                       name_of(dtype) + ".");
  }
}

// Whether CUDA's products of float32 numbers may be rounded to TF32; what set_tf32 was told, unless
// set_exact_algorithms forbids it.
bool use_tf32();

// ---- the backend's ----
// Memory for `a`, which is described already: its object and data. Called by empty().
void allocate(Array& a, int64_t bytes);

// One call of a binding. On CUDA its first array decides the device, which is the current one until
// the call ends; an array of another device is a ValueError.
class Call {
 public:
  explicit Call(const char* name);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  const char* op = "";    // as errors name it
  int device = -1;        // CUDA: its arrays'; -1: none seen yet
  int before = -1;        // CUDA: the current device to go back to; -1: it is the same
  Call* outer = nullptr;  // CUDA: a destructor that Python runs meanwhile may make another call
};

// Where to run what belongs to the call, but for the workspace.
Exec new_exec();

// A workspace of `bytes`, held as long as it lives.
class Workspace {
 public:
  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
  py::object owner_;
};

// Host memory where kernels can read it: on the CPU that memory itself, on CUDA a copy that is made
// on the stream; the host's may be gone at once.
class Uploaded {
 public:
  Uploaded(const Exec& exec, const void* host, int64_t bytes);
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data_);
  }

 private:
  const void* data_;
  py::object owner_;
};
template <class T>
Uploaded upload(const T* host, int64_t count = 1) {
  return {new_exec(), host, count * int64_t{sizeof(T)}};
}

// kernel(exec) with the GIL dropped; `workspace_bytes(threads)` tells the workspace it needs.
template <class WorkspaceBytes, class Kernel>
void run(const WorkspaceBytes& workspace_bytes, const Kernel& kernel) {
  Exec exec = new_exec();
  const Workspace workspace(workspace_bytes(exec.threads));
  exec.workspace = workspace.data();
  py::gil_scoped_release unlocked;
  kernel(static_cast<const Exec&>(exec));
}
template <class Kernel>
void run(const Kernel& kernel) {
  run([](int) { return int64_t{0}; }, kernel);
}

// m.def for functions that take arrays: each call of `fn` is a Call.
template <class R, class... A, class Fn>
auto in_call(const char* name, const Fn& fn, R (*)(A...)) {
  return [name, fn](A... args) -> R {
    const Call call(name);
    return fn(std::forward<A>(args)...);
  };
}
template <class Fn, class... Extra>
void def(py::module_& m, const char* name, const Fn& fn, const Extra&... extra) {
  using Signature = py::detail::function_signature_t<Fn>;
  m.def(name, in_call(name, fn, static_cast<Signature*>(nullptr)), extra...);
}

void bind_backend(py::module_& m);  // CPU: threads, memory, instruction set; CUDA: devices

}  // namespace convgrad::python
