// Whole numbers. In an anonymous namespace, as the CPU's kernels need it (cpu/kernels/README.md).
#pragma once
#include <cstdint>

namespace convgrad {
namespace {

constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }  // a >= 0

}  // namespace
}  // namespace convgrad
