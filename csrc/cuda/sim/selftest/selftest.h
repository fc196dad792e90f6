// Tests of the simulator and of ptx.cuh's wrappers, as bound by bindings.cpp.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace convgrad::cuda::selftest {

// ---- broken.cu: for the simulator alone ----
std::vector<std::string> case_names();
// A kernel's output, of the correct version or of one with a mistake; throws what is reported.
std::vector<float> run_case(const std::string& name, bool broken);

// ---- wrappers.cu: for the simulator and a card ----
// What a wrapper's kernel takes and gives per thread, in words of 32 bits. One warp runs it.
struct Wrapper {
  const char* name;
  int inputs, outputs;
  void (*run)(const uint32_t* in, uint32_t* out);  // device memory, (32, inputs), (32, outputs)
};
const std::vector<Wrapper>& wrappers();

}  // namespace convgrad::cuda::selftest
