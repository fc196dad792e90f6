// Op.apply: runs an operation forward, and records it if an input wants a gradient.
#include "objects.h"

namespace convgrad::tape {
namespace {

// A call on its way: what apply has found out about the inputs.
class Call {
 public:
  Call(PyTypeObject* cls, PyObject* inputs, PyObject* const* params, Py_ssize_t param_count)
      : cls_(reinterpret_cast<PyObject*>(cls)),
        inputs_(owned(PySequence_Fast(inputs, "[apply] inputs must be a sequence."))),
        node_(owned(PyObject_CallNoArgs(cls_))),
        params_(params),
        param_count_(param_count) {
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(inputs_.ptr());
    arrays_.reserve(count);
    read_inputs(count);
  }

  py::object run() {
    const py::object out = forward();
    py::object result;
    if (PyTuple_CheckExact(out.ptr())) {
      result = several(out);
    } else {
      result = tensor_of(out);
      finish(&out, &result, 1);
    }
    return result;
  }

 private:
  Op* node() const { return as_op(node_.ptr()); }
  PyObject* input(size_t i) const { return PySequence_Fast_GET_ITEM(inputs_.ptr(), i); }

  // arrays, needs and edges, one each per input.
  void read_inputs(Py_ssize_t count) {
    static PyObject* const absorbs_name = PyUnicode_InternFromString("absorbs");
    static PyObject* const can_mask_name = PyUnicode_InternFromString("can_mask");
    static PyObject* const rectified_name = PyUnicode_InternFromString("rectified");
    const bool absorbs = flag(cls_, absorbs_name);
    py::object needs = owned(PyTuple_New(count)), edges = owned(PyTuple_New(count));
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* value = input(i);
      const bool is_array = is_tensor(value);
      const bool needed = is_array && recording && as_tensor(value)->requires_grad;
      arrays_.push_back(is_array ? array_of(value, absorbs) : borrowed(value));
      PyTuple_SET_ITEM(needs.ptr(), i, PyBool_FromLong(needed));
      PyTuple_SET_ITEM(edges.ptr(), i,
                       needed ? edge_to(value).release().ptr() : Py_NewRef(Py_None));
      recorded_ |= needed;
    }
    set(node()->needs, std::move(needs));
    if (!recorded_) return;
    edges_ = std::move(edges);
    PyObject* first = PyTuple_GET_ITEM(edges_.ptr(), 0);
    if (first == Py_None || !flag(cls_, can_mask_name)) return;
    PyObject* source = PyTuple_GET_ITEM(first, 0);
    node()->after_relu = !is_tensor(source) && flag(source, rectified_name);
  }

  // What forward gets of a tensor: its array, or, if the operation absorbs that, what it is to be.
  static py::object array_of(PyObject* tensor, bool absorbs) {
    PyObject* array = as_tensor(tensor)->array;
    const bool there = array != nullptr && (Py_TYPE(tensor) != python.deferred || absorbs);
    return there ? borrowed(array) : owned(PyObject_GetAttrString(tensor, "array"));
  }

  static py::object edge_to(PyObject* tensor) {
    const py::object index = owned(PyLong_FromSsize_t(as_tensor(tensor)->index));
    return owned(PyTuple_Pack(2, source_of(tensor), index.ptr()));
  }

  // node.forward(*arrays, *params)
  py::object forward() {
    static PyObject* const name = PyUnicode_InternFromString("forward");
    std::vector<PyObject*> args;
    args.reserve(1 + arrays_.size() + param_count_);
    args.push_back(node_.ptr());
    for (const py::object& array : arrays_) args.push_back(array.ptr());
    args.insert(args.end(), params_, params_ + param_count_);
    PyObject* out = PyObject_VectorcallMethod(name, args.data(), args.size(), nullptr);
    if (out == nullptr) rethrow();
    return owned(out);
  }

  // Raises what forward raised, in the words of autograd._refused if it has any.
  [[noreturn]] void rethrow() {
    py::error_already_set error;
    for (PyObject* type :
         {PyExc_AttributeError, PyExc_TypeError, PyExc_ValueError, PyExc_OverflowError}) {
      if (!error.matches(type)) continue;
      const py::object refused = owned(PyObject_CallFunctionObjArgs(
          python.refused, error.value().ptr(), cls_, inputs_.ptr(), nullptr));
      if (refused.is_none()) break;
      PyException_SetCause(refused.ptr(), error.value().inc_ref().ptr());
      PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(refused.ptr())), refused.ptr());
      throw py::error_already_set();
    }
    throw error;
  }

  static py::object tensor_of(const py::object& array) {
    const bool pending = Py_TYPE(array.ptr()) == python.pending;
    return new_tensor(pending ? python.deferred : python.tensor, array);
  }

  py::object several(const py::object& out) {
    const Py_ssize_t count = PyTuple_GET_SIZE(out.ptr());
    std::vector<py::object> arrays, tensors;
    py::object result = owned(PyTuple_New(count));
    for (Py_ssize_t i = 0; i < count; ++i) {
      arrays.push_back(borrowed(PyTuple_GET_ITEM(out.ptr(), i)));
      tensors.push_back(tensor_of(arrays.back()));
      PyTuple_SET_ITEM(result.ptr(), i, Py_NewRef(tensors.back().ptr()));
    }
    node()->outputs = count;
    finish(arrays.data(), tensors.data(), count);
    return result;
  }

  // Puts the outputs on the tape.
  void finish(const py::object* arrays, const py::object* tensors, Py_ssize_t count) {
    static PyObject* const view_name = PyUnicode_InternFromString("view");
    if (flag(cls_, view_name))
      for (Py_ssize_t i = 0; i < count; ++i) share_version(as_tensor(tensors[i].ptr()));
    if (!recorded_) return;
    set(node()->edges, std::move(edges_));
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (!is_float(arrays[i].ptr())) continue;  // indices carry no gradients
      Tensor* t = as_tensor(tensors[i].ptr());
      t->requires_grad = true;
      set(t->node, node_);
      t->index = i;
    }
    if (is_none(node()->saved) || PyObject_IsTrue(node()->saved) == 0) return;
    node()->seen.reserve(arrays_.size() + count);
    for (size_t i = 0; i < arrays_.size(); ++i)
      if (is_tensor(input(i))) see(as_tensor(input(i)), arrays_[i].ptr());
    for (Py_ssize_t i = 0; i < count; ++i) see(as_tensor(tensors[i].ptr()), arrays[i].ptr());
  }

  // A view of the first input's memory is changed when that is.
  void share_version(Tensor* view) const {
    Tensor* source = as_tensor(input(0));
    const py::object base = owned(PyObject_GetAttrString(view->array, "base"));
    bool shared = view->array == source->array || base.ptr() == source->array;
    if (!shared && !base.is_none())
      shared = base.is(owned(PyObject_GetAttrString(source->array, "base")));
    if (!shared) return;
    count_of(source->version);  // that it is one
    set(view->version, borrowed(source->version));
  }

  static bool is_float(PyObject* array) {
    static PyObject* const dtype_name = PyUnicode_InternFromString("dtype");
    static PyObject* const kind_name = PyUnicode_InternFromString("kind");
    const py::object dtype = owned(PyObject_GetAttr(array, dtype_name));
    const py::object kind = owned(PyObject_GetAttr(dtype.ptr(), kind_name));
    const Py_UCS4 code = PyUnicode_READ_CHAR(kind.ptr(), 0);
    return code == 'f' || code == 'V';  // 'V': ml_dtypes' bfloat16
  }

  void see(const Tensor* t, const void* array) {
    node()->seen.push_back({borrowed(t->version), count_of(t->version), array});
  }

  PyObject* cls_;
  py::object inputs_, node_;
  PyObject* const* params_;
  Py_ssize_t param_count_;
  std::vector<py::object> arrays_;
  py::object edges_;
  bool recorded_ = false;
};

}  // namespace

PyObject* apply(PyObject* cls, PyObject* const* args, Py_ssize_t count) {
  if (count < 1) {
    PyErr_SetString(PyExc_TypeError, "[apply] inputs are missing.");
    return nullptr;
  }
  try {
    return Call(reinterpret_cast<PyTypeObject*>(cls), args[0], args + 1, count - 1)
        .run()
        .release()
        .ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  return nullptr;
}

}  // namespace convgrad::tape
