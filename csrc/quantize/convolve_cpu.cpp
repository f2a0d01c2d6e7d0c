#include "core/dispatch.h"
#include "quantize/convolve_loop.h"

namespace fastshape {
FASTSHAPE_DEFINE_CONVOLVE(portable)
}  // namespace fastshape

namespace fastshape::cpu {

template <class T>
Convolve<T> convolve() {
#if defined(FASTSHAPE_X86)
  if (instruction_set() == InstructionSet::avx512)
    return {convolve_row_avx512, convolve_weight_avx512};
  if (instruction_set() == InstructionSet::avx2) return {convolve_row_avx2, convolve_weight_avx2};
#endif
  return {convolve_row_portable, convolve_weight_portable};
}

template Convolve<float> convolve<float>();
template Convolve<double> convolve<double>();

}  // namespace fastshape::cpu
