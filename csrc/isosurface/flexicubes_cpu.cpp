#include "isosurface/flexicubes.h"

#include "core/parallel.h"

namespace fastshape::cpu {

template <class T>
void flexicubes(const FlexiCubes<T>& task, const FlexiCubesMesh<T>& mesh) {
  parallel_for(task.cubes.num, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) write_vertices(task, s, mesh);
  });
  parallel_for(task.num_quads, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t quad = begin; quad < end; ++quad) write_faces(task, quad, mesh);
  });
}

template void flexicubes<float>(const FlexiCubes<float>&, const FlexiCubesMesh<float>&);
template void flexicubes<double>(const FlexiCubes<double>&, const FlexiCubesMesh<double>&);

}  // namespace fastshape::cpu
