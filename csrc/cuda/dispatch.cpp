// Fills the kernel tables; every stem of kernels/ adds its slots.
#include <cstring>
#include <stdexcept>
#include <string>

#include "ops.h"

// CONVGRAD_STEMS, from CMake, lists kernels/ as X(stem).
namespace convgrad::cuda {
#define X(stem)                          \
  void add_##stem(Ops<float>& table);    \
  void add_##stem(Ops<double>& table);   \
  void add_##stem(Ops<bfloat16>& table); \
  void add_##stem(Ops<float16>& table);
CONVGRAD_STEMS
#undef X
}  // namespace convgrad::cuda

namespace convgrad {
namespace {

// All slots of Ops are function pointers: an empty one is an import error.
template <class T>
Ops<T> filled() {
  Ops<T> table;
  std::memset(static_cast<void*>(&table), 0, sizeof(table));
#define X(stem) cuda::add_##stem(table);
  CONVGRAD_STEMS
#undef X
  using Slot = void (*)();
  const char* bytes = reinterpret_cast<const char*>(&table);
  for (size_t i = 0; i < sizeof(table); i += sizeof(Slot)) {
    Slot slot;
    std::memcpy(&slot, bytes + i, sizeof(slot));
    if (slot == nullptr)
      throw std::runtime_error("[convgrad] Slot " + std::to_string(i / sizeof(Slot)) +
                               " of Ops in csrc/ops.h is empty.");
  }
  return table;
}

}  // namespace

template <>
const Ops<float>& ops<float>() {
  static const Ops<float> table = filled<float>();
  return table;
}
template <>
const Ops<double>& ops<double>() {
  static const Ops<double> table = filled<double>();
  return table;
}
template <>
const Ops<bfloat16>& ops<bfloat16>() {
  static const Ops<bfloat16> table = filled<bfloat16>();
  return table;
}
template <>
const Ops<float16>& ops<float16>() {
  static const Ops<float16> table = filled<float16>();
  return table;
}

}  // namespace convgrad
