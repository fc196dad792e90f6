// The versions, for the bindings.
#pragma once
#include <vector>

#include "ops.h"

namespace convgrad::cuda::lab {

struct Conv;
struct Version {
  const char* name;
  int multiple;  // c and k have to be multiples of it
  void (*run)(const Exec&, const Conv&);
};
// From the slowest to the fastest.
const std::vector<Version>& versions();

// y = x * weight by one of them; see conv.cuh. shape: n, h, w, c, k, r.
void run(const Version&, const int (&shape)[6], const float* x, const float* weight, float* y);

}  // namespace convgrad::cuda::lab
