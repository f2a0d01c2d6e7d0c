"""Grids of vectors as codes on coarser and finer grids: the quantizer of next-scale models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastshape._library import backend, define
from fastshape.ops.quantize import _bytes, _code_sums_op, _inner, _sizes
from fastshape.ops.resampling import Resampling, shared_phi_index

# ---- Operators ---------------------------------------------------------------------------------------------
# `sizes` holds height, width and convolution of every scale. Of what is not asked for, the operators return
# tensors without elements.


def _num_tokens(sizes: Sequence[int]) -> int:
    return sum(sizes[i] * sizes[i + 1] for i in range(0, len(sizes), 3))


def _workspace(codebook: Tensor, sizes: Sequence[int], grid: Sequence[int], batch: int) -> Tensor:
    num_codes, dim = _sizes(codebook)
    most = max((sizes[i] * sizes[i + 1] for i in range(0, len(sizes), 3)), default=0)
    size = backend().multiscale_workspace_bytes(
        num_codes,
        dim,
        batch * most,
        batch * _num_tokens(sizes),
        batch * grid[0] * grid[1],
        codebook.dtype == torch.float64,
        codebook.is_cuda,
    )
    return _bytes(size, codebook)


def _new_multiscale_quantize(
    z: Tensor,
    codebook: Tensor,
    factors: Tensor,
    bands: Tensor,
    sizes: Sequence[int],
    grid: Sequence[int],
    phi_weight: Tensor | None,
    phi_bias: Tensor | None,
    ratio: float,
    cosine: bool,
    count: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    scales, batch = len(sizes) // 3, z.shape[0] if z.ndim == 3 else 0
    return (
        z.new_empty(batch, _num_tokens(sizes), dtype=torch.int64),
        torch.empty_like(z),
        z.new_empty(scales, batch, grid[0] * grid[1]),
        z.new_empty(scales if keep else 0, *z.shape),
        z.new_empty(scales if count else 0, _sizes(codebook)[0], dtype=torch.int64),
    )


def _multiscale_quantize(
    z: Tensor,
    codebook: Tensor,
    factors: Tensor,
    bands: Tensor,
    sizes: Sequence[int],
    grid: Sequence[int],
    phi_weight: Tensor | None,
    phi_bias: Tensor | None,
    ratio: float,
    cosine: bool,
    count: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    codes, quantized, square_error, residuals, counts = _new_multiscale_quantize(
        z, codebook, factors, bands, sizes, grid, phi_weight, phi_bias, ratio, cosine, count, keep
    )
    backend().multiscale_quantize(
        z,
        codebook,
        factors,
        bands,
        sizes,
        grid[0],
        grid[1],
        phi_weight,
        phi_bias,
        ratio,
        cosine,
        _workspace(codebook, sizes, grid, codes.shape[0]),
        codes,
        quantized,
        square_error,
        residuals if keep else None,
        None,
        counts if count else None,
    )
    return codes, quantized, square_error, residuals, counts


_multiscale_quantize_op = define(
    "multiscale_quantize(Tensor z, Tensor codebook, Tensor factors, Tensor bands, int[] sizes, int[2] grid,"
    " Tensor? phi_weight, Tensor? phi_bias, float ratio, bool cosine, bool count, bool keep)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    implementation=_multiscale_quantize,
    fake=_new_multiscale_quantize,
)


def _new_multiscale_decode(
    codes: Tensor,
    codebook: Tensor,
    factors: Tensor,
    bands: Tensor,
    sizes: Sequence[int],
    grid: Sequence[int],
    phi_weight: Tensor | None,
    phi_bias: Tensor | None,
    ratio: float,
    with_inputs: bool,
) -> tuple[Tensor, Tensor]:
    batch, dim = codes.shape[0] if codes.ndim == 2 else 0, _sizes(codebook)[1]
    later = _num_tokens(sizes[3:]) if with_inputs else 0
    return codebook.new_empty(batch, grid[0] * grid[1], dim), codebook.new_empty(batch, later, dim)


def _multiscale_decode(
    codes: Tensor,
    codebook: Tensor,
    factors: Tensor,
    bands: Tensor,
    sizes: Sequence[int],
    grid: Sequence[int],
    phi_weight: Tensor | None,
    phi_bias: Tensor | None,
    ratio: float,
    with_inputs: bool,
) -> tuple[Tensor, Tensor]:
    quantized, inputs = _new_multiscale_decode(
        codes, codebook, factors, bands, sizes, grid, phi_weight, phi_bias, ratio, with_inputs
    )
    backend().multiscale_quantize(
        None,
        codebook,
        factors,
        bands,
        sizes,
        grid[0],
        grid[1],
        phi_weight,
        phi_bias,
        ratio,
        False,
        _workspace(codebook, sizes, grid, quantized.shape[0]),
        codes,
        quantized,
        None,
        None,
        inputs if with_inputs else None,
        None,
    )
    return quantized, inputs


_multiscale_decode_op = define(
    "multiscale_decode(Tensor codes, Tensor codebook, Tensor factors, Tensor bands, int[] sizes, int[2] grid,"
    " Tensor? phi_weight, Tensor? phi_bias, float ratio, bool with_inputs) -> (Tensor, Tensor)",
    implementation=_multiscale_decode,
    fake=_new_multiscale_decode,
)


def _new_multiscale_backward(
    codes: Tensor,
    residuals: Tensor,
    codebook: Tensor,
    factors: Tensor,
    bands: Tensor,
    sizes: Sequence[int],
    grid: Sequence[int],
    phi_weight: Tensor | None,
    phi_bias: Tensor | None,
    ratio: float,
    residual_weights: Tensor,
    code_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(residuals[0]),
        codebook.new_empty(*codes.shape, codebook.shape[1]),
        codebook.new_empty(0) if phi_weight is None else torch.empty_like(phi_weight),
        codebook.new_empty(0) if phi_bias is None else torch.empty_like(phi_bias),
    )


def _multiscale_backward(
    codes: Tensor,
    residuals: Tensor,
    codebook: Tensor,
    factors: Tensor,
    bands: Tensor,
    sizes: Sequence[int],
    grid: Sequence[int],
    phi_weight: Tensor | None,
    phi_bias: Tensor | None,
    ratio: float,
    residual_weights: Tensor,
    code_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = _new_multiscale_backward(
        codes,
        residuals,
        codebook,
        factors,
        bands,
        sizes,
        grid,
        phi_weight,
        phi_bias,
        ratio,
        residual_weights,
        code_weights,
    )
    grad_z, grad_codes, grad_phi_weight, grad_phi_bias = grads
    module = backend()
    size = module.multiscale_backward_workspace_bytes(
        codebook.shape[1],
        codes.numel(),
        codes.shape[0] * grid[0] * grid[1],
        len(sizes) // 3,
        codebook.dtype == torch.float64,
        codebook.is_cuda,
    )
    module.multiscale_backward(
        codes,
        residuals,
        codebook,
        factors,
        bands,
        sizes,
        grid[0],
        grid[1],
        phi_weight,
        phi_bias,
        ratio,
        residual_weights,
        code_weights,
        _bytes(size, codebook),
        grad_z,
        grad_codes,
        None if phi_weight is None else grad_phi_weight,
        None if phi_bias is None else grad_phi_bias,
    )
    return grads


_multiscale_backward_op = define(
    "multiscale_backward(Tensor codes, Tensor residuals, Tensor codebook, Tensor factors, Tensor bands,"
    " int[] sizes, int[2] grid, Tensor? phi_weight, Tensor? phi_bias, float ratio, Tensor residual_weights,"
    " Tensor code_weights) -> (Tensor, Tensor, Tensor, Tensor)",
    implementation=_multiscale_backward,
    fake=_new_multiscale_backward,
)


class _MultiscaleQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        codebook: Tensor,
        phi_weight: Tensor | None,
        phi_bias: Tensor | None,
        factors: Tensor,
        bands: Tensor,
        sizes: list[int],
        grid: list[int],
        ratio: float,
        cosine: bool,
        count: bool,
    ) -> tuple[Tensor, ...]:
        codes, quantized, square_error, residuals, counts = _multiscale_quantize_op(
            z, codebook, factors, bands, sizes, grid, phi_weight, phi_bias, ratio, cosine, count, True
        )
        ctx.save_for_backward(codes, residuals, codebook, factors, bands, phi_weight, phi_bias)
        ctx.sizes, ctx.grid, ctx.ratio = sizes, grid, ratio
        ctx.mark_non_differentiable(codes, counts)
        loss = _scale_losses(square_error, z.shape[2])
        return codes, quantized, loss, loss.clone(), counts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, _: Any, grad_quantized: Tensor, grad_code: Tensor, grad_residual: Tensor, __: Any
    ) -> tuple[Tensor | None, ...]:
        codes, residuals, codebook, factors, bands, phi_weight, phi_bias = ctx.saved_tensors
        factor = 2.0 / max(grad_quantized.numel(), 1)
        grad_z, grad_codes, grad_weight, grad_bias = _multiscale_backward_op(
            codes,
            residuals,
            codebook,
            factors,
            bands,
            ctx.sizes,
            ctx.grid,
            phi_weight,
            phi_bias,
            ctx.ratio,
            grad_residual * factor,
            grad_code * factor,
        )
        grad_codebook = None
        if ctx.needs_input_grad[1]:
            grad_codebook = _code_sums_op(grad_codes, codes, codebook.shape[0], 1)[0]
        return (
            grad_z + grad_quantized,
            grad_codebook,
            None if phi_weight is None else grad_weight,
            None if phi_bias is None else grad_bias,
            *[None] * 7,
        )


def _scale_losses(square_error: Tensor, dim: int) -> Tensor:
    return square_error.flatten(1).mean(1) / dim


# ---- The public functions ----------------------------------------------------------------------------------


class MultiscaleCodes(NamedTuple):
    """What :func:`multiscale_residual_quantize` gives."""

    codes: Tensor  # (B, T) int64: the tokens of all scales, coarse to fine, row by row
    quantized: Tensor  # (B, M, D)
    codebook_loss: Tensor  # (S,): mean squares of what each scale left, with gradients to codes and phi
    commitment_loss: Tensor  # (S,): the same numbers, with gradients to ``z``
    counts: Tensor | None  # (S, K) int64


def _phi_arguments(
    resampling: Resampling, phi: tuple[Tensor, Tensor] | None, phi_index: Sequence[int] | None
) -> tuple[list[int], Tensor | None, Tensor | None]:
    """``sizes`` of the operators, weights with components last, bias."""
    scales = resampling.scales
    if phi is None:
        return [n for h, w in scales for n in (h, w, 0)], None, None
    weight, bias = (_inner(tensor) for tensor in phi)
    if weight.ndim != 5:
        raise ValueError(f"the weight of `phi` must have shape (P, D, D, 3, 3), got {tuple(weight.shape)}")
    if phi_index is None:
        phi_index = shared_phi_index(len(scales), len(weight))
    if len(phi_index) != len(scales):
        raise ValueError(f"`phi_index` must have one entry for each of {len(scales)} scales, got {phi_index}")
    sizes = [n for (h, w), p in zip(scales, phi_index, strict=True) for n in (h, w, int(p))]
    return sizes, weight.permute(0, 3, 4, 2, 1).contiguous(), bias


def multiscale_residual_quantize(
    z: Tensor,
    codebook: Tensor,
    resampling: Resampling,
    *,
    phi: tuple[Tensor, Tensor] | None = None,
    phi_index: Sequence[int] | None = None,
    phi_ratio: float = 0.5,
    cosine: bool = False,
    return_counts: bool = False,
) -> MultiscaleCodes:
    """A grid of vectors as codes of one codebook on coarser and finer grids.

    For each scale what is left is brought down to the scale's tokens, each of which becomes its nearest code;
    the codes are brought up to the whole grid again, blended with their convolution,
    ``h = (1 - phi_ratio) u + phi_ratio * conv(u)``, added to the sum and taken from what is left.

    Args:
        z: (B, M, D), float32 or float64, contiguous; float16 and bfloat16 are computed, and returned, in
            float32.
        codebook: (K, D), as of :func:`fastshape.ops.nearest_code`.
        resampling: of the M vectors, at most 32 scales; dtype of ``z``, same device.
        phi: weights (P, D, D, 3, 3) and biases (P, D) of convolutions with zeros around the grid, as those of
            ``torch.nn.Conv2d``; None: ``h = u``. On a line, a grid of height one, the middle rows count.
        phi_index: for each scale which of them; by default that of :func:`shared_phi_index`.
        phi_ratio: how much of the convolution there is.
        cosine: codes are found by their direction, and taken as they are.
        return_counts: also how many tokens of each scale have each code.

    Returns:
        :class:`MultiscaleCodes`. Both losses are ``mean((fhat_s - z)^2)`` for every scale s, with ``fhat_s``
        the sum up to it.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous.

    Gradient: ``quantized`` hands its gradient to ``z`` as it is (straight through), and none to the codebook.
    ``codebook_loss`` goes to the codes that were taken and to phi, with ``z`` held fast; ``commitment_loss``
    to ``z``, with the sums held fast. Once; none to the resampling. No float atomics: the same bits on every
    run. For it what is left after each scale is kept: S x B x M x D numbers.

    Device: CPU and CUDA, equal codes; no sync, nothing of tokens x K is written, and the launches of a call
    can be captured in a CUDA graph.

    Reference: Tian et al. 2024 (VAR), algorithms 1 and 2, and its released code for phi and the losses; Zhang
    et al. 2024 (VAT), section 3.2, for tokens that are no image. Losses are kept by scale; VAR takes the mean
    of ``codebook_loss + 0.25 commitment_loss``.
    """
    z, codebook = _inner(z), _inner(codebook)
    sizes, weight, bias = _phi_arguments(resampling, phi, phi_index)
    grid = list(resampling.grid)
    factors, bands = resampling.factors, resampling.bands
    if torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (z, codebook, weight, bias)
    ):
        codes, quantized, codebook_loss, commitment_loss, counts = _MultiscaleQuantize.apply(
            z, codebook, weight, bias, factors, bands, sizes, grid, phi_ratio, cosine, return_counts
        )
    else:
        codes, quantized, square_error, _, counts = _multiscale_quantize_op(
            z, codebook, factors, bands, sizes, grid, weight, bias, phi_ratio, cosine, return_counts, False
        )
        codebook_loss = commitment_loss = _scale_losses(square_error, z.shape[2])
    return MultiscaleCodes(
        codes, quantized, codebook_loss, commitment_loss, counts if return_counts else None
    )


def multiscale_decode(
    codes: Tensor,
    codebook: Tensor,
    resampling: Resampling,
    *,
    phi: tuple[Tensor, Tensor] | None = None,
    phi_index: Sequence[int] | None = None,
    phi_ratio: float = 0.5,
    return_inputs: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The vectors that :func:`multiscale_residual_quantize` gave, from their codes alone.

    Args:
        codes: (B, T) int64, contiguous, of all scales or of the first of them: a coarser answer. A code out
            of range counts as zero.
        codebook, resampling, phi, phi_index, phi_ratio: as they were there.
        return_inputs: also what a next-scale model sees of each scale before it says the next: the sum so far
            brought down to the next scale's tokens.

    Returns:
        (B, M, D), dtype of the codebook, the same bits as ``quantized`` had; with ``return_inputs`` a tuple
        of it and of (B, T - tokens of the first scale, D).

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous.

    Gradient: none.

    Device: CPU and CUDA with equal results; no sync.

    Reference: Tian et al. 2024 (VAR), algorithm 2.
    """
    codebook = _inner(codebook)
    sizes, weight, bias = _phi_arguments(resampling, phi, phi_index)
    tokens, wanted = resampling.tokens, codes.shape[1] if codes.ndim == 2 else -1
    count = next((n for n in range(len(tokens) + 1) if sum(tokens[:n]) == wanted), None)
    if count is None:
        raise ValueError(
            f"`codes` must have shape (B, T), T the tokens of all or of the first of the scales, {tokens}; "
            f"got {tuple(codes.shape)}"
        )
    (height, width), dim = resampling.grid, _sizes(codebook)[1]
    if count == 0:
        nothing = codebook.new_zeros(len(codes), height * width, dim)
        return (nothing, nothing[:, :0]) if return_inputs else nothing
    there = resampling.part(0, count)
    quantized, inputs = _multiscale_decode_op(
        codes,
        codebook,
        there.factors,
        there.bands,
        sizes[: 3 * count],
        [height, width],
        weight,
        bias,
        phi_ratio,
        return_inputs,
    )
    return (quantized, inputs) if return_inputs else quantized
