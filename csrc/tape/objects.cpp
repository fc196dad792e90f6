// TensorBase and OpBase: memory, garbage collection and attributes.
#include "objects.h"

#include <structmember.h>

#include <cstddef>
#include <cstring>
#include <new>
#include <utility>

namespace convgrad::tape {

PyTypeObject *tensor_base, *op_base;
Python python;
thread_local bool recording = true;

py::object borrowed(PyObject* object) { return py::reinterpret_borrow<py::object>(object); }
py::object owned(PyObject* object) {
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

void set(PyObject*& slot, py::object value) {
  Py_XDECREF(std::exchange(slot, value.release().ptr()));
}

bool flag(PyObject* object, PyObject* name) {
  const py::object value = owned(PyObject_GetAttr(object, name));
  const int truth = PyObject_IsTrue(value.ptr());
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

PyObject* source_of(PyObject* tensor) {
  if (!is_tensor(tensor)) throw py::type_error("[backward] The graph starts at tensors.");
  PyObject* node = as_tensor(tensor)->node;
  if (is_none(node)) return tensor;
  if (!PyObject_TypeCheck(node, op_base)) throw py::type_error("[Tensor] node must be an Op.");
  return node;
}

Py_ssize_t count_of(PyObject* version) {
  if (version == nullptr || !PyList_Check(version) || PyList_GET_SIZE(version) != 1)
    throw py::type_error("[Tensor] version must be a list of one int.");
  const Py_ssize_t count = PyLong_AsSsize_t(PyList_GET_ITEM(version, 0));
  if (count == -1 && PyErr_Occurred()) throw py::error_already_set();
  return count;
}

namespace {

PyObject* none() { return Py_NewRef(Py_None); }

void free_object(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

// ---- TensorBase ----

PyObject* tensor_new(PyTypeObject* type, PyObject*, PyObject*) {
  PyObject* self = type->tp_alloc(type, 0);
  if (self == nullptr) return nullptr;
  Tensor* t = as_tensor(self);
  t->array = none();
  t->node = none();
  t->grad = none();
  t->hooks = none();
  t->post_hooks = none();
  t->version = PyList_New(1);
  if (t->version == nullptr) {
    Py_DECREF(self);
    return nullptr;
  }
  PyList_SET_ITEM(t->version, 0, PyLong_FromLong(0));
  return self;
}

int tensor_init(PyObject* self, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"array", "requires_grad", nullptr};
  PyObject* array;
  int requires_grad = 0;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|p:Tensor", const_cast<char**>(names), &array,
                                   &requires_grad))
    return -1;
  set(as_tensor(self)->array, borrowed(array));
  as_tensor(self)->requires_grad = requires_grad != 0;
  return 0;
}

int tensor_traverse(PyObject* self, visitproc visit, void* arg) {
  const Tensor* t = as_tensor(self);
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(t->array);
  Py_VISIT(t->node);
  Py_VISIT(t->grad);
  Py_VISIT(t->hooks);
  Py_VISIT(t->post_hooks);
  return 0;
}

int tensor_clear(PyObject* self) {
  Tensor* t = as_tensor(self);
  Py_CLEAR(t->array);
  Py_CLEAR(t->node);
  Py_CLEAR(t->grad);
  Py_CLEAR(t->version);
  Py_CLEAR(t->hooks);
  Py_CLEAR(t->post_hooks);
  return 0;
}

void tensor_free(PyObject* self) {
  PyObject_GC_UnTrack(self);
  if (as_tensor(self)->weakrefs != nullptr) PyObject_ClearWeakRefs(self);
  tensor_clear(self);
  free_object(self);
}

PyMemberDef tensor_members[] = {
    {"array", T_OBJECT_EX, offsetof(Tensor, array), 0, nullptr},
    {"node", T_OBJECT_EX, offsetof(Tensor, node), 0, nullptr},
    {"index", T_PYSSIZET, offsetof(Tensor, index), 0, nullptr},
    {"grad", T_OBJECT_EX, offsetof(Tensor, grad), 0, nullptr},
    {"version", T_OBJECT_EX, offsetof(Tensor, version), 0, nullptr},
    {"hooks", T_OBJECT_EX, offsetof(Tensor, hooks), 0, nullptr},
    {"post_hooks", T_OBJECT_EX, offsetof(Tensor, post_hooks), 0, nullptr},
    {"_requires_grad", T_BOOL, offsetof(Tensor, requires_grad), 0, nullptr},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Tensor, weakrefs), READONLY, nullptr},
    {},
};

PyType_Slot tensor_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(tensor_new)},
    {Py_tp_init, reinterpret_cast<void*>(tensor_init)},
    {Py_tp_traverse, reinterpret_cast<void*>(tensor_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(tensor_clear)},
    {Py_tp_dealloc, reinterpret_cast<void*>(tensor_free)},
    {Py_tp_members, tensor_members},
    {},
};

// ---- OpBase ----

PyObject* op_new(PyTypeObject* type, PyObject*, PyObject*) {
  PyObject* self = type->tp_alloc(type, 0);
  if (self == nullptr) return nullptr;
  Op* op = as_op(self);
  op->saved = PyTuple_New(0);  // a constant of the interpreter's, as is None
  op->needs = Py_NewRef(op->saved);
  op->edges = none();
  op->hooks = none();
  op->outputs = 1;
  new (&op->seen) std::vector<Seen>();
  return self;
}

int op_traverse(PyObject* self, visitproc visit, void* arg) {
  const Op* op = as_op(self);
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(op->saved);
  Py_VISIT(op->edges);
  Py_VISIT(op->hooks);
  return 0;
}

int op_clear(PyObject* self) {
  Op* op = as_op(self);
  Py_CLEAR(op->saved);
  Py_CLEAR(op->needs);
  Py_CLEAR(op->edges);
  Py_CLEAR(op->hooks);
  return 0;
}

void op_free(PyObject* self) {
  PyObject_GC_UnTrack(self);
  op_clear(self);
  as_op(self)->seen.~vector();
  free_object(self);
}

PyMemberDef op_members[] = {
    {"saved", T_OBJECT_EX, offsetof(Op, saved), 0, nullptr},
    {"needs", T_OBJECT_EX, offsetof(Op, needs), READONLY, nullptr},
    {"edges", T_OBJECT_EX, offsetof(Op, edges), READONLY, nullptr},
    {"hooks", T_OBJECT_EX, offsetof(Op, hooks), 0, nullptr},
    {"after_relu", T_BOOL, offsetof(Op, after_relu), 0, nullptr},
    {"masks", T_BOOL, offsetof(Op, masks), 0, nullptr},
    {"owned", T_BOOL, offsetof(Op, owned), 0, nullptr},
    {"masked", T_BOOL, offsetof(Op, masked), 0, nullptr},
    {},
};

PyMethodDef op_methods[] = {
    {"apply", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(apply)),
     METH_CLASS | METH_FASTCALL, nullptr},
    {},
};

PyType_Slot op_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(op_new)},
    {Py_tp_traverse, reinterpret_cast<void*>(op_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(op_clear)},
    {Py_tp_dealloc, reinterpret_cast<void*>(op_free)},
    {Py_tp_members, op_members},
    {Py_tp_methods, op_methods},
    {},
};

// `name` with its module, a literal: Python 3.10 keeps the pointer.
PyTypeObject* add_type(py::module_& m, const char* name, PyType_Slot* slots, size_t size) {
  const unsigned flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC;
  PyType_Spec spec = {name, static_cast<int>(size), 0, flags, slots};
  py::object type = owned(PyType_FromSpec(&spec));
  m.add_object(std::strrchr(name, '.') + 1, type);
  return reinterpret_cast<PyTypeObject*>(type.release().ptr());  // never freed
}

}  // namespace

py::object new_tensor(PyTypeObject* type, py::object array) {
  py::object self = owned(tensor_new(type, nullptr, nullptr));
  set(as_tensor(self.ptr())->array, std::move(array));
  return self;
}

void add_types(py::module_& m) {
  tensor_base = add_type(m, "convgrad._tape.TensorBase", tensor_slots, sizeof(Tensor));
  op_base = add_type(m, "convgrad._tape.OpBase", op_slots, sizeof(Op));
}

}  // namespace convgrad::tape
