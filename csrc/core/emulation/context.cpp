#include "core/emulation/context.h"

#include <cstdint>

// Only what the calling convention makes a function preserve has to be saved; the floating-point
// modes are not, because kernels never change them. The last step is a jump through a register, not
// a `ret`: every return address here is one that the processor's return-address stack has not seen,
// and would be predicted wrongly.

#if defined(__x86_64__)

asm(R"(
.text
.p2align 4
.hidden fastshape_switch_context
.globl fastshape_switch_context
.type fastshape_switch_context, @function
fastshape_switch_context:
  .cfi_startproc
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
  popq %rcx
  jmp *%rcx
  .cfi_endproc
.size fastshape_switch_context, .-fastshape_switch_context
)");

namespace fastshape::emulation {

Context make_context(void* stack, size_t bytes, void (*entry)()) {
  uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15};
  auto* words = reinterpret_cast<void**>(top);
  *--words = nullptr;                              // entry's "return address": ends a backtrace
  *--words = reinterpret_cast<void*>(entry);       // popped into rcx
  for (int i = 0; i < 6; ++i) *--words = nullptr;  // rbp rbx r12 r13 r14 r15
  return words;
}

}  // namespace fastshape::emulation

#elif defined(__aarch64__) && defined(__ELF__)

asm(R"(
.text
.p2align 4
.hidden fastshape_switch_context
.globl fastshape_switch_context
.type fastshape_switch_context, %function
fastshape_switch_context:
  .cfi_startproc
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x10, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  mov x30, x10
  br x10
  .cfi_endproc
.size fastshape_switch_context, .-fastshape_switch_context
)");

namespace fastshape::emulation {

Context make_context(void* stack, size_t bytes, void (*entry)()) {
  uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15};
  auto* words = reinterpret_cast<void**>(top) - 20;  // the 160 bytes that a switch pops
  for (int i = 0; i < 20; ++i) words[i] = nullptr;
  words[11] = reinterpret_cast<void*>(entry);  // x30
  return words;
}

}  // namespace fastshape::emulation

#else  // Portable and slow: each switch makes a system call for the signal mask.

#include <ucontext.h>

#include <new>

namespace fastshape::emulation {

Context make_context(void* stack, size_t bytes, void (*entry)()) {
  // The ucontext_t lives at the bottom of the stack that it describes.
  auto* context = new (stack) ucontext_t;
  getcontext(context);
  const size_t used = (sizeof(ucontext_t) + 63) & ~size_t{63};
  context->uc_stack.ss_sp = static_cast<char*>(stack) + used;
  context->uc_stack.ss_size = bytes - used;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

}  // namespace fastshape::emulation

extern "C" void fastshape_switch_context(fastshape::emulation::Context* from,
                                         fastshape::emulation::Context to) {
  ucontext_t own;
  *from = &own;
  swapcontext(&own, static_cast<ucontext_t*>(to));
}

#endif
