// The backward pass: gradients go back along the edges, through each operation once.
#include <unordered_map>

#include "objects.h"

namespace convgrad::tape {
namespace {

// Switches recording off, in this thread, as long as it lives.
class Unrecorded {
 public:
  Unrecorded() : before_(recording) { recording = false; }
  ~Unrecorded() { recording = before_; }
  Unrecorded(const Unrecorded&) = delete;
  Unrecorded& operator=(const Unrecorded&) = delete;

 private:
  const bool before_;
};

// What has arrived at an operation or a leaf.
struct Arrived {
  py::object target;                  // keeps it alive
  Py_ssize_t missing = 0;             // edges to it from operations that are not walked yet
  std::vector<py::object> gradients;  // per output; empty: none so far
  bool owned = false;                 // the (only) gradient is referenced nowhere else
  bool masked = false;  // everything in it was masked by the target's ReLU, see autograd.Op
};

Py_ssize_t outputs_of(PyObject* target) { return is_tensor(target) ? 1 : as_op(target)->outputs; }

class Walk {
 public:
  Walk(bool retain_graph, const py::object& wanted)
      : retain_graph_(retain_graph), wanted_(wanted) {}

  void run(const py::sequence& tensors, const py::sequence& gradients) {
    std::vector<PyObject*> roots;
    for (const py::handle t : tensors) roots.push_back(source_of(t.ptr()));
    for (PyObject* root : roots) count_uses(root);
    for (size_t i = 0; i < roots.size(); ++i)
      arrive(roots[i], as_tensor(py::object(tensors[i]).ptr())->index, gradients[i], {});
    while (!ready_.empty()) {
      const Arrived arrived = std::move(ready_.back());
      ready_.pop_back();
      pass(arrived);
    }
  }

 private:
  // Of a gradient on its way: Arrived's owned and masked.
  struct Manner {
    bool owned = false, masked = false;
  };

  // Counts the edges to each operation and leaf that can be reached, and one to the root.
  void count_uses(PyObject* root) {
    std::vector<PyObject*> found;
    const auto count = [&](PyObject* target) {
      Arrived& arrived = waiting_[target];
      if (arrived.missing++ > 0) return;
      arrived.target = borrowed(target);
      if (!is_tensor(target)) found.push_back(target);
    };
    count(root);
    while (!found.empty()) {
      PyObject* edges = as_op(found.back())->edges;
      found.pop_back();
      if (edges == Py_None) continue;  // walked before
      for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(edges); ++i)
        if (PyObject* edge = PyTuple_GET_ITEM(edges, i); edge != Py_None)
          count(PyTuple_GET_ITEM(edge, 0));
    }
  }

  // A gradient, or None, comes along one edge.
  void arrive(PyObject* target, Py_ssize_t index, const py::object& gradient, Manner manner) {
    const auto found = waiting_.find(target);
    Arrived& arrived = found->second;
    if (!gradient.is_none()) add(arrived, index, gradient, manner);
    if (--arrived.missing > 0) return;
    ready_.push_back(std::move(arrived));
    waiting_.erase(found);
  }

  void add(Arrived& to, Py_ssize_t index, const py::object& gradient, Manner manner) {
    if (to.gradients.empty()) {
      to.gradients.resize(outputs_of(to.target.ptr()), py::none());
      to.owned = manner.owned;
      to.masked = manner.masked;
    } else {
      to.masked &= manner.masked;
    }
    py::object& sum = to.gradients.at(index);
    if (sum.is_none()) {
      sum = gradient;
    } else {
      sum = owned(PyObject_CallFunctionObjArgs(python.total, sum.ptr(), gradient.ptr(),
                                               to.owned ? Py_True : Py_False, nullptr));
      to.owned = true;
    }
  }

  // All gradients of a target are there: a leaf keeps its own, an operation passes it on.
  void pass(const Arrived& arrived) {
    const bool reached = !arrived.gradients.empty();
    if (reached && !wanted_.is_none())
      call(python.collect, arrived.target, list_of(arrived.gradients), wanted_);
    if (!is_tensor(arrived.target.ptr())) {
      pass_through(arrived);
    } else if (reached && wanted_.is_none()) {
      accumulate(as_tensor(arrived.target.ptr()), arrived.gradients[0], arrived.owned);
    }
  }

  static void accumulate(Tensor* leaf, const py::object& gradient, bool is_owned) {
    if (is_owned && is_none(leaf->grad) && is_none(leaf->hooks) && is_none(leaf->post_hooks)) {
      set(leaf->grad, new_tensor(python.tensor, gradient));
    } else {
      py::handle(reinterpret_cast<PyObject*>(leaf)).attr("_accumulate")(gradient, is_owned);
    }
  }

  void pass_through(const Arrived& arrived) {
    static PyObject* const fresh_name = PyUnicode_InternFromString("fresh");
    Op* op = as_op(arrived.target.ptr());
    const bool reached = !arrived.gradients.empty();
    if (reached && op->edges == Py_None) raise_walked(op);
    const py::object edges = borrowed(op->edges);
    if (edges.is_none()) return;
    py::object out;
    bool fresh = false, masks = false;
    if (reached) {
      masks = op->after_relu && may_mask(PyTuple_GET_ITEM(edges.ptr(), 0));
      out = backward(op, arrived, masks);
      fresh = flag(arrived.target.ptr(), fresh_name);
    }
    if (!retain_graph_) release(op);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(edges.ptr()); ++i) {
      PyObject* edge = PyTuple_GET_ITEM(edges.ptr(), i);
      if (edge == Py_None) continue;
      arrive(PyTuple_GET_ITEM(edge, 0), PyLong_AsSsize_t(PyTuple_GET_ITEM(edge, 1)), item(out, i),
             {fresh, masks && i == 0});
    }
  }

  // The gradient of input i, of what backward returned: a tuple, or the only gradient.
  static py::object item(const py::object& out, Py_ssize_t i) {
    if (!out) return py::none();
    if (!PyTuple_CheckExact(out.ptr())) return i == 0 ? out : py::none();
    return i < PyTuple_GET_SIZE(out.ptr()) ? borrowed(PyTuple_GET_ITEM(out.ptr(), i)) : py::none();
  }

  // Whether nobody looks at the gradient of the ReLU's output before the ReLU itself does.
  bool may_mask(PyObject* edge) const {
    if (!is_none(as_op(PyTuple_GET_ITEM(edge, 0))->hooks)) return false;
    return wanted_.is_none() || !py::dict(wanted_).contains(borrowed(edge));
  }

  // op.backward(*gradients), if the saved arrays are still what they were.
  static py::object backward(Op* op, const Arrived& arrived, bool masks) {
    static PyObject* const name = PyUnicode_InternFromString("backward");
    for (const Seen& seen : op->seen) check_unchanged(op, seen);
    op->owned = arrived.owned;
    op->masked = arrived.masked;
    op->masks = masks;
    std::vector<py::object> gradients = arrived.gradients;
    if (!is_none(op->hooks)) {
      const py::object hooked = call(python.hooked, arrived.target, list_of(gradients));
      for (size_t i = 0; i < gradients.size(); ++i) gradients[i] = hooked[py::int_(i)];
      op->owned = op->masked = false;
    }
    std::vector<PyObject*> args = {arrived.target.ptr()};
    for (const py::object& gradient : gradients) args.push_back(gradient.ptr());
    return owned(PyObject_VectorcallMethod(name, args.data(), args.size(), nullptr));
  }

  // RuntimeError if an array that was saved has been changed since.
  static void check_unchanged(const Op* op, const Seen& seen) {
    const Py_ssize_t now = count_of(seen.version.ptr());
    if (now == seen.count || is_none(op->saved)) return;
    for (const py::handle array : borrowed(op->saved)) {
      if (array.ptr() != seen.array) continue;  // a saved array is alive, its address its own
      PyErr_Format(PyExc_RuntimeError,
                   "[backward] A tensor of shape %S saved by %s was changed in place: it is at "
                   "version %zd, the forward pass saw %zd.",
                   array.attr("shape").ptr(), Py_TYPE(op)->tp_name, now, seen.count);
      throw py::error_already_set();
    }
  }

  [[noreturn]] static void raise_walked(const Op* op) {
    PyErr_Format(PyExc_RuntimeError,
                 "[backward] The graph of this %s was already walked and its saved arrays freed. "
                 "Pass retain_graph=True to the first backward() to walk it twice.",
                 Py_TYPE(op)->tp_name);
    throw py::error_already_set();
  }

  // Frees everything the forward pass kept.
  static void release(Op* op) {
    set(op->saved, owned(PyTuple_New(0)));
    set(op->edges, py::none());
    set(op->hooks, py::none());
    op->seen.clear();
    PyDict_Clear(owned(PyObject_GenericGetDict(reinterpret_cast<PyObject*>(op), nullptr)).ptr());
  }

  static py::list list_of(const std::vector<py::object>& items) {
    py::list out;
    for (const py::object& item : items) out.append(item);
    return out;
  }

  template <class... Args>
  static py::object call(PyObject* function, const Args&... args) {
    return py::reinterpret_borrow<py::function>(function)(args...);
  }

  const bool retain_graph_;
  const py::object wanted_;  // autograd.run_backward's
  std::unordered_map<PyObject*, Arrived> waiting_;
  std::vector<Arrived> ready_;
};

}  // namespace

void walk(const py::sequence& tensors, const py::sequence& gradients, bool retain_graph,
          const py::object& wanted) {
  const Unrecorded unrecorded;
  Walk(retain_graph, wanted).run(tensors, gradients);
}

}  // namespace convgrad::tape
