"""Grids of vectors as codes on coarser and finer grids: the quantizer of next-scale models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastshape._library import backend, define
from fastshape.ops.quantize import _bytes, _code_sums_op, _inner, _sizes

# ---- Resampling --------------------------------------------------------------------------------------------


class Resampling(NamedTuple):
    """How the tokens of each scale come from a grid of vectors, and go back: linear maps along its axes.

    Made by :func:`grid_resampling`, :func:`line_resampling` or :func:`matrix_resampling`.
    """

    grid: tuple[int, int]  # (H, W): M = H * W vectors, row by row
    scales: tuple[tuple[int, int], ...]  # tokens of each scale along both axes, coarse to fine
    factors: Tensor  # for each scale the matrices of Down along y and x and of Up along y and x, flat
    bands: Tensor  # where in their rows, and in the columns of Up, what is not zero begins and ends, int32

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(height * width for height, width in self.scales)

    def to(self, *args: Any, **kwargs: Any) -> Resampling:
        """On another device, or with factors of another dtype."""
        factors = self.factors.to(*args, **kwargs)
        return self._replace(factors=factors, bands=self.bands.to(factors.device))

    def matrices(self, scale: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Down along y and x, Up along y and x of one scale: (h, H), (w, W), (H, h), (W, w)."""
        (height, width), (h, w) = self.grid, self.scales[scale]
        begin = sum(2 * (a * height + b * width) for a, b in self.scales[:scale])
        found = []
        for rows, columns in ((h, height), (w, width), (height, h), (width, w)):
            found.append(self.factors[begin : begin + rows * columns].view(rows, columns))
            begin += rows * columns
        return found[0], found[1], found[2], found[3]

    def down(self, values: Tensor, scale: int) -> Tensor:
        """Vectors (B, M, D) as the tokens of one scale, (B, L, D)."""
        down_y, down_x = self.matrices(scale)[:2]
        grid = values.unflatten(1, self.grid)
        return torch.einsum("iy,jx,byxd->bijd", down_y, down_x, grid).flatten(1, 2)


def _bands(matrix: Tensor) -> Tensor:
    """(rows, 2) int32."""
    there = matrix != 0
    begin = there.int().argmax(1)
    end = matrix.shape[1] - there.flip(1).int().argmax(1)
    return torch.stack([begin, torch.where(there.any(1), end, begin)], 1).int()


def _resampling(
    grid: tuple[int, int],
    scales: Sequence[tuple[int, int]],
    matrices: Sequence[Sequence[Tensor]],
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Resampling:
    factors, bands = [], []
    for four in matrices:
        factors += [m.flatten() for m in four]
        bands += [_bands(m).flatten() for m in (*four, four[2].T, four[3].T)]
    return Resampling(
        grid,
        tuple(scales),
        torch.cat(factors).to(device=device, dtype=dtype),
        torch.cat(bands).to(device),
    )


def _area(out: int, size: int) -> Tensor:
    """(out, size): means over windows, as adaptive average pooling takes them."""
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for i in range(out):
        begin, end = i * size // out, -(-(i + 1) * size // out)
        matrix[i, begin:end] = 1 / (end - begin)
    return matrix


def _cubic(out: int, size: int) -> Tensor:
    """(out, size): Keys' bicubic interpolation with a = -0.75; beyond the border its last value."""
    a, matrix = -0.75, torch.zeros(out, size, dtype=torch.float64)
    for i in range(out):
        at = (i + 0.5) * size / out - 0.5
        first = math.floor(at)
        for k in range(-1, 3):
            d = abs(at - first - k)
            if d <= 1:
                weight = ((a + 2) * d - (a + 3)) * d * d + 1
            else:
                weight = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
            matrix[i, min(max(first + k, 0), size - 1)] += weight
    return matrix


def _linear(out: int, size: int) -> Tensor:
    """(out, size): linear interpolation; beyond the border its last value."""
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for i in range(out):
        at = max((i + 0.5) * size / out - 0.5, 0.0)
        first = min(math.floor(at), size - 1)
        matrix[i, first] += 1 - (at - first)
        matrix[i, min(first + 1, size - 1)] += at - first
    return matrix


def _check_scales(name: str, sizes: Sequence[int]) -> list[int]:
    sizes = [int(size) for size in sizes]
    if not sizes or min(sizes) < 1 or max(sizes) != sizes[-1]:
        raise ValueError(f"`{name}` must be positive with the largest last, got {tuple(sizes)}")
    return sizes


def grid_resampling(
    sides: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Resampling:
    """Square grids: a token of a coarse one is the mean of an area, and goes back by bicubic interpolation.

    Args:
        sides: of the grid of each scale, coarse to fine; the last one is that of the vectors.
        dtype, device: those of what is quantized.

    Raises:
        ValueError: sides that are not positive, a largest one that is not the last.

    Reference: Tian et al. 2024 (VAR), algorithm 1, and its released code: area, and bicubic with a = -0.75.
    """
    sides = _check_scales("sides", sides)
    size = sides[-1]
    matrices = []
    for side in sides:
        down, up = _area(side, size), _cubic(size, side)
        matrices.append((down, down, up, up))
    return _resampling((size, size), [(side, side) for side in sides], matrices, dtype, device)


def line_resampling(
    lengths: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Resampling:
    """Sequences: a token of a short one is the mean of a stretch, and goes back by linear interpolation.

    Args:
        lengths: tokens of each scale, coarse to fine; the last is the number of vectors.
        dtype, device: those of what is quantized.

    Raises:
        ValueError: lengths that are not positive, a largest one that is not the last.
    """
    lengths = _check_scales("lengths", lengths)
    size, one = lengths[-1], torch.ones(1, 1, dtype=torch.float64)
    matrices = [(one, _area(length, size), one, _linear(size, length)) for length in lengths]
    return _resampling((1, size), [(1, length) for length in lengths], matrices, dtype, device)


def matrix_resampling(down: Sequence[Tensor], up: Sequence[Tensor]) -> Resampling:
    """Any linear maps, as learned ones: ``softmax(queries @ keys.T)`` of queries of each scale, say.

    Args:
        down: for each scale a matrix (L_s, M) that gives its tokens from the vectors.
        up: for each scale a matrix (M, L_s) that gives vectors from its codes. One dtype, one device.

    Returns:
        :class:`Resampling`, on the matrices' device. The quantizer gives the matrices no gradient.

    Raises:
        ValueError: shapes that do not fit.
    """
    if not down or len(down) != len(up):
        raise ValueError(f"`down` and `up` must have a matrix a scale, got {len(down)} and {len(up)}")
    size = down[0].shape[-1]
    factors, bands, scales = [], [], []
    for s, (d, u) in enumerate(zip(down, up, strict=True)):
        if d.ndim != 2 or d.shape[1] != size or u.shape != (size, d.shape[0]):
            raise ValueError(
                f"`down` and `up` must have shapes (L, {size}) and ({size}, L), got {tuple(d.shape)} and "
                f"{tuple(u.shape)} for scale {s}"
            )
        length = d.shape[0]
        one = d.new_ones(1)
        factors += [one, d.detach().flatten(), one, u.detach().flatten()]
        # Rows and columns whole: their numbers are not looked at.
        for rows, columns in ((1, 1), (length, size), (1, 1), (size, length), (1, 1), (length, size)):
            bands += [0, columns] * rows
        scales.append((1, length))
    on = torch.tensor(bands, dtype=torch.int32, device=down[0].device)
    return Resampling((1, size), tuple(scales), torch.cat(factors), on)


def shared_phi_index(num_scales: int, num_phis: int) -> tuple[int, ...]:
    """Which of some convolutions each scale uses: neighbors share one, from coarse to fine.

    Scale s, at s / (S - 1) of the way, takes the first of the nearest of evenly spread ticks: middles of P
    equal parts, but from 1/12 to 11/12 where P is 4.

    Reference: Tian et al. 2024 (VAR), its released code, ``PhiPartiallyShared``.
    """
    if num_scales < 1 or num_phis < 1:
        raise ValueError(f"there must be scales and convolutions, got {num_scales} and {num_phis}")
    edge = 1 / 3 / num_phis if num_phis == 4 else 1 / 2 / num_phis
    # In numpy's order of operations: ties are decided by how the ticks were rounded there.
    step = (1 - edge - edge) / max(num_phis - 1, 1)
    ticks = [k * step + edge for k in range(num_phis - 1)] + [1 - edge]

    def nearest(place: float) -> int:
        return min(range(num_phis), key=lambda k: abs(ticks[k] - place))

    return tuple(nearest(s / max(num_scales - 1, 1)) for s in range(num_scales))


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
    scales = resampling.scales[:count]
    quantized, inputs = _multiscale_decode_op(
        codes,
        codebook,
        resampling.factors[: sum(2 * (h * height + w * width) for h, w in scales)],
        resampling.bands[: sum(2 * (2 * h + 2 * w + height + width) for h, w in scales)],
        sizes[: 3 * count],
        [height, width],
        weight,
        bias,
        phi_ratio,
        return_inputs,
    )
    return (quantized, inputs) if return_inputs else quantized
