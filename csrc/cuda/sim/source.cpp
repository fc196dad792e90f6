#include "cuda/sim/source.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <vector>

namespace convgrad::cuda::sim {
namespace {

// What addr2line (binutils) says of an address: pairs of lines, a function and its place, from the
// innermost inlined function to the outermost.
std::vector<std::string> addr2line(const void* code) {
  std::vector<std::string> lines;
  Dl_info info;
  if (dladdr(code, &info) == 0) return lines;
  const uintptr_t offset =
      reinterpret_cast<uintptr_t>(code) - reinterpret_cast<uintptr_t>(info.dli_fbase);
  const std::string command =
      "addr2line -C -f -i -e '" + std::string(info.dli_fname) + "' " + hex(offset) + " 2>/dev/null";
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return lines;
  char text[4096];
  while (fgets(text, sizeof(text), pipe) != nullptr)
    lines.emplace_back(text, std::strcspn(text, "\n"));
  pclose(pipe);
  return lines;
}

}  // namespace

std::string hex(uint64_t x) {
  char text[20];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(x));
  return text;
}

std::string short_place(std::string place) {
  const size_t csrc = place.rfind("csrc/");
  if (csrc != std::string::npos) place.erase(0, csrc);
  return place.substr(0, place.find(" ("));
}

std::string source_line(const void* code) {
  // The address after a call may belong to the next line.
  const std::vector<std::string> lines = addr2line(static_cast<const char*>(code) - 1);
  std::string text;
  for (size_t i = 1; i < lines.size(); i += 2)
    text += (text.empty() ? "" : " called at ") + short_place(lines[i]);
  return text.empty() ? "?" : text;
}

std::string function_at(const void* code) {
  const std::vector<std::string> lines = addr2line(code);
  std::string name = lines.size() < 2 ? "?" : lines[lines.size() - 2];  // the outermost
  for (const std::string part : {"convgrad::cuda::", "(anonymous namespace)::", "void "})
    for (size_t at; (at = name.find(part)) != std::string::npos;) name.erase(at, part.size());
  // Without its parameters: up to the first parenthesis outside of template arguments.
  int depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
    if (name[i] == '(' && depth == 0) return name.substr(0, i);
  }
  return name;
}

}  // namespace convgrad::cuda::sim
