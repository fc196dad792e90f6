// What the tape is made of: the data of a tensor and of an operation, which Python's classes of
// these names extend (convgrad/tensor.py, convgrad/autograd.py).
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

namespace convgrad::tape {

namespace py = pybind11;

// An array with a place on the tape. Every pointer but `weakrefs` is an owned reference, or null
// where Python code has deleted the attribute.
struct Tensor {
  PyObject_HEAD PyObject* array;  // the backend's own, or a deferred.Pending in a Deferred
  PyObject* node;                 // the operation that made it; None for a leaf
  PyObject* grad;                 // a Tensor or None
  PyObject* version;     // [n], shared by tensors that share memory; changes in place count it up
  PyObject* hooks;       // {id: hook} of a leaf's gradient, or None
  PyObject* post_hooks;  // {id: hook} for when `grad` is complete, or None
  PyObject* weakrefs;
  Py_ssize_t index;  // among the node's outputs
  bool requires_grad;
};

// An array that an operation got or made, and its version then.
struct Seen {
  py::object version;
  Py_ssize_t count;
  const void* array;  // its address, to tell whether it is among those that were saved
};

// One call of an operation, a node of the tape; autograd.Op says what the fields mean.
struct Op {
  PyObject_HEAD PyObject* saved;  // arrays for the backward pass
  PyObject* needs;                // per input: whether it wants a gradient
  PyObject* edges;  // per input: (Op or leaf Tensor, output index) or None; None: not recorded
  PyObject* hooks;  // {output index: {id: hook}} or None
  Py_ssize_t outputs;
  bool after_relu, masks, owned, masked;
  std::vector<Seen> seen;
};

// The types of these structs, bases of the Python classes.
extern PyTypeObject *tensor_base, *op_base;

inline bool is_none(const PyObject* object) { return object == nullptr || object == Py_None; }
inline bool is_tensor(PyObject* object) { return PyObject_TypeCheck(object, tensor_base); }
inline Tensor* as_tensor(PyObject* object) { return reinterpret_cast<Tensor*>(object); }
inline Op* as_op(PyObject* object) { return reinterpret_cast<Op*>(object); }

// What the tape uses of the Python side: classes, and functions for what is rare.
struct Python {
  PyTypeObject *tensor, *deferred, *pending;
  PyObject* refused;  // (error, op class, inputs) -> the exception to raise instead, or None
  PyObject* total;    // (sum so far, gradient, whether the sum may be overwritten) -> sum
  PyObject* hooked;   // (op, [gradient per output]) -> the same after the hooks
  PyObject* collect;  // (op or leaf, [gradient per output], wanted) -> None
};
extern Python python;

py::object borrowed(PyObject* object);
// Takes over a new reference; throws the Python error if there is none.
py::object owned(PyObject* object);
// slot = value, for a field of the structs above.
void set(PyObject*& slot, py::object value);
// A tensor of `type`, which extends tensor_base, with this array and no history.
py::object new_tensor(PyTypeObject* type, py::object array);
// Whether object.name is true.
bool flag(PyObject* object, PyObject* name);
// Where a tensor's gradient goes: the Op that made it, or the leaf itself.
PyObject* source_of(PyObject* tensor);
// The number in a tensor's version.
Py_ssize_t count_of(PyObject* version);

// Whether operations are recorded, in this thread.
extern thread_local bool recording;

void add_types(py::module_& m);  // TensorBase and OpBase

// Op.apply: see autograd.Op.
PyObject* apply(PyObject* cls, PyObject* const* args, Py_ssize_t count);
// Walks the graph back from tensors, see autograd.run_backward.
void walk(const py::sequence& tensors, const py::sequence& gradients, bool retain_graph,
          const py::object& wanted);

}  // namespace convgrad::tape
