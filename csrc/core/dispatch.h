// Which vector instructions the CPU kernels use: asked of the processor once, lowered by tests.
#pragma once

#include <string>

namespace fastshape {

enum class InstructionSet { portable = 0, avx2 = 1, avx512 = 2 };

// The best set that this processor, this operating system and this build have.
InstructionSet best_instruction_set();

// The set in use: the best one, unless set_instruction_set chose a lower one.
InstructionSet instruction_set();

// Whether the set in use is avx512 and the processor also multiplies bfloat16 (vdpbf16ps).
bool has_bfloat16_products();

// Throws ValueError if this machine does not have `set`. Not meant to be called while kernels run.
void set_instruction_set(InstructionSet set);

const char* instruction_set_name(InstructionSet set);
InstructionSet instruction_set_from_name(const std::string& name);

}  // namespace fastshape
