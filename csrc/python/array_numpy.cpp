// array.h for NumPy arrays on the CPU.
#include <pybind11/stl.h>

#include <atomic>

#include "array.h"
#include "cpu/block_cache.h"
#include "cpu/dispatch.h"
#include "cpu/thread_pool.h"
#include "numpy_dtype.h"

namespace convgrad::python {
namespace {

std::atomic<int> threads{0};  // 0: not asked for yet

py::object pooled_array(DType dtype, int rank, const int64_t* shape, const int64_t* byte_strides,
                        int64_t bytes) {
  void* block = cpu::allocate_block(bytes);
  PyObject* base = PyCapsule_New(block, nullptr, [](PyObject* capsule) {
    cpu::release_block(PyCapsule_GetPointer(capsule, nullptr));
  });
  if (base == nullptr) {
    cpu::release_block(block);
    throw py::error_already_set();
  }
  const py::object owner = py::reinterpret_steal<py::object>(base);
  Py_intptr_t dims[kMaxRank], steps[kMaxRank];
  for (int i = 0; i < rank; ++i) {
    dims[i] = shape[i];
    steps[i] = byte_strides[i];
  }
  auto& api = py::detail::npy_api::get();
  PyObject* descr = api.PyArray_DescrFromType_(numpy_num(dtype));
  PyObject* array = api.PyArray_NewFromDescr_(
      api.PyArray_Type_, descr, rank, dims, steps, block,
      py::detail::npy_api::NPY_ARRAY_WRITEABLE_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_, nullptr);
  if (array == nullptr) throw py::error_already_set();
  py::object out = py::reinterpret_steal<py::object>(array);
  api.PyArray_SetBaseObject_(array, owner.inc_ref().ptr());
  return out;
}

}  // namespace

Array array_arg(const char* op, const char* name, py::handle object) {
  using api = py::detail::npy_api;
  if (!api::get().PyArray_Check_(object.ptr()))
    type_error(op, std::string(name) + " must be a NumPy array on the CPU. Got " +
                       Py_TYPE(object.ptr())->tp_name + ".");
  const auto* proxy = py::detail::array_proxy(object.ptr());
  Array a;
  a.object = py::reinterpret_borrow<py::object>(object);
  a.data = proxy->data;
  a.rank = proxy->nd;
  if (a.rank > kMaxRank)
    value_error(op, std::string(name) + " must have at most " + std::to_string(kMaxRank) +
                        " axes. Got " + std::to_string(a.rank) + ".");
  const py::dtype descr = py::reinterpret_borrow<py::dtype>(proxy->descr);
  const bool known = dtype_from_numpy(descr, &a.dtype);
  if (known && is_16_bit(a.dtype))
    type_error(op, std::string(name) + " is " + name_of(a.dtype) + ", which CUDA alone computes " +
                       "with: on the CPU it must be float32 or float64.");
  if (!known || descr.byteorder() == '>' || !(proxy->flags & api::NPY_ARRAY_ALIGNED_))
    type_error(op, std::string(name) + " must be float32, float64 or an integer, native and " +
                       "aligned. Got dtype " + std::string(py::str(descr)) + ".");
  const int64_t item = size_of(a.dtype);
  for (int i = 0; i < a.rank; ++i) {
    a.shape[i] = proxy->dimensions[i];
    a.stride[i] = proxy->strides[i] / item;
  }
  return a;
}

void allocate(Array& a, int64_t bytes) {
  int64_t steps[kMaxRank];
  for (int i = 0; i < a.rank; ++i) steps[i] = a.stride[i] * size_of(a.dtype);
  a.object = pooled_array(a.dtype, a.rank, a.shape, steps, bytes);
  a.data = py::detail::array_proxy(a.object.ptr())->data;
}

Call::Call(const char*) {}
Call::~Call() = default;

int num_threads() {
  int n = threads.load(std::memory_order_relaxed);
  if (n == 0) {
    n = cpu::default_threads();
    threads.store(n, std::memory_order_relaxed);
  }
  return n;
}
void set_num_threads(int n) {
  if (n < 1 || n > 256)
    value_error("set_num_threads", "n must be from 1 to 256. Got " + std::to_string(n) + ".");
  threads.store(n, std::memory_order_relaxed);
}

Exec new_exec() {
  Exec exec;
  exec.threads = num_threads();
  return exec;
}

Workspace::Workspace(int64_t bytes) : data_(bytes > 0 ? cpu::allocate_block(bytes) : nullptr) {}
Workspace::~Workspace() {
  if (data_ != nullptr) cpu::release_block(data_);
}

Uploaded::Uploaded(const Exec&, const void* host, int64_t) : data_(host) {}

void bind_backend(py::module_& m) {
  m.def("get_num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("n"));
  m.def("isa_name", &cpu::isa_name);
  m.def("isa_names", &cpu::isa_names);
  m.def("empty_cache", &cpu::empty_block_cache);
  m.def("poison_blocks", &cpu::poison_blocks);
  m.def("broken_guards", &cpu::broken_guards);
  m.def("memory_stats", [] {
    const cpu::BlockStats s = cpu::block_stats();
    py::dict out;
    out["live_bytes"] = s.live_bytes;
    out["cached_bytes"] = s.cached_bytes;
    out["peak_live_bytes"] = s.peak_live_bytes;
    out["fresh_bytes"] = s.fresh_bytes;
    return out;
  });
  ops<float>();  // a wrong CONVGRAD_ISA or an empty slot is an import error
  ops<double>();
}

}  // namespace convgrad::python
