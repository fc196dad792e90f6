// What the machine can do at most: ceilings that benchmarks compare kernels with.
#include "array.h"

namespace convgrad::python {
namespace {

// Runs `rounds` rounds of multiply-adds on registers in each of y's entries; returns their FLOPs.
int64_t fma_rounds(py::handle y_, int64_t rounds) {
  const Array y = array_arg("fma_rounds", "y", y_);
  if (y.rank != 1 || !y.is_dense(Layout::kC))
    value_error("fma_rounds", "y must be dense, of 1 axis. Got shape " + y.shape_text() + ".");
  if (rounds < 0)
    value_error("fma_rounds", "rounds must be at least 0. Got " + std::to_string(rounds) + ".");
  return with_float_type("fma_rounds", y.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) { ops<T>().fma_rounds(exec, y.size(), rounds, y.as<T>()); });
    return y.size() * rounds * ops<T>().fma_flops();
  });
}

// y = x, both dense and of one shape, by the kernel that moves arrays.
void copy_dense(py::handle x_, py::handle y_) {
  const Array x = array_arg("copy_dense", "x", x_), y = array_arg("copy_dense", "y", y_);
  if (x.dtype != y.dtype || x.rank != 1 || y.rank != 1 || x.size() != y.size() ||
      !x.is_dense(Layout::kC) || !y.is_dense(Layout::kC))
    value_error("copy_dense", "x and y must be dense, of 1 axis, one dtype and one size. Got " +
                                  x.shape_text() + " and " + y.shape_text() + ".");
  const StridedShape s{1, {x.size()}, {1}, {1}};
  with_float_type("copy_dense", x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) { ops<T>().copy(exec, s, x.as<T>(), y.as<T>()); });
  });
}

}  // namespace

void bind_machine(py::module_& m) {
  def(m, "fma_rounds", &fma_rounds);
  def(m, "copy_dense", &copy_dense);
}

}  // namespace convgrad::python
