#include "cuda/sim/fiber.h"

#include <sys/mman.h>

#include <new>

namespace convgrad::cuda::sim {

void make_stack(Fiber& fiber) {
  void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  mprotect(p, 4096, PROT_NONE);
  fiber.stack = static_cast<unsigned char*>(p);
}

#if defined(SIM_OWN_SWITCH)

// Saves what a function call must keep, and the stack pointer; the other way round for the other.
asm(R"(
.text
.type convgrad_sim_switch, @function
.hidden convgrad_sim_switch
.globl convgrad_sim_switch
convgrad_sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size convgrad_sim_switch, .-convgrad_sim_switch
)");
extern "C" void convgrad_sim_switch(void** saved, void* resumed);

void start(Fiber& fiber, void (*main)()) {
  // As convgrad_sim_switch leaves it: six registers, then where to return to. There the stack
  // pointer is 8 beyond a multiple of 16, as after a call.
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes) - 2;
  *top = reinterpret_cast<void*>(main);
  fiber.stack_pointer = top - 6;
}

void switch_fiber(Fiber& from, Fiber& to) {
  convgrad_sim_switch(&from.stack_pointer, to.stack_pointer);
}

#else

void start(Fiber& fiber, void (*main)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, main, 0);
}

void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

}  // namespace convgrad::cuda::sim
