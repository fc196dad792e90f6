// Stacks that threads of a block run on, one at a time: a switch saves one and resumes another.
#pragma once
#include <cstddef>
#include <cstdint>

// A switch by hand; elsewhere, or where SIM_UCONTEXT is defined, by the system's calls, which take
// about 20 times as long.
#if defined(__x86_64__) && !defined(SIM_UCONTEXT)
#define SIM_OWN_SWITCH
#else
#include <ucontext.h>
#endif

namespace convgrad::cuda::sim {

constexpr size_t kStackBytes = 256 * 1024;

struct Fiber {
#if defined(SIM_OWN_SWITCH)
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
