#include "geometry/query_order.h"

#include "geometry/bvh.h"
#include "geometry/hilbert.h"

namespace fastshape::cpu {

template <class T>
std::vector<uint32_t> query_order(const T* points, int64_t num_points) {
  constexpr int kBits = 10;
  Box<T> box = empty_box<T>();
  for (int64_t i = 0; i < num_points; ++i) {
    const Vec3<T> p = load_point(points, i);
    if (is_finite(p)) box = join(box, Box<T>{p, p});
  }
  const T scale = grid_scale(box.low, box.high, kBits);
  std::vector<KeyIndex> items(num_points);
  parallel_for(num_points, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      items[i] = {hilbert_code(load_point(points, i), box.low, scale, kBits),
                  static_cast<uint32_t>(i)};
  });
  radix_sort(items, 3 * kBits);
  std::vector<uint32_t> order(num_points);
  for (int64_t i = 0; i < num_points; ++i) order[i] = items[i].index;
  return order;
}

template std::vector<uint32_t> query_order<float>(const float*, int64_t);
template std::vector<uint32_t> query_order<double>(const double*, int64_t);

}  // namespace fastshape::cpu
