// Stacks that threads of a block run on, one at a time: a switch saves one and resumes another.
#pragma once
#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace convgrad::cuda::sim {

constexpr size_t kStackBytes = 256 * 1024;

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;  // while it does not run
#else
  ucontext_t context;
#endif
  unsigned char* stack =
      nullptr;  // kStackBytes, the lowest page a guard; none for the launch's own
};

// Gives a fiber a stack.
void make_stack(Fiber& fiber);
// The next switch to it calls main(), which must not return.
void start(Fiber& fiber, void (*main)());
void switch_fiber(Fiber& from, Fiber& to);

}  // namespace convgrad::cuda::sim
