// Where in the source an address of this module's code lies, for reports; best effort.
#pragma once
#include <cstdint>
#include <string>

namespace convgrad::cuda::sim {

std::string source_line(const void* code);   // "file.cu:42"
std::string function_at(const void* code);   // "tiles<float>"
std::string short_place(std::string place);  // "csrc/cuda/norm.cu:42" of a path to it
std::string hex(uint64_t x);

}  // namespace convgrad::cuda::sim
