#include "cuda/sim/source.h"

#include <dlfcn.h>

#include <cstdio>

namespace convgrad::cuda::sim {
namespace {

// What addr2line (binutils) says: the function's line and the file's, innermost first.
std::string addr2line(const void* code, bool function) {
  Dl_info info;
  if (dladdr(code, &info) == 0) return "?";
  const uintptr_t offset =
      reinterpret_cast<uintptr_t>(code) - reinterpret_cast<uintptr_t>(info.dli_fbase);
  const std::string command =
      "addr2line -C -f -e '" + std::string(info.dli_fname) + "' " + hex(offset) + " 2>/dev/null";
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return "?";
  char text[2][4096] = {"", ""};
  for (auto& line : text)
    if (fgets(line, sizeof(line), pipe) == nullptr) break;
  pclose(pipe);
  std::string result = text[function ? 0 : 1];
  result.erase(result.find_last_not_of("\n") + 1);
  return result.empty() ? "?" : result;
}

}  // namespace

std::string hex(uint64_t x) {
  char text[20];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(x));
  return text;
}

std::string source_line(const void* code) {
  // The address after a call may belong to the next line.
  std::string line = addr2line(static_cast<const char*>(code) - 1, false);
  const size_t csrc = line.rfind("csrc/");
  if (csrc != std::string::npos) line.erase(0, csrc);
  const size_t discriminator = line.find(" (");
  if (discriminator != std::string::npos) line.erase(discriminator);
  return line;
}

std::string function_at(const void* code) {
  std::string name = addr2line(code, true);
  for (const char* part : {"convgrad::cuda::", "(anonymous namespace)::", "void "})
    for (size_t at; (at = name.find(part)) != std::string::npos;) name.erase(at, std::string(part).size());
  return name.substr(0, name.find('('));
}

}  // namespace convgrad::cuda::sim
