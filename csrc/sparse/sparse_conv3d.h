// Convolutions over sparse voxels: products of gathered rows, one matrix for each offset of a
// kernel.
//
//   out[m] = bias + sum over k and i of weight[:, k, i] * feats[rows[m][k]][i]
//
// over the entries of the table that are not -1. The products of an offset and of kDepthPart input
// channels are added up one by one with fused multiply-adds, in the type that Wide names, and their
// sum to that of the ones before; k and i ascend. (The portable kernel has no fused ones, and
// tensor cores have their own order.) So a row's result depends on its own neighbors only: not on
// the order of the voxels, the number of threads or how the work was cut.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/half.h"
#include "core/host_device.h"

namespace fastshape {

constexpr int kMaxOffsets = 27;
constexpr int64_t kDepthPart = 128;

template <class T>
struct SparseConv3d {
  const T* feats;        // (num_feats, in_channels)
  const T* weight;       // (out_channels, num_offsets, in_channels)
  const T* bias;         // (out_channels,) or null
  const int32_t* rows;   // (num_rows, num_offsets), below num_feats; negative: no neighbor
  const int32_t* order;  // (num_rows,) in which rows are computed, or null; on the device only
  int64_t num_feats;
  int64_t num_rows;
  int64_t in_channels;
  int64_t out_channels;
  int num_offsets;  // at most kMaxOffsets
  T* out;           // (num_rows, out_channels)
};

// grad_weight[o, k, i] = sum over m of grad_out[m][o] * feats[rows[m][k]][i], m ascending in pieces
// whose length depends on the sizes alone.
template <class T>
struct SparseConv3dWeightGrad {
  const T* feats;     // (num_feats, in_channels)
  const T* grad_out;  // (num_rows, out_channels)
  const int32_t* rows;
  int64_t num_feats;
  int64_t num_rows;
  int64_t in_channels;
  int64_t out_channels;
  int num_offsets;
  T* grad_weight;  // (out_channels, num_offsets, in_channels)
};

namespace cpu {
template <class T>
void sparse_conv3d(const SparseConv3d<T>& task);
template <class T>
void sparse_conv3d_weight_grad(const SparseConv3dWeightGrad<T>& task);
}  // namespace cpu

namespace cuda {
template <class T>
void sparse_conv3d(const SparseConv3d<T>& task, cudaStream_t stream);
size_t sparse_conv3d_weight_grad_workspace_bytes(int64_t num_rows, int64_t in_channels,
                                                 int64_t out_channels, int num_offsets);
template <class T>
void sparse_conv3d_weight_grad(const SparseConv3dWeightGrad<T>& task, void* workspace,
                               cudaStream_t stream);
}  // namespace cuda

}  // namespace fastshape
