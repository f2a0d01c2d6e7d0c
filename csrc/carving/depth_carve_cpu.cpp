#include "carving/depth_carve_cpu.h"

#include <algorithm>
#include <mutex>

#include "carving/depth_carve_loop.h"
#include "core/dispatch.h"
#include "core/parallel.h"

namespace fastshape {
FASTSHAPE_DEFINE_CARVE_ROWS(portable)
}  // namespace fastshape

namespace fastshape::cpu {
namespace {

constexpr int64_t kPiece = 4096;  // voxels

template <class T>
using CarveRows = void (*)(const DepthCarve<T>&, int64_t, int64_t, int64_t*);

template <class T>
CarveRows<T> carve_rows() {
#if defined(FASTSHAPE_X86)
  switch (instruction_set()) {
    case InstructionSet::avx512:
      return carve_rows_avx512;
    case InstructionSet::avx2:
      return carve_rows_avx2;
    case InstructionSet::portable:
      break;
  }
#endif
  return carve_rows_portable;
}

}  // namespace

template <class T>
void depth_carve(const DepthCarve<T>& task, int64_t* bad_row) {
  const CarveRows<T> rows = carve_rows<T>();
  std::mutex mutex;
  parallel_for(task.voxels.num_voxels, kPiece, [&](int64_t begin, int64_t end) {
    int64_t bad = task.voxels.num_voxels;
    rows(task, begin, end, &bad);
    if (bad == task.voxels.num_voxels) return;
    std::lock_guard<std::mutex> lock(mutex);
    *bad_row = std::min(*bad_row, bad);
  });
}

#define FASTSHAPE_INSTANTIATE(T) template void depth_carve<T>(const DepthCarve<T>&, int64_t*);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cpu
