#include "quantize/search_loop.h"

namespace fastshape {
FASTSHAPE_DEFINE_SEARCH(portable)
}  // namespace fastshape

namespace fastshape::cpu {

template <class T>
SearchRows<T> search_rows() {
#if defined(FASTSHAPE_X86)
  if (instruction_set() == InstructionSet::avx512) return search_rows_avx512;
  if (instruction_set() == InstructionSet::avx2) return search_rows_avx2;
#endif
  return search_rows_portable;
}

template <class T>
SearchTop<T> search_top() {
#if defined(FASTSHAPE_X86)
  if (instruction_set() == InstructionSet::avx512) return search_top_avx512;
  if (instruction_set() == InstructionSet::avx2) return search_top_avx2;
#endif
  return search_top_portable;
}

template SearchRows<float> search_rows<float>();
template SearchRows<double> search_rows<double>();
template SearchTop<float> search_top<float>();
template SearchTop<double> search_top<double>();

}  // namespace fastshape::cpu
