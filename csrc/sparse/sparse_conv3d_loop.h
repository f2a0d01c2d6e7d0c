// The loops of the convolution on the CPU, compiled once per instruction set: include it from one
// .cpp each.
//
// The pairs of rows that meet at an offset are listed for a block of rows of the result, so that no
// product with a missing neighbor is calculated, and taken kRows at a time from the memory they lie
// in; their sums lie in a block of their own that stays in the cache.
#pragma once

#include <algorithm>

#include "sparse/sparse_conv3d_cpu.h"
#include "sparse/sparse_conv3d_lanes.h"

namespace fastshape {
namespace {

constexpr int64_t kDepthPart =
    128;  // input channels at a time: a panel of them stays in the first cache

// Rows of features, and where their sums lie.
template <class T>
struct TileRows {
  const T* in[ConvLanes<T>::kRows];
  typename Wide<T>::type* sums[ConvLanes<T>::kRows];
};

// sums += in[i][0:depth] times a panel, of which nothing is added before it is all summed.
template <class T, int kRows>
inline void add_tile(const TileRows<T>& rows, int64_t depth, const T* panel) {
  using L = ConvLanes<T>;
  typename L::Vector left[kRows], right[kRows];
  const T* in[kRows];
  for (int i = 0; i < kRows; ++i) {
    in[i] = rows.in[i];
    left[i] = right[i] = L::zero();
  }
  for (int64_t d = 0; d < depth; d += L::kStep) {
    auto b = L::load(panel), c = L::load(panel + L::kLanes * L::kStep);
    FASTSHAPE_IN_REGISTERS(b, c);
    panel += 2 * L::kLanes * L::kStep;
    for (int i = 0; i < kRows; ++i) {
      const auto a = L::all(in[i] + d);
      left[i] = L::add_product(a, b, left[i]);
      right[i] = L::add_product(a, c, right[i]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    auto* const sums = rows.sums[i];
    L::store(sums, L::add(L::load(sums), left[i]));
    L::store(sums + L::kLanes, L::add(L::load(sums + L::kLanes), right[i]));
  }
}

template <class T, int kRows = ConvLanes<T>::kRows>
inline void add_tile_of(int count, const TileRows<T>& rows, int64_t depth, const T* panel) {
  if constexpr (kRows > 0) {
    if (count == kRows) return add_tile<T, kRows>(rows, depth, panel);
    return add_tile_of<T, kRows - 1>(count, rows, depth, panel);
  }
}

template <class T>
void pack_panels(const SparseConv3d<T>& task, int k, T* panels) {
  using L = ConvLanes<T>;
  constexpr int64_t kPanel = 2 * L::kLanes, kStep = L::kStep;
  const int64_t depth = task.in_channels;
  for (int64_t first = 0; first < task.out_channels; first += kPanel, panels += depth * kPanel) {
    for (int64_t column = 0; column < kPanel; ++column) {
      const int64_t o = first + column;
      const T* from = task.weight + (o * task.num_offsets + k) * depth;
      for (int64_t d = 0; d < depth; ++d)
        panels[d / kStep * kStep * kPanel + column * kStep + d % kStep] =
            o < task.out_channels ? from[d] : T{};
    }
  }
}

// The rows of [begin, end) that have a neighbor at offset k.
inline int64_t list_pairs(const int32_t* rows, int num_offsets, int k, int64_t begin, int64_t end,
                          cpu::RowPair* pairs) {
  int64_t count = 0;
  for (int64_t m = begin; m < end; ++m) {
    const int32_t row = rows[m * num_offsets + k];
    pairs[count] = {static_cast<int32_t>(m - begin), row};
    count += row >= 0;
  }
  return count;
}

template <class T>
void conv_rows(const SparseConv3d<T>& task, const T* panels, int64_t begin, int64_t end,
               typename Wide<T>::type* sums, cpu::RowPair* pairs) {
  using L = ConvLanes<T>;
  constexpr int64_t kPanel = 2 * L::kLanes;
  const int64_t depth = task.in_channels;
  const int64_t width = (task.out_channels + kPanel - 1) / kPanel * kPanel;
  std::fill(sums, sums + (end - begin) * width, 0);
  for (int k = 0; k < task.num_offsets; ++k, panels += width * depth) {
    const int64_t count = list_pairs(task.rows, task.num_offsets, k, begin, end, pairs);
    for (int64_t first = 0; first < depth && count > 0; first += kDepthPart) {
      const int64_t part = std::min(kDepthPart, depth - first);
      for (int64_t column = 0; column < width; column += kPanel) {
        const T* panel = panels + column * depth + first * kPanel;
        for (int64_t p = 0; p < count; p += L::kRows) {
          const int rows = static_cast<int>(std::min<int64_t>(L::kRows, count - p));
          TileRows<T> tile;
          for (int i = 0; i < rows; ++i) {
            tile.in[i] = task.feats + pairs[p + i].in * depth + first;
            tile.sums[i] = sums + pairs[p + i].out * width + column;
          }
          add_tile_of<T>(rows, tile, part, panel);
        }
      }
    }
  }
  for (int64_t m = begin; m < end; ++m, sums += width) {
    T* out = task.out + m * task.out_channels;
    for (int64_t o = 0; o < task.out_channels; ++o)
      narrow(task.bias == nullptr ? sums[o] : sums[o] + widen(task.bias[o]), out + o);
  }
}

// ---- The weight's gradient
// -----------------------------------------------------------------------

// The result's rows whose pairs are summed in registers, before they are added to the gradient;
// they and their neighbors stay in the cache for all offsets of a part.
constexpr int64_t kBlockRows = 256;

// kRows rows of the gradient from `o`, `columns` columns from `i`, two registers of them.
template <class T, int kRows, bool kWhole>
inline void add_outer(const SparseConv3dWeightGrad<T>& task, int k, const cpu::RowPair* pairs,
                      int64_t count, int64_t o, int64_t i, int columns) {
  using L = ConvLanes<T>;
  const auto load = [columns](const T* p, int at) {
    if constexpr (kWhole)
      return L::load(p + at);
    else
      return L::load(p + at, columns - at);
  };
  typename L::Vector left[kRows], right[kRows];
  for (int r = 0; r < kRows; ++r) left[r] = right[r] = L::zero();
  for (int64_t p = 0; p < count; ++p) {
    const T* in = task.feats + pairs[p].in * task.in_channels + i;
    const T* grad = task.grad_out + pairs[p].out * task.out_channels + o;
    auto b = load(in, 0), c = load(in, L::kLanes);
    FASTSHAPE_IN_REGISTERS(b, c);
    for (int r = 0; r < kRows; ++r) {
      const auto a = L::all(grad + r);
      left[r] = L::add_product(a, b, left[r]);
      right[r] = L::add_product(a, c, right[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    T* out = task.grad_weight + ((o + r) * task.num_offsets + k) * task.in_channels + i;
    if constexpr (kWhole) {
      L::store(out, L::add(L::load(out), left[r]));
      L::store(out + L::kLanes, L::add(L::load(out + L::kLanes), right[r]));
    } else {
      L::store(out, L::add(L::load(out, columns), left[r]), columns);
      const int rest = columns - L::kLanes;
      if (rest > 0)
        L::store(out + L::kLanes, L::add(L::load(out + L::kLanes, rest), right[r]), rest);
    }
  }
}

template <class T, int kRows = ConvLanes<T>::kRows>
inline void add_outer_of(int rows, const SparseConv3dWeightGrad<T>& task, int k,
                         const cpu::RowPair* pairs, int64_t count, int64_t o, int64_t i) {
  if constexpr (kRows > 0) {
    if (rows != kRows) return add_outer_of<T, kRows - 1>(rows, task, k, pairs, count, o, i);
    constexpr int kPanel = 2 * ConvLanes<T>::kLanes;
    const int64_t columns = task.in_channels - i;
    if (columns >= kPanel)
      add_outer<T, kRows, true>(task, k, pairs, count, o, i, kPanel);
    else
      add_outer<T, kRows, false>(task, k, pairs, count, o, i, static_cast<int>(columns));
  }
}

template <class T>
void weight_grad_sums(const SparseConv3dWeightGrad<T>& task, const cpu::PairLists& lists,
                      const cpu::WeightGradPart& part) {
  using L = ConvLanes<T>;
  for (int64_t o = part.first_channel; o < part.end_channel; ++o) {
    T* const row = task.grad_weight + o * task.num_offsets * task.in_channels;
    std::fill(row + part.first_offset * task.in_channels, row + part.end_offset * task.in_channels,
              T(0));
  }
  int64_t next[kMaxOffsets];
  std::copy(lists.begin + part.first_offset, lists.begin + part.end_offset, next);
  for (int64_t block = kBlockRows; block < task.num_rows + kBlockRows; block += kBlockRows) {
    for (int k = part.first_offset; k < part.end_offset; ++k) {
      int64_t& end = next[k - part.first_offset];
      const cpu::RowPair* const pairs = lists.pairs + end;
      const int64_t first = end;
      while (end < lists.begin[k + 1] && lists.pairs[end].out < block) ++end;
      if (end == first) continue;
      for (int64_t i = 0; i < task.in_channels; i += 2 * L::kLanes) {
        for (int64_t o = part.first_channel; o < part.end_channel; o += L::kRows) {
          const int rows = static_cast<int>(std::min<int64_t>(L::kRows, part.end_channel - o));
          add_outer_of<T>(rows, task, k, pairs, end - first, o, i);
        }
      }
    }
  }
}

template <class T>
void conv_kernels(cpu::ConvKernels<T>* out) {
  *out = {2 * ConvLanes<T>::kLanes, pack_panels<T>, conv_rows<T>};
}
template <class T>
void conv_kernels(cpu::WeightGradKernel<T>* out) {
  *out = {ConvLanes<T>::kRows, weight_grad_sums<T>};
}

}  // namespace

#define FASTSHAPE_DEFINE_CONV_KERNELS(suffix)                                          \
  void cpu::conv_kernels_##suffix(ConvKernels<float>* out) { conv_kernels(out); }      \
  void cpu::conv_kernels_##suffix(ConvKernels<double>* out) { conv_kernels(out); }     \
  void cpu::conv_kernels_##suffix(WeightGradKernel<float>* out) { conv_kernels(out); } \
  void cpu::conv_kernels_##suffix(WeightGradKernel<double>* out) { conv_kernels(out); }

}  // namespace fastshape
