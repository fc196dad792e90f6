// Chooses the kernel table at load: the best instruction set this processor has, or CONVGRAD_ISA.
#include "dispatch.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "ops.h"

// CONVGRAD_ISAS, from CMake, lists the instruction sets of this build as X(isa), weakest first.
#define X(isa)                   \
  namespace convgrad::cpu::isa { \
  void fill(Ops<float>& table);  \
  void fill(Ops<double>& table); \
  }
CONVGRAD_ISAS
#undef X

namespace convgrad {
namespace cpu {
namespace {

struct Isa {
  const char* name;
  void (*fill_float)(Ops<float>&);
  void (*fill_double)(Ops<double>&);
};
#define X(isa) {#isa, isa::fill, isa::fill},
constexpr Isa kIsas[] = {CONVGRAD_ISAS};
#undef X

bool runs_here(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!std::strcmp(name, "baseline")) return __builtin_cpu_supports("sse4.2");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!std::strcmp(name, "avx512"))
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx2;
#else
  return !std::strcmp(name, "baseline");
#endif
}

// The names users write have dashes: avx512-emulated.
std::string public_name(const char* name) {
  std::string out = name;
  for (char& c : out)
    if (c == '_') c = '-';
  return out;
}

// The emulation is for tests: AVX2 has the same registers with less to hold in each.
bool by_default(const char* name) { return std::strcmp(name, "avx512_emulated") != 0; }

const Isa& choose() {
  const char* wanted = std::getenv("CONVGRAD_ISA");
  const Isa* best = nullptr;
  std::string known;
  for (const Isa& isa : kIsas) {
    known += (known.empty() ? "" : ", ") + public_name(isa.name);
    if (wanted != nullptr && *wanted != '\0') {
      if (public_name(isa.name) != wanted) continue;
      if (!runs_here(isa.name))
        throw std::runtime_error("[convgrad] This processor does not support CONVGRAD_ISA='" +
                                 std::string(wanted) + "'.");
      return isa;
    }
    if (by_default(isa.name) && runs_here(isa.name)) best = &isa;
  }
  if (wanted != nullptr && *wanted != '\0')
    throw std::runtime_error("[convgrad] CONVGRAD_ISA must be one of " + known + ". Got '" +
                             wanted + "'.");
  if (best == nullptr)
    throw std::runtime_error("[convgrad] This processor supports none of " + known + ".");
  return *best;
}

template <class T>
Ops<T> filled(void (*fill)(Ops<T>&)) {
  Ops<T> table;
  std::memset(static_cast<void*>(&table), 0, sizeof(table));
  fill(table);
  using Slot = void (*)();
  static_assert(sizeof(Ops<T>) % sizeof(Slot) == 0);
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

const Isa& chosen() {
  static const Isa& isa = choose();
  return isa;
}

}  // namespace

std::string isa_name() { return public_name(chosen().name); }

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas)
    if (runs_here(isa.name)) names.push_back(public_name(isa.name));
  return names;
}

}  // namespace cpu

template <>
const Ops<float>& ops<float>() {
  static const Ops<float> table = cpu::filled<float>(cpu::chosen().fill_float);
  return table;
}

template <>
const Ops<double>& ops<double>() {
  static const Ops<double> table = cpu::filled<double>(cpu::chosen().fill_double);
  return table;
}

}  // namespace convgrad
