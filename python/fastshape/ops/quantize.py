"""Vectors as codes of a codebook: the nearest code, and level after level of what is left."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastshape._library import backend, define


def _bytes(size: int, like: Tensor) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=like.device)


def _rows(x: Tensor, dim: int) -> int:
    return x.numel() // max(dim, 1)


def _inner(x: Tensor) -> Tensor:
    """What the kernels compute in: half precision becomes float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _sizes(codebook: Tensor) -> tuple[int, int]:
    """Codes and components; what is no codebook is told so by the binding."""
    return (codebook.shape[-2], codebook.shape[-1]) if codebook.ndim in (2, 3) else (1, 1)


# ---- nearest_code ------------------------------------------------------------------------------------------


def _search_workspace(x: Tensor, codebook: Tensor) -> Tensor:
    num_codes, dim = _sizes(codebook)
    size = backend().nearest_code_workspace_bytes(
        num_codes, dim, _rows(x, dim), x.dtype == torch.float64, x.is_cuda
    )
    return _bytes(size, x)


def _new_nearest_code(x: Tensor, codebook: Tensor, cosine: bool, count: bool) -> tuple[Tensor, Tensor]:
    indices = x.new_empty(x.shape[:-1], dtype=torch.int64)
    return indices, x.new_empty(_sizes(codebook)[0] if count else 0, dtype=torch.int64)


def _nearest_code(x: Tensor, codebook: Tensor, cosine: bool, count: bool) -> tuple[Tensor, Tensor]:
    workspace = _search_workspace(x, codebook)
    indices, counts = _new_nearest_code(x, codebook, cosine, count)
    backend().nearest_code(x, codebook, cosine, workspace, indices, counts if count else None)
    return indices, counts


_nearest_code_op = define(
    "nearest_code(Tensor x, Tensor codebook, bool cosine, bool count) -> (Tensor, Tensor)",
    implementation=_nearest_code,
    fake=_new_nearest_code,
)


def nearest_code(
    x: Tensor, codebook: Tensor, *, cosine: bool = False, return_counts: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The code of a codebook that is nearest to each vector.

    The code with the least ``|e|^2 / 2 - x . e``, where both are first taken from the mean of the codes and
    multiplied by the power of two that brings the largest component of a code into [1/2, 1): what vectors
    and codes have in common, and their scale, cost no digits. Of equal scores the lowest index; of scores of
    which none is a number below infinity, 0. With ``cosine`` the code with the largest cosine instead.

    Args:
        x: (..., D), float32 or float64, contiguous; float16 and bfloat16 are computed in float32.
        codebook: (K, D), dtype of ``x`` (of half precision: any), contiguous. K at most 65536, D at most 256.
        cosine: codes are compared by their direction.
        return_counts: also how many of the vectors have each code.

    Returns:
        (...) int64; with ``return_counts`` a tuple of it and of (K,) int64.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous.

    Gradient: none.

    Device: CPU and CUDA with equal results; no sync. Beside the outputs one more codebook, on CUDA also 8
    bytes (float64: 12) for each vector and for at most 34,000 more; never a matrix of N x K.

    Reference: van den Oord et al. 2017, equation 2. The distance is expanded as usual, without ``|x|^2``.
    """
    x, codebook = _inner(x), _inner(codebook)
    indices, counts = _nearest_code_op(x, codebook, cosine, return_counts)
    return (indices, counts) if return_counts else indices


# ---- topk_codes --------------------------------------------------------------------------------------------


def _new_topk_codes(x: Tensor, codebook: Tensor, k: int, cosine: bool) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:-1], max(k, 0))
    return x.new_empty(shape, dtype=torch.int64), x.new_empty(shape)


def _topk_codes(x: Tensor, codebook: Tensor, k: int, cosine: bool) -> tuple[Tensor, Tensor]:
    workspace = _search_workspace(x, codebook)
    indices, square_distance = _new_topk_codes(x, codebook, k, cosine)
    backend().topk_codes(x, codebook, k, cosine, workspace, indices, square_distance)
    return indices, square_distance


_topk_codes_op = define(
    "topk_codes(Tensor x, Tensor codebook, int k, bool cosine) -> (Tensor, Tensor)",
    implementation=_topk_codes,
    fake=_new_topk_codes,
)


def topk_codes(x: Tensor, codebook: Tensor, k: int, *, cosine: bool = False) -> tuple[Tensor, Tensor]:
    """The ``k`` codes nearest to each vector, nearest first: to sample codes, or to look ahead in a search.

    The order is that of :func:`nearest_code`, whose answer is the first; of equal scores the lowest index
    first.

    Args:
        x, codebook, cosine: as of :func:`nearest_code`.
        k: in [1, min(32, K)].

    Returns:
        ``indices`` (..., k) int64 and ``square_distance`` (..., k), ``|x - e|^2`` of the vectors and codes as
        they were given.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous, ``k`` out of range.

    Gradient: none.

    Device: CPU and CUDA with equal results; no sync.

    Reference: as of :func:`nearest_code`; the list is kept by insertion.
    """
    return _topk_codes_op(_inner(x), _inner(codebook), k, cosine)


# ---- code_sums ---------------------------------------------------------------------------------------------


def _new_code_sums(values: Tensor, codes: Tensor, num_codes: int, levels: int) -> tuple[Tensor, Tensor]:
    dim = values.shape[-1] if values.ndim else 0
    return values.new_empty(levels * num_codes, dim), codes.new_empty(levels * num_codes, dtype=torch.int64)


def _code_sums(values: Tensor, codes: Tensor, num_codes: int, levels: int) -> tuple[Tensor, Tensor]:
    module = backend()
    workspace = _bytes(
        module.code_sums_workspace_bytes(codes.numel(), levels * num_codes, values.is_cuda), values
    )
    sums, counts = _new_code_sums(values, codes, num_codes, levels)
    module.code_sums(values, codes, num_codes, levels, workspace, sums, counts)
    return sums, counts


_code_sums_op = define(
    "code_sums(Tensor values, Tensor codes, int num_codes, int levels) -> (Tensor, Tensor)",
    implementation=_code_sums,
    fake=_new_code_sums,
)


def code_sums(values: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """What vectors sum up to at each of their codes, and how many they are: the statistics of a codebook.

    A code's vectors are added in the order of their rows, in double precision, and rounded once: the same
    bits on every device and run, for any number of threads. Codes out of range are left out.

    Args:
        values: (..., D), float32 or float64, contiguous; float16 and bfloat16 are summed as float32. D at
            most 256.
        codes: (...) int64, contiguous; fewer than 2^31.
        num_codes: K, positive.

    Returns:
        ``sums`` (K, D) and ``counts`` (K,) int64.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous.

    Gradient: none.

    Device: CPU and CUDA with equal results; no atomics, no sync.
    """
    return _code_sums_op(_inner(values), codes, num_codes, 1)


def ema_codebook(
    cluster_size: Tensor,
    code_sum: Tensor,
    counts: Tensor,
    sums: Tensor,
    *,
    decay: float = 0.99,
    epsilon: float = 1e-5,
) -> Tensor:
    """One step of a codebook that is the running mean of the vectors with its codes.

    Args:
        cluster_size: (K,), how many vectors a code has, as a running mean; updated in place.
        code_sum: (K, D), what they sum up to; updated in place.
        counts: (K,) of this batch, as :func:`code_sums` gives them; sum them over processes first.
        sums: (K, D) of this batch.
        decay: what is kept of the former means, in [0, 1].
        epsilon: Laplace smoothing, so that a code without vectors divides by no zero.

    Returns:
        (K, D), the new codebook.

    Gradient: none.

    Device: any; plain torch.

    Reference: van den Oord et al. 2017, appendix A.1; smoothing as in Razavi et al. 2019.
    """
    with torch.no_grad():
        cluster_size.lerp_(counts.to(cluster_size.dtype), 1 - decay)
        code_sum.lerp_(sums.to(code_sum.dtype), 1 - decay)
        total = cluster_size.sum()
        smoothed = (cluster_size + epsilon) / (total + len(cluster_size) * epsilon) * total
        return code_sum / smoothed[:, None]


# ---- residual_quantize -------------------------------------------------------------------------------------


class ResidualCodes(NamedTuple):
    """What :func:`residual_quantize` gives."""

    codes: Tensor  # (..., L) int64
    quantized: Tensor  # (..., D): the sum of the codes
    codebook_loss: Tensor  # (L,): mean squares of what each level left, with gradients to its codes
    commitment_loss: Tensor  # (L,): the same numbers, with gradients to ``x``
    counts: Tensor | None  # (L, K) int64


def _new_residual_quantize(
    x: Tensor, codebooks: Tensor, levels: int, cosine: bool, count: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_codes, dim = _sizes(codebooks)
    return (
        x.new_empty(*x.shape[:-1], max(levels, 0), dtype=torch.int64),
        torch.empty_like(x),
        x.new_empty(max(levels, 0), _rows(x, dim)),
        x.new_empty(max(levels, 0) if count else 0, num_codes, dtype=torch.int64),
    )


def _residual_quantize(
    x: Tensor, codebooks: Tensor, levels: int, cosine: bool, count: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    module = backend()
    num_codes, dim = _sizes(codebooks)
    num_books = len(codebooks) if codebooks.ndim == 3 else 1
    workspace = _bytes(
        module.residual_quantize_workspace_bytes(
            num_codes, dim, num_books, _rows(x, dim), x.dtype == torch.float64, x.is_cuda
        ),
        x,
    )
    codes, quantized, square_error, counts = _new_residual_quantize(x, codebooks, levels, cosine, count)
    module.residual_quantize(
        x, codebooks, cosine, workspace, codes, quantized, square_error, counts if count else None
    )
    return codes, quantized, square_error, counts


_residual_quantize_op = define(
    "residual_quantize(Tensor x, Tensor codebooks, int levels, bool cosine, bool count)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    implementation=_residual_quantize,
    fake=_new_residual_quantize,
)


def _new_residual_quantize_backward(
    x: Tensor, codebooks: Tensor, codes: Tensor, residual_weights: Tensor, code_weights: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(*codes.shape, x.shape[-1])


def _residual_quantize_backward(
    x: Tensor, codebooks: Tensor, codes: Tensor, residual_weights: Tensor, code_weights: Tensor
) -> tuple[Tensor, Tensor]:
    grad_x, grad_codes = _new_residual_quantize_backward(x, codebooks, codes, residual_weights, code_weights)
    backend().residual_quantize_backward(
        x, codebooks, codes, residual_weights, code_weights, grad_x, grad_codes
    )
    return grad_x, grad_codes


_residual_quantize_backward_op = define(
    "residual_quantize_backward(Tensor x, Tensor codebooks, Tensor codes, Tensor residual_weights,"
    " Tensor code_weights) -> (Tensor, Tensor)",
    implementation=_residual_quantize_backward,
    fake=_new_residual_quantize_backward,
)


def _level_losses(square_error: Tensor, dim: int) -> Tensor:
    return square_error.mean(1) / dim


class _ResidualQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codebooks: Tensor, levels: int, cosine: bool, count: bool
    ) -> tuple[Tensor, ...]:
        codes, quantized, square_error, counts = _residual_quantize_op(x, codebooks, levels, cosine, count)
        ctx.save_for_backward(x, codebooks, codes)
        ctx.mark_non_differentiable(codes, counts)
        loss = _level_losses(square_error, x.shape[-1])
        return codes, quantized, loss, loss.clone(), counts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, _: Any, grad_quantized: Tensor, grad_code: Tensor, grad_residual: Tensor, __: Any
    ) -> tuple[Tensor | None, ...]:
        x, codebooks, codes = ctx.saved_tensors
        # d mean(r^2) = 2 r / (rows * components)
        factor = 2.0 / max(x.numel(), 1)
        grad_x, grad_codes = _residual_quantize_backward_op(
            x, codebooks, codes, grad_residual * factor, grad_code * factor
        )
        grad_codebooks = None
        if ctx.needs_input_grad[1]:
            shared = codebooks.ndim == 2
            levels = 1 if shared else codes.shape[-1]
            sums = _code_sums_op(grad_codes, codes, codebooks.shape[-2], levels)[0]
            grad_codebooks = sums.view(codebooks.shape)
        return grad_x + grad_quantized, grad_codebooks, None, None, None


def residual_quantize(
    x: Tensor,
    codebooks: Tensor,
    *,
    num_levels: int | None = None,
    cosine: bool = False,
    return_counts: bool = False,
) -> ResidualCodes:
    """Vectors as sums of codes: each level takes the code nearest to what the former ones left.

    Args:
        x: (..., D), float32 or float64, contiguous; float16 and bfloat16 are computed, and returned, in
            float32.
        codebooks: (L, K, D), one for each level, or (K, D), shared by all; as of :func:`nearest_code`.
        num_levels: L, at most 4096; needed where the codebook is shared.
        cosine: the code with the largest cosine is taken, as it is; see :func:`nearest_code`.
        return_counts: also how many vectors have each code on each level.

    Returns:
        :class:`ResidualCodes`. Both losses are the mean over vectors and components of the square of what
        is left after each level, ``mean((r_l - e_l)^2)``.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous, no number of levels.

    Gradient: ``quantized`` hands its gradient to ``x`` as it is (straight through), and none to the
    codebooks. ``codebook_loss`` goes to the codes that were taken, with what they were taken for held fast;
    ``commitment_loss`` to ``x``, with codes and former levels held fast. Once; no float atomics: the same
    bits on every run.

    Device: CPU and CUDA, equal codes; no sync. The levels of a vector run through one after the other and
    nothing of N x K is written.

    Reference: Zeghidour et al. 2021, algorithm 1; losses of van den Oord et al. 2017, equation 3.
    vector-quantize-pytorch hands the gradient of the sum to ``x`` once for every level; here it is once.
    """
    x, codebooks = _inner(x), _inner(codebooks)
    if num_levels is None:
        if codebooks.ndim == 2:
            raise ValueError("`num_levels` must be given where `codebooks` is one codebook (K, D)")
        num_levels = len(codebooks) if codebooks.ndim else 0
    if torch.is_grad_enabled() and (x.requires_grad or codebooks.requires_grad):
        codes, quantized, codebook_loss, commitment_loss, counts = _ResidualQuantize.apply(
            x, codebooks, num_levels, cosine, return_counts
        )
    else:
        codes, quantized, square_error, counts = _residual_quantize_op(
            x, codebooks, num_levels, cosine, return_counts
        )
        codebook_loss = commitment_loss = _level_losses(square_error, x.shape[-1])
    return ResidualCodes(codes, quantized, codebook_loss, commitment_loss, counts if return_counts else None)


# ---- residual_decode ---------------------------------------------------------------------------------------


def _new_residual_decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    return codebooks.new_empty(*codes.shape[:-1], _sizes(codebooks)[1])


def _residual_decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    quantized = _new_residual_decode(codes, codebooks)
    backend().residual_decode(codes, codebooks, quantized)
    return quantized


_residual_decode_op = define(
    "residual_decode(Tensor codes, Tensor codebooks) -> Tensor",
    implementation=_residual_decode,
    fake=_new_residual_decode,
)


def residual_decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """The vectors that :func:`residual_quantize` gave, from their codes alone.

    The first levels alone are a coarser answer: ``residual_decode(codes[..., :2].contiguous(),
    codebooks[:2])``. A code out of range adds nothing.

    Args:
        codes: (..., L) int64, contiguous.
        codebooks: (L, K, D) or (K, D), shared; float32 or float64, contiguous.

    Returns:
        (..., D), dtype of ``codebooks``: the same bits as ``quantized`` had.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous.

    Gradient: none.

    Device: CPU and CUDA with equal results; no sync.
    """
    return _residual_decode_op(codes, _inner(codebooks))
