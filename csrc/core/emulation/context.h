// Switching the processor from one stack to another, without a system call.
#pragma once

#include <cstddef>

namespace fastshape::emulation {

// A suspended flow of control: where its stack pointer stood.
using Context = void*;

// A context that calls entry() on the given stack when it is switched to for the first time; entry
// must not return.
Context make_context(void* stack, size_t bytes, void (*entry)());

}  // namespace fastshape::emulation

// Saves the running flow in *from and continues `to`; returns when somebody switches back.
extern "C" void fastshape_switch_context(fastshape::emulation::Context* from,
                                         fastshape::emulation::Context to)
    __attribute__((visibility("hidden")));
