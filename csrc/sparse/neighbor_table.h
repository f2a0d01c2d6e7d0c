// Which rows of a list of voxels lie around the voxels of another list.
//
// Offset k of a kernel of n voxels along an axis is (k / n^2, k / n % n, k % n) - (n - 1) / 2,
// times the dilation: around the middle for an odd n, from 0 for an even one; x is the slowest
// axis.
#pragma once

#include "sparse/voxel_hash.h"

namespace fastshape {

constexpr int kMaxKernelSize = 3;

template <class Index>
struct NeighborTable {
  VoxelHash<Index> hash;
  const Index* queries;  // (num_queries, 4)
  int64_t num_queries;
  int kernel_size;  // 1 to kMaxKernelSize
  int64_t stride;
  int64_t dilation;
  int32_t* rows;  // (num_queries, kernel_size^3), kNoRow where no voxel is
};

// For every (m, k) the row of voxel stride * query + offset.
template <class Index>
FASTSHAPE_HOST_DEVICE int32_t neighbor_row(const NeighborTable<Index>& task, const Voxel& query,
                                           int k) {
  const int n = task.kernel_size, middle = (n - 1) / 2;
  return find_voxel(task.hash,
                    {query.batch, query.x * task.stride + (k / (n * n) - middle) * task.dilation,
                     query.y * task.stride + (k / n % n - middle) * task.dilation,
                     query.z * task.stride + (k % n - middle) * task.dilation});
}

// inverse[rows[m][k]][k] = m, kNoRow where no row says anything. No entry is twice in a column.
struct InvertTable {
  const int32_t* rows;  // (num_rows, width)
  int64_t num_rows;
  int64_t width;
  int32_t* inverse;  // (num_inverse, width)
  int64_t num_inverse;
};

// Rows that have neighbors at the same offsets behind each other, ascending among them.
struct OrderRows {
  const int32_t* rows;  // (num_rows, width)
  int64_t num_rows;
  int width;       // at most 32
  int32_t* order;  // (num_rows,)
};

// Bit k: there is a neighbor at offset k.
FASTSHAPE_HOST_DEVICE uint32_t offset_bits(const OrderRows& task, int64_t row) {
  uint32_t bits = 0;
  for (int k = 0; k < task.width; ++k)
    bits |= static_cast<uint32_t>(task.rows[task.width * row + k] >= 0) << k;
  return bits;
}

namespace cpu {
template <class Index>
void neighbor_table(const NeighborTable<Index>& task);
void invert_table(const InvertTable& task);
void order_rows(const OrderRows& task);
}  // namespace cpu

namespace cuda {
template <class Index>
void neighbor_table(const NeighborTable<Index>& task, cudaStream_t stream);
void invert_table(const InvertTable& task, cudaStream_t stream);
size_t order_rows_workspace_bytes(int64_t num_rows);
void order_rows(const OrderRows& task, void* workspace, cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
