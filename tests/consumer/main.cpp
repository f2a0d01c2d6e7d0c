// Picks three of five points on a line through the installed headers and the static library.
#include <cstdint>
#include <cstdio>

#include "core/parallel.h"
#include "sampling/farthest_point_sampling.h"

int main() {
  fastshape::set_num_threads(1);
  const float points[5][3] = {{0, 0, 0}, {1, 0, 0}, {2, 0, 0}, {3, 0, 0}, {8, 0, 0}};
  const int64_t begin = 0, length = 5, num = 3, start = 0, out_begin = 0;
  int64_t indices[3] = {-7, -7, -7};
  float distances[3] = {-7, -7, -7};

  fastshape::FarthestPointSampling task{};
  task.points = &points[0][0];
  task.begin = &begin;
  task.length = &length;
  task.num = &num;
  task.start = &start;
  task.out_begin = &out_begin;
  task.batch = 1;
  task.max_length = length;
  task.max_num = num;
  task.indices = indices;
  task.distances = distances;
  fastshape::cpu::farthest_point_sampling(task);

  for (int i = 0; i < 3; ++i)
    std::printf("%d %g\n", static_cast<int>(indices[i]), static_cast<double>(distances[i]));
  return 0;
}
