#include "isosurface/sharp_vertices.h"

#include "core/parallel.h"

namespace fastshape::cpu {

template <class T>
void sharp_vertices(const SharpVertices<T>& task) {
  parallel_for(task.num_vertices, 2048, [&](int64_t begin, int64_t end) {
    for (int64_t vertex = begin; vertex < end; ++vertex) write_sharp_vertex(task, vertex);
  });
}

template void sharp_vertices<float>(const SharpVertices<float>&);
template void sharp_vertices<double>(const SharpVertices<double>&);

}  // namespace fastshape::cpu
