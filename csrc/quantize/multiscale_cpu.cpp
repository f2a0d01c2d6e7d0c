#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "quantize/convolve_cpu.h"
#include "quantize/multiscale.h"
#include "quantize/search_cpu.h"

namespace fastshape::cpu {
namespace {

// out = sum over [begin, end) of weight[k * weight_stride] * in[k * stride + ...], a vector.
template <class T>
void combine(const T* weight, int weight_stride, const T* in, int64_t stride, int begin, int end,
             int dim, T* out) {
  std::fill_n(out, dim, T(0));
  for (int k = begin; k < end; ++k) {
    const T w = weight[static_cast<int64_t>(k) * weight_stride];
    const T* const row = in + k * stride;
    for (int c = 0; c < dim; ++c) out[c] = out[c] + w * row[c];
  }
}

// down_component of all tokens of a scale: `out` (height, width, dim).
template <class T>
void down(const Multiscale<T>& task, const Scale<T>& scale, const T* grid, T* rows, T* out) {
  const int dim = task.dim, w = scale.width;
  parallel_for(task.height, 8, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y)
      for (int j = 0; j < w; ++j)
        combine(scale.down_x + static_cast<int64_t>(j) * task.width, 1, grid + y * task.width * dim,
                dim, scale.down_x_band[2 * j], scale.down_x_band[2 * j + 1], dim,
                rows + (y * w + j) * dim);
  });
  for (int i = 0; i < scale.height; ++i)
    for (int j = 0; j < w; ++j)
      combine(scale.down_y + static_cast<int64_t>(i) * task.height, 1, rows + j * dim,
              static_cast<int64_t>(w) * dim, scale.down_y_band[2 * i], scale.down_y_band[2 * i + 1],
              dim, out + (static_cast<int64_t>(i) * w + j) * dim);
}

// Where a cell stands in a grid with zeros around it.
template <class T>
int64_t padded_cell(const Multiscale<T>& task, int64_t y, int64_t x) {
  return (y + 1) * (task.width + 2) + x + 1;
}
template <class T>
int64_t padded_cells(const Multiscale<T>& task) {
  return int64_t{1} * (task.height + 2) * (task.width + 2);
}

// up_component of all cells, into the inside of `padded` (H + 2, W + 2, dim).
template <class T>
void up(const Multiscale<T>& task, const Scale<T>& scale, const int64_t* codes, T* rows, T* tokens,
        T* padded) {
  const int dim = task.dim, w = scale.width;
  for (int64_t t = 0; t < int64_t{1} * scale.height * w; ++t)
    for (int c = 0; c < dim; ++c) tokens[t * dim + c] = code_component(task, codes[t], c);
  for (int64_t i = 0; i < scale.height; ++i)
    for (int x = 0; x < task.width; ++x)
      combine(scale.up_x + static_cast<int64_t>(x) * w, 1, tokens + i * w * dim, dim,
              scale.up_x_band[2 * x], scale.up_x_band[2 * x + 1], dim,
              rows + (i * task.width + x) * dim);
  parallel_for(task.height, 8, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y)
      for (int x = 0; x < task.width; ++x)
        combine(scale.up_y + y * scale.height, 1, rows + static_cast<int64_t>(x) * dim,
                static_cast<int64_t>(task.width) * dim, scale.up_y_band[2 * y],
                scale.up_y_band[2 * y + 1], dim, padded + padded_cell(task, y, x) * dim);
  });
}

template <class T>
void up_transposed(const Multiscale<T>& task, const Scale<T>& scale, const T* grid, T* rows,
                   T* out) {
  const int dim = task.dim, w = scale.width;
  for (int64_t i = 0; i < scale.height; ++i)
    for (int x = 0; x < task.width; ++x)
      combine(scale.up_y + i, scale.height, grid + static_cast<int64_t>(x) * dim,
              static_cast<int64_t>(task.width) * dim, scale.up_y_columns[2 * i],
              scale.up_y_columns[2 * i + 1], dim, rows + (i * task.width + x) * dim);
  for (int64_t i = 0; i < scale.height; ++i)
    for (int j = 0; j < w; ++j)
      combine(scale.up_x + j, w, rows + i * task.width * dim, dim, scale.up_x_columns[2 * j],
              scale.up_x_columns[2 * j + 1], dim, out + (i * w + j) * dim);
}

// ---- Weights of phi in the convolution's layout ------------------------------------------------

template <class T>
struct PhiWeights {
  int64_t size, stride;
  std::vector<T> forward, bias;  // (phis, 9, dim, padded), (phis, padded)
  std::vector<T> transposed;     // the same with taps turned around and components changed
};

template <class T>
PhiWeights<T> phi_weights(const Multiscale<T>& task, bool transposed) {
  PhiWeights<T> out;
  const int dim = task.dim;
  out.stride = padded_dim(dim);
  out.size = kTaps * dim * out.stride;
  if (task.phi_weight == nullptr) return out;
  const auto phis = static_cast<size_t>(task.num_phis);
  std::vector<T>& weights = transposed ? out.transposed : out.forward;
  weights.assign(phis * static_cast<size_t>(out.size), T(0));
  out.bias.assign(phis * static_cast<size_t>(out.stride), T(0));
  for (int64_t p = 0; p < task.num_phis; ++p) {
    if (!transposed) std::copy_n(task.phi_bias + p * dim, dim, out.bias.data() + p * out.stride);
    for (int tap = 0; tap < kTaps; ++tap)
      for (int i = 0; i < dim; ++i)
        for (int o = 0; o < dim; ++o) {
          const T value = task.phi_weight[((p * kTaps + tap) * dim + i) * dim + o];
          T* const one = weights.data() + p * out.size;
          if (transposed)
            one[(static_cast<int64_t>(kTaps - 1 - tap) * dim + o) * out.stride + i] = value;
          else
            one[(static_cast<int64_t>(tap) * dim + i) * out.stride + o] = value;
        }
  }
  return out;
}

// Samples side by side where there are enough of them; otherwise their rows.
template <class F>
void for_samples(int64_t batch, F&& f) {
  if (batch >= num_threads())
    parallel_for(batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) f(b);
    });
  else
    for (int64_t b = 0; b < batch; ++b) f(b);
}

// ---- Forward -----------------------------------------------------------------------------------

template <class T>
struct Forward {
  const Multiscale<T>& task;
  const MultiscaleForward<T>& out;
  PackedCodebook<T> packed;
  PhiWeights<T> phi;
  SearchRows<T> search;
  Convolve<T> convolve;

  void find_codes(const Scale<T>& scale, int s, const T* tokens, int64_t* codes) const {
    const int64_t rows = block_rows(task.dim);
    parallel_for(int64_t{1} * scale.height * scale.width, rows, [&](int64_t begin, int64_t end) {
      int32_t index[kMaxBlockRows];
      for (; begin < end; begin += rows) {
        const int count = static_cast<int>(std::min(rows, end - begin));
        search(packed, tokens + begin * task.dim, count, index);
        for (int k = 0; k < count; ++k) {
          codes[begin + k] = index[k];
          if (out.counts != nullptr)
            __atomic_fetch_add(out.counts + s * task.num_codes + index[k], int64_t{1},
                               __ATOMIC_RELAXED);
        }
      }
    });
  }

  // h onto fhat, and off the residual.
  void add(const Scale<T>& scale, int s, int64_t b, const T* padded, T* residual) const {
    const int dim = task.dim;
    T* const fhat = out.quantized + b * task.cells * dim;
    parallel_for(task.height, 4, [&](int64_t begin, int64_t end) {
      std::vector<T> row(static_cast<size_t>(task.width * phi.stride));
      for (int64_t y = begin; y < end; ++y) {
        if (task.phi_weight != nullptr)
          convolve.row({task.height, task.width, dim}, padded,
                       phi.forward.data() + scale.phi * phi.size,
                       phi.bias.data() + scale.phi * phi.stride, static_cast<int>(y), row.data());
        for (int x = 0; x < task.width; ++x) {
          const int64_t cell = y * task.width + x;
          const T* const u = padded + padded_cell(task, y, x) * dim;
          const T* const v = row.data() + x * phi.stride;
          T error = T(0);
          for (int c = 0; c < dim; ++c) {
            const T h =
                task.phi_weight == nullptr ? u[c] : (T(1) - task.ratio) * u[c] + task.ratio * v[c];
            fhat[cell * dim + c] = fhat[cell * dim + c] + h;
            if (out.z == nullptr) continue;
            T& left = residual[cell * dim + c];
            left = left - h;
            error = error + left * left;
          }
          if (out.z != nullptr) out.square_error[(s * task.batch + b) * task.cells + cell] = error;
        }
      }
    });
  }

  void sample(int64_t b) const {
    const int dim = task.dim;
    const auto values = static_cast<size_t>(task.cells * dim);
    int64_t most = 0;
    for (int s = 0; s < task.num_scales; ++s)
      most = std::max<int64_t>(
          {most, int64_t{1} * task.scales[s].height * std::max(task.width, task.scales[s].width),
           int64_t{1} * task.height * task.scales[s].width});
    std::vector<T> rows(static_cast<size_t>(most * dim)), tokens(static_cast<size_t>(most * dim));
    std::vector<T> residual(values), padded(static_cast<size_t>(padded_cells(task) * dim), T(0));
    T* const fhat = out.quantized + b * task.cells * dim;
    std::fill_n(fhat, values, T(0));
    if (out.z != nullptr) std::copy_n(out.z + b * task.cells * dim, values, residual.data());
    int64_t* const all_codes = out.codes + b * task.num_tokens;
    for (int s = 0; s < task.num_scales; ++s) {
      const Scale<T>& scale = task.scales[s];
      int64_t* const codes = all_codes + scale.first_token;
      if (out.z != nullptr) {
        down(task, scale, residual.data(), rows.data(), tokens.data());
        find_codes(scale, s, tokens.data(), codes);
      }
      up(task, scale, codes, rows.data(), tokens.data(), padded.data());
      add(scale, s, b, padded.data(), residual.data());
      if (out.residuals != nullptr)
        std::copy_n(residual.data(), values,
                    out.residuals + (s * task.batch + b) * task.cells * dim);
      if (out.inputs != nullptr && s + 1 < task.num_scales) {
        const int64_t first = task.scales[1].first_token;
        down(task, task.scales[s + 1], fhat, rows.data(),
             out.inputs +
                 (b * (task.num_tokens - first) + task.scales[s + 1].first_token - first) * dim);
      }
    }
  }
};

// ---- Backward ----------------------------------------------------------------------------------

template <class T>
void backward_sample(const Multiscale<T>& task, const MultiscaleBackward<T>& out,
                     const PhiWeights<T>& phi, const Convolve<T>& convolve, int64_t b,
                     T* weight_sums, T* bias_sums) {
  const int dim = task.dim;
  const auto values = static_cast<size_t>(task.cells * dim);
  int64_t most = 0;
  for (int s = 0; s < task.num_scales; ++s)
    most = std::max<int64_t>(
        most, int64_t{1} * task.scales[s].height * std::max(task.width, task.scales[s].width));
  std::vector<T> rows(static_cast<size_t>(most * dim)), tokens(static_cast<size_t>(most * dim));
  const auto padded_values = static_cast<size_t>(padded_cells(task) * dim);
  std::vector<T> grad(values, T(0)), grad_up(values), padded_grad(padded_values, T(0));
  std::vector<T> padded_up(padded_values, T(0));
  std::vector<T> wide(static_cast<size_t>(task.cells * phi.stride), T(0));
  T* const grad_z = out.grad_z + b * task.cells * dim;
  std::fill_n(grad_z, values, T(0));
  const ConvolveSizes sizes{task.height, task.width, dim};
  for (int s = task.num_scales - 1; s >= 0; --s) {
    const Scale<T>& scale = task.scales[s];
    const T* const residual = out.residuals + (s * task.batch + b) * task.cells * dim;
    const T code_weight = out.code_weights[s], residual_weight = out.residual_weights[s];
    for (size_t i = 0; i < values; ++i) {
      grad[i] = grad[i] - code_weight * residual[i];
      grad_z[i] = grad_z[i] + residual_weight * residual[i];
    }
    const T* grad_of_up = grad.data();
    if (task.phi_weight != nullptr) {
      for (int64_t y = 0; y < task.height; ++y)
        for (int64_t x = 0; x < task.width; ++x) {
          const T* const g = grad.data() + (y * task.width + x) * dim;
          std::copy_n(g, dim, padded_grad.data() + padded_cell(task, y, x) * dim);
          std::copy_n(g, dim, wide.data() + (y * task.width + x) * phi.stride);
        }
      const int64_t* const codes = out.codes + b * task.num_tokens + scale.first_token;
      up(task, scale, codes, rows.data(), tokens.data(), padded_up.data());
      convolve.weight(sizes, padded_up.data(), wide.data(), weight_sums + scale.phi * phi.size);
      for (int64_t cell = 0; cell < task.cells; ++cell)
        for (int c = 0; c < dim; ++c) {
          T& sum = bias_sums[scale.phi * phi.stride + c];
          sum = sum + grad[static_cast<size_t>(cell * dim + c)];
        }
      parallel_for(task.height, 4, [&](int64_t begin, int64_t end) {
        std::vector<T> row(static_cast<size_t>(task.width * phi.stride));
        for (int64_t y = begin; y < end; ++y) {
          convolve.row(sizes, padded_grad.data(), phi.transposed.data() + scale.phi * phi.size,
                       phi.bias.data() + scale.phi * phi.stride, static_cast<int>(y), row.data());
          for (int x = 0; x < task.width; ++x)
            for (int c = 0; c < dim; ++c) {
              const auto at = static_cast<size_t>((y * task.width + x) * dim + c);
              grad_up[at] = (T(1) - task.ratio) * grad[at] +
                            task.ratio * row[static_cast<size_t>(x * phi.stride + c)];
            }
        }
      });
      grad_of_up = grad_up.data();
    }
    up_transposed(task, scale, grad_of_up, rows.data(),
                  out.grad_codes + (b * task.num_tokens + scale.first_token) * dim);
  }
}

}  // namespace

template <class T>
size_t multiscale_workspace_bytes(int64_t num_codes, int dim) {
  WorkspaceCutter cutter(nullptr);
  take_packed_codebook<T>(cutter, num_codes, dim);
  return cutter.bytes();
}

template <class T>
void multiscale_quantize(const Multiscale<T>& task, const MultiscaleForward<T>& out,
                         void* workspace) {
  if (out.counts != nullptr) std::fill_n(out.counts, task.num_scales * task.num_codes, int64_t{0});
  if (task.batch == 0) return;
  WorkspaceCutter cutter(workspace);
  const auto packed = take_packed_codebook<T>(cutter, task.num_codes, task.dim);
  if (out.z != nullptr)
    pack_codebook(Codebook<T>{task.codebook, task.num_codes, task.dim, task.cosine}, packed);
  const Forward<T> forward{task,         out, packed, phi_weights(task, false), search_rows<T>(),
                           convolve<T>()};
  for_samples(task.batch, [&](int64_t b) { forward.sample(b); });
}

template <class T>
void multiscale_backward(const Multiscale<T>& task, const MultiscaleBackward<T>& out) {
  const PhiWeights<T> phi = phi_weights(task, true);
  const Convolve<T> best = convolve<T>();
  // Each sample sums for itself, and the samples are added in their order.
  const int64_t weights = task.num_phis * phi.size, biases = task.num_phis * phi.stride;
  std::vector<T> sums(static_cast<size_t>(task.batch * (weights + biases)), T(0));
  for_samples(task.batch, [&](int64_t b) {
    T* const mine = sums.data() + b * (weights + biases);
    backward_sample(task, out, phi, best, b, mine, mine + weights);
  });
  if (out.grad_phi_weight == nullptr) return;
  const int dim = task.dim;
  const auto total = [&](int64_t at) {
    double sum = 0.0;
    for (int64_t b = 0; b < task.batch; ++b)
      sum += static_cast<double>(sums[static_cast<size_t>(b * (weights + biases) + at)]);
    return task.ratio * static_cast<T>(sum);
  };
  for (int64_t row = 0; row < static_cast<int64_t>(task.num_phis) * kTaps * dim; ++row)
    for (int o = 0; o < dim; ++o) out.grad_phi_weight[row * dim + o] = total(row * phi.stride + o);
  for (int64_t p = 0; p < task.num_phis; ++p)
    for (int o = 0; o < dim; ++o)
      out.grad_phi_bias[p * dim + o] = total(weights + p * phi.stride + o);
}

#define FASTSHAPE_INSTANTIATE(T)                                                                  \
  template size_t multiscale_workspace_bytes<T>(int64_t, int);                                    \
  template void multiscale_quantize<T>(const Multiscale<T>&, const MultiscaleForward<T>&, void*); \
  template void multiscale_backward<T>(const Multiscale<T>&, const MultiscaleBackward<T>&);
FASTSHAPE_INSTANTIATE(float)
FASTSHAPE_INSTANTIATE(double)
#undef FASTSHAPE_INSTANTIATE

}  // namespace fastshape::cpu
