#include "sparse/sparse_conv3d_cpu.h"

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "sparse/sparse_conv3d_loop.h"

namespace fastshape {
FASTSHAPE_DEFINE_CONV_KERNELS(portable)
}  // namespace fastshape

namespace fastshape::cpu {
namespace {

constexpr int64_t kBlockBytes = 1 << 18;  // sums of a block of rows, in the second cache
constexpr int64_t kPiece = 1 << 14;       // numbers that a thread converts at a time

// Kernels: ConvKernels<T> or WeightGradKernel<T> of float or double.
template <class Kernels>
Kernels kernels_in_use() {
  Kernels kernels;
#if defined(FASTSHAPE_X86)
  switch (instruction_set()) {
    case InstructionSet::avx512:
      conv_kernels_avx512(&kernels);
      return kernels;
    case InstructionSet::avx2:
      conv_kernels_avx2(&kernels);
      return kernels;
    case InstructionSet::portable:
      break;
  }
#endif
  conv_kernels_portable(&kernels);
  return kernels;
}

template <class T>
void convolve(const SparseConv3d<T>& task, const ConvKernels<T>& kernels) {
  if (task.num_rows == 0 || task.out_channels == 0) return;
  const int64_t width = (task.out_channels + kernels.panel - 1) / kernels.panel * kernels.panel;
  std::vector<T> panels(static_cast<size_t>(width * task.in_channels * task.num_offsets));
  parallel_for(task.num_offsets, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k)
      kernels.pack(task, static_cast<int>(k), panels.data() + k * width * task.in_channels);
  });
  using W = typename Wide<T>::type;
  const int64_t fit = kBlockBytes / (width * static_cast<int64_t>(sizeof(W)));
  const int64_t share = (task.num_rows + 4 * num_threads() - 1) / (4 * num_threads());
  const int64_t block = std::clamp<int64_t>(std::min(fit, share), 32, 512);
  parallel_for((task.num_rows + block - 1) / block, 1, [&](int64_t first, int64_t last) {
    const std::unique_ptr<W[]> sums(new W[static_cast<size_t>(block * width)]);
    const std::unique_ptr<RowPair[]> pairs(new RowPair[static_cast<size_t>(block)]);
    for (int64_t b = first; b < last; ++b)
      kernels.rows(task, panels.data(), b * block, std::min(task.num_rows, (b + 1) * block),
                   sums.get(), pairs.get());
  });
}

struct AllPairs {
  std::vector<RowPair> pairs;
  int64_t begin[kMaxOffsets + 1];
};

AllPairs list_all_pairs(const int32_t* rows, int64_t num_rows, int num_offsets) {
  constexpr int64_t kRows = 2048;
  const int64_t blocks = (num_rows + kRows - 1) / kRows;
  std::vector<int64_t> next(static_cast<size_t>(blocks * num_offsets), 0);
  const auto of_block = [&](int64_t b, auto&& f) {
    int64_t* const counts = next.data() + b * num_offsets;
    for (int64_t m = b * kRows; m < std::min(num_rows, (b + 1) * kRows); ++m)
      for (int k = 0; k < num_offsets; ++k)
        if (rows[m * num_offsets + k] >= 0) f(counts[k]++, m, rows[m * num_offsets + k]);
  };
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) of_block(b, [](int64_t, int64_t, int32_t) {});
  });
  AllPairs lists;
  int64_t total = 0;
  for (int k = 0; k < num_offsets; ++k) {
    lists.begin[k] = total;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = next[static_cast<size_t>(b * num_offsets + k)];
      next[static_cast<size_t>(b * num_offsets + k)] = total;
      total += count;
    }
  }
  lists.begin[num_offsets] = total;
  lists.pairs.resize(static_cast<size_t>(total));
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      of_block(b, [&](int64_t at, int64_t m, int32_t row) {
        lists.pairs[static_cast<size_t>(at)] = {static_cast<int32_t>(m), row};
      });
  });
  return lists;
}

template <class T>
void sum_weight_grad(const SparseConv3dWeightGrad<T>& task) {
  const auto kernel = kernels_in_use<WeightGradKernel<T>>();
  const AllPairs all = list_all_pairs(task.rows, task.num_rows, task.num_offsets);
  const PairLists lists{all.pairs.data(), all.begin};
  const int64_t band = 8 * kernel.tile;
  const int64_t bands = (task.out_channels + band - 1) / band;
  // Offsets together read the rows once, and there should be some parts for every thread.
  const int64_t together =
      std::clamp<int64_t>(task.num_offsets * bands / (4 * num_threads()), 1, 4);
  const int64_t groups = (task.num_offsets + together - 1) / together;
  parallel_for(groups * bands, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t k = i / bands * together, o = i % bands * band;
      kernel.sums(
          task, lists,
          {static_cast<int>(k), static_cast<int>(std::min<int64_t>(task.num_offsets, k + together)),
           o, std::min(task.out_channels, o + band)});
    }
  });
}

// ---- 16-bit floats: as float, unless the processor multiplies them
// -------------------------------

template <class T>
std::vector<float> widened(const T* from, int64_t count) {
  std::vector<float> wide(static_cast<size_t>(count));
  parallel_for(count, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) wide[static_cast<size_t>(i)] = widen(from[i]);
  });
  return wide;
}

template <class T>
void narrow_all(const std::vector<float>& from, T* to) {
  parallel_for(static_cast<int64_t>(from.size()), kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) narrow(from[static_cast<size_t>(i)], to + i);
  });
}

template <class T>
void convolve_in_float(const SparseConv3d<T>& task) {
  const auto feats = widened(task.feats, task.num_feats * task.in_channels);
  const auto weight = widened(task.weight, task.out_channels * task.num_offsets * task.in_channels);
  const auto bias = widened(task.bias, task.bias == nullptr ? 0 : task.out_channels);
  std::vector<float> out(static_cast<size_t>(task.num_rows * task.out_channels));
  convolve<float>({feats.data(), weight.data(), task.bias == nullptr ? nullptr : bias.data(),
                   task.rows, nullptr, task.num_feats, task.num_rows, task.in_channels,
                   task.out_channels, task.num_offsets, out.data()},
                  kernels_in_use<ConvKernels<float>>());
  narrow_all(out, task.out);
}

}  // namespace

template <class T>
void sparse_conv3d(const SparseConv3d<T>& task) {
  if constexpr (std::is_same<T, float>::value || std::is_same<T, double>::value) {
    convolve(task, kernels_in_use<ConvKernels<T>>());
  } else {
#if defined(FASTSHAPE_X86)
    if constexpr (std::is_same<T, BFloat16>::value) {
      if (has_bfloat16_products() && task.in_channels % 2 == 0) {
        ConvKernels<T> kernels;
        conv_kernels_avx512bf16(&kernels);
        return convolve(task, kernels);
      }
    }
#endif
    convolve_in_float(task);
  }
}

template <class T>
void sparse_conv3d_weight_grad(const SparseConv3dWeightGrad<T>& task) {
  if constexpr (std::is_same<T, float>::value || std::is_same<T, double>::value) {
    sum_weight_grad(task);
  } else {
    const auto feats = widened(task.feats, task.num_feats * task.in_channels);
    const auto grad_out = widened(task.grad_out, task.num_rows * task.out_channels);
    std::vector<float> grad(
        static_cast<size_t>(task.out_channels * task.num_offsets * task.in_channels));
    sum_weight_grad<float>({feats.data(), grad_out.data(), task.rows, task.num_feats, task.num_rows,
                            task.in_channels, task.out_channels, task.num_offsets, grad.data()});
    narrow_all(grad, task.grad_weight);
  }
}

#define FASTSHAPE_INSTANTIATE(T)                          \
  template void sparse_conv3d<T>(const SparseConv3d<T>&); \
  template void sparse_conv3d_weight_grad<T>(const SparseConv3dWeightGrad<T>&);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
FASTSHAPE_INSTANTIATE(Float16)
FASTSHAPE_INSTANTIATE(BFloat16)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cpu
