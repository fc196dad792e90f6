// array.h for CuPy arrays on CUDA devices. The array library is handed over by use_library(): CuPy,
// or in tests of the simulator what stands in for it. All of it is called by attributes.
#include <cstring>
#include <mutex>
#include <set>

#include "array.h"
#include "cuda/device.h"
#include "numpy_dtype.h"

namespace convgrad::python {
namespace {

// ---- the array library ----

struct Names {
  PyObject *data, *ptr, *device_id, *shape, *strides, *dtype;
};

struct Library {
  py::object ndarray, alloc, set_device, current_stream;
  py::object dtype[kDTypes];  // by DType; bfloat16's once it is needed
  Names name;
};
Library* library = nullptr;  // never freed: it would outlive the interpreter

const Library& lib() {
  if (library == nullptr)
    throw std::runtime_error("[convgrad] The CUDA backend has no array library yet.");
  return *library;
}

void use_library(const py::module_& xp) {
  const auto name = [](const char* text) { return PyUnicode_InternFromString(text); };
  auto* l = new Library;
  const py::object cuda = xp.attr("cuda");
  l->ndarray = xp.attr("ndarray");
  l->alloc = cuda.attr("alloc");
  l->set_device = cuda.attr("runtime").attr("setDevice");
  l->current_stream = cuda.attr("get_current_stream");
  for (int i = 0; i < kDTypes; ++i)
    if (const auto dtype = static_cast<DType>(i); dtype != DType::kBFloat16)
      l->dtype[i] = py::dtype(numpy_num(dtype));
  l->name = {name("data"),  name("ptr"),     name("device_id"),
             name("shape"), name("strides"), name("dtype")};
  library = l;
}

// NumPy's, which the array library uses too.
const py::object& numpy_dtype(DType dtype) {
  py::object& found = library->dtype[static_cast<int>(dtype)];
  if (!found) found = py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
  return found;
}

py::object attribute(py::handle object, PyObject* name) {
  PyObject* value = PyObject_GetAttr(object.ptr(), name);
  if (value == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}
void* pointer(py::handle memory) {  // of a MemoryPointer
  const py::object address = attribute(memory, lib().name.ptr);
  return PyLong_AsVoidPtr(address.ptr());
}

// ---- the call in progress, per thread ----

thread_local Call* call = nullptr;

// The library has a runtime of its own, which must see the change too.
void switch_device(const char* op, int device) {
  lib().set_device(device);
  cuda::set_device(op, device);
}

// The device of the step that this thread captures, or -1: launches elsewhere would not be
// captured.
thread_local int captured_device = -1;

void enter_device(Call& c, int device) {
  if (captured_device >= 0 && device != captured_device)
    throw std::runtime_error("[" + std::string(c.op) + "] A captured step runs on one GPU, cuda:" +
                             std::to_string(captured_device) +
                             ". Got an array of cuda:" + std::to_string(device) + ".");
  c.device = device;
  const int current = cuda::current_device(c.op);
  if (current == device) return;
  switch_device(c.op, device);
  c.before = current;
}

// `op` as long as the process lives: an error of the device may name it long after the call.
const char* lasting(const char* op) {
  static std::mutex mutex;
  static auto* const names = new std::set<std::string>;
  thread_local const char* last = "";
  if (std::strcmp(last, op) == 0) return last;
  const std::lock_guard<std::mutex> lock(mutex);
  return last = names->insert(op).first->c_str();
}

// ---- errors that kernels report ----

// ValueError if a kernel on the device has reported a value. What was launched must have ended.
void raise_errors(int device) {
  ValueError* e = cuda::errors_of("raise_errors", device);
  if (e->raised == 0 || e->op == nullptr) return;
  const ValueError found = *e;
  *e = ValueError{};
  const std::string low = std::to_string(found.low), high = std::to_string(found.high);
  const std::string range =
      found.is_real ? "from " + low + " to " + high : "in [" + low + ", " + high + ")";
  const std::string value =
      found.is_real ? std::string(py::str(py::float_(found.real))) : std::to_string(found.value);
  value_error(found.op, "A value must be " + range + ". Got " + value + " (found on cuda:" +
                            std::to_string(device) + " after the call had returned).");
}

// Waits for all work on the device, and raises what it reports.
void synchronize(int device) {
  const Call here("synchronize");
  enter_device(*call, device);
  {
    const py::gil_scoped_release unlocked;
    cuda::synchronize("synchronize");
  }
  raise_errors(device);
}

// A new array of the device `device` with the values of a small dense NumPy array, copied so that
// a captured graph keeps them; see cuda::upload().
py::object to_device(const py::array& host, int device) {
  enter_device(*call, device);
  Array a;
  if (host.ndim() > kMaxRank || !dtype_from_numpy(host.dtype(), &a.dtype) ||
      !(host.flags() & py::array::c_style))
    type_error("to_device", "The array must be dense, of a dtype that tensors have. Got " +
                                std::string(py::str(host.dtype())) + ".");
  for (int i = 0; i < host.ndim(); ++i) a.shape[i] = host.shape(i);
  a = empty(a.dtype, static_cast<int>(host.ndim()), a.shape, Layout::kC);
  cuda::upload(new_exec(), host.data(), host.nbytes(), a.data);
  return a.object;
}

// The bytes of a NumPy array into a dense array of as many bytes, by kernels; see cuda::upload().
void upload_into(const py::array& host, py::handle array_) {
  const Array a = array_arg("upload_into", "array", array_);
  if (!(host.flags() & py::array::c_style) || !a.is_dense(Layout::kC) ||
      host.nbytes() != a.size() * size_of(a.dtype) || host.nbytes() % 4 != 0)
    value_error("upload_into", "The arrays must be dense and of equal bytes. Got " +
                                   std::to_string(host.nbytes()) + " for " + a.shape_text() + " " +
                                   name_of(a.dtype) + ".");
  cuda::upload(new_exec(), host.data(), host.nbytes(), a.data);
}

}  // namespace

// ---- array.h ----

Array array_arg(const char* op, const char* name, py::handle object) {
  const Library& l = lib();
  const int is_array = PyObject_IsInstance(object.ptr(), l.ndarray.ptr());
  if (is_array < 0) throw py::error_already_set();
  if (is_array == 0)
    type_error(op, std::string(name) + " must be a CuPy array, on the GPU like the others. Got " +
                       Py_TYPE(object.ptr())->tp_name + ".");
  Array a;
  a.object = py::reinterpret_borrow<py::object>(object);
  const py::object memory = attribute(object, l.name.data);
  const int device = py::cast<int>(attribute(memory, l.name.device_id));
  call->op = op;
  if (call->device < 0) {
    enter_device(*call, device);
  } else if (call->device != device) {
    value_error(op, "All arrays must be on one device. Got cuda:" + std::to_string(call->device) +
                        " and, for " + name + ", cuda:" + std::to_string(device) + ".");
  }
  a.data = pointer(memory);
  const py::dtype descr =
      py::reinterpret_steal<py::dtype>(attribute(object, l.name.dtype).release());
  if (!dtype_from_numpy(descr, &a.dtype))
    type_error(op, std::string(name) + " must be of a float type or an integer. Got dtype " +
                       std::string(py::str(descr)) + ".");
  const py::tuple shape = attribute(object, l.name.shape);
  const py::tuple strides = attribute(object, l.name.strides);
  a.rank = static_cast<int>(shape.size());
  if (a.rank > kMaxRank)
    value_error(op, std::string(name) + " must have at most " + std::to_string(kMaxRank) +
                        " axes. Got " + std::to_string(a.rank) + ".");
  const int64_t item = size_of(a.dtype);
  bool aligned = reinterpret_cast<intptr_t>(a.data) % item == 0;
  for (int i = 0; i < a.rank; ++i) {
    a.shape[i] = PyLong_AsLongLong(shape[i].ptr());
    const int64_t bytes = PyLong_AsLongLong(strides[i].ptr());
    aligned = aligned && bytes % item == 0;
    a.stride[i] = bytes / item;
  }
  if (!aligned) type_error(op, std::string(name) + " must be aligned to its elements' size.");
  return a;
}

void allocate(Array& a, int64_t bytes) {
  const Library& l = lib();
  py::tuple shape(a.rank), strides(a.rank);
  for (int i = 0; i < a.rank; ++i) {
    shape[i] = py::int_(a.shape[i]);
    strides[i] = py::int_(a.stride[i] * size_of(a.dtype));
  }
  const py::object memory = l.alloc(bytes);  // MemoryError says how much was asked for
  a.data = pointer(memory);
  a.object = l.ndarray(shape, numpy_dtype(a.dtype), memory, strides);
}

Call::Call(const char* name) : op(name), outer(call) { call = this; }
Call::~Call() {
  call = outer;
  if (before < 0) return;
  try {
    switch_device(op, before);
  } catch (const std::exception&) {  // it has been reported by the call itself
  }
}

Exec new_exec() {
  Exec exec;
  exec.op = lasting(call->op);
  if (call->device < 0) enter_device(*call, cuda::current_device(exec.op));
  exec.stream = pointer(lib().current_stream());
  exec.errors = cuda::errors_of(exec.op, call->device);
  return exec;
}

Workspace::Workspace(int64_t bytes) : data_(nullptr) {
  if (bytes <= 0) return;
  owner_ = lib().alloc(bytes);
  data_ = pointer(owner_);
}
Workspace::~Workspace() = default;

Uploaded::Uploaded(const Exec& exec, const void* host, int64_t bytes) : data_(nullptr) {
  if (bytes <= 0) return;
  owner_ = lib().alloc((bytes + 3) / 4 * 4);
  void* const memory = pointer(owner_);
  cuda::upload(exec, host, bytes, memory);
  data_ = memory;
}

void bind_backend(py::module_& m) {
  m.def("use_library", &use_library);
  m.def("device_count", [] { return cuda::device_count("device_count"); });
  m.def("raise_errors", &raise_errors);
  m.def("synchronize", &synchronize);
  def(m, "to_device", &to_device);
  def(m, "upload_into", &upload_into);
  m.def("set_captured_device", [](int device) { captured_device = device; });
  ops<float>();  // an empty slot is an import error
  ops<double>();
  ops<bfloat16>();
  ops<float16>();
}

}  // namespace convgrad::python
