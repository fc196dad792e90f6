// Which instruction set the kernels run with.
#pragma once
#include <string>
#include <vector>

namespace convgrad::cpu {

std::string isa_name();                // the one in use
std::vector<std::string> isa_names();  // all of this build that this processor can run
}  // namespace convgrad::cpu
