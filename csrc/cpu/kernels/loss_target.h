// What the kernels of cross-entropy share.
#pragma once
#include "ops.h"

namespace convgrad::cpu {
namespace {

// What a work item adds up; the items' sums are added in their order.
struct Partial {
  double loss, weight;
  int64_t bad_row;
};

// The target of one row as a distribution over classes, weights included:
// q[c] = weight[c] ((1 - smoothing) target[c] + smoothing / C).
template <class T>
struct Target {
  const CrossEntropyShape& s;
  const int64_t* classes;
  const T *probs, *weight;
  T keep = T(1 - s.label_smoothing), spread = T(s.label_smoothing / double(s.c));

  T weight_of(int64_t c) const { return weight ? weight[c] : T(1); }
  // One class holds everything.
  bool sparse() const { return classes && spread == 0; }
  T at(int64_t row, int64_t c) const {
    const T t = probs ? probs[row * s.c + c] : T(c == classes[row]);
    return weight_of(c) * (keep * t + spread);
  }
};

}  // namespace
}  // namespace convgrad::cpu
