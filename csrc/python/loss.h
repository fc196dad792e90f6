// What the bindings of the losses share.
#pragma once
#include "array.h"

namespace convgrad::python {

inline Reduction reduction_arg(const char* op, const std::string& name) {
  if (name == "none") return Reduction::kNone;
  if (name == "mean") return Reduction::kMean;
  if (name == "sum") return Reduction::kSum;
  value_error(op, "reduction must be 'none', 'mean' or 'sum'. Got '" + name + "'.");
}

// x (N, C, ...) or (C): the class axis, and the shape of one value per row.
inline int class_axis(const Array& x) { return x.rank == 1 ? 0 : 1; }

struct RowShape {
  int rank = 0;
  int64_t shape[kMaxRank];
};
inline RowShape row_shape(const Array& x) {
  RowShape out;
  for (int i = 0; i < x.rank; ++i)
    if (i != class_axis(x)) out.shape[out.rank++] = x.shape[i];
  return out;
}

// int64 classes, C-contiguous, of x's shape without the class axis.
inline Array classes_arg(const char* op, const Array& x, py::handle target_) {
  const Array target = array_arg(op, "target", target_, DType::kInt64);
  const RowShape rows = row_shape(x);
  bool equal = target.rank == rows.rank;
  for (int i = 0; equal && i < rows.rank; ++i) equal = target.shape[i] == rows.shape[i];
  if (!equal)
    value_error(op,
                "A target of classes must have the input's shape without the class axis. Got "
                "input " +
                    x.shape_text() + " and target " + target.shape_text() + ".");
  if (!target.is_dense(Layout::kC))
    value_error(op, "A target of classes must be C-contiguous here. Got shape " +
                        target.shape_text() + " with other strides.");
  return target;
}

// None, or one value per class.
inline Array class_weight_arg(const char* op, py::handle weight_, const Array& x) {
  const Array weight = stat_arg_like(op, "weight", weight_, Layout::kC, x);
  const int64_t c = x.shape[class_axis(x)];
  if (weight && (weight.rank != 1 || weight.shape[0] != c))
    value_error(op, "weight must have one value per class, " + std::to_string(c) + ". Got shape " +
                        weight.shape_text() + ".");
  return weight;
}

}  // namespace convgrad::python
