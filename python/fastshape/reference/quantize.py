"""Vectors as codes: the rules of the kernels, operation by operation, over the whole N x K matrix."""

from __future__ import annotations

import torch
from torch import Tensor

_LANES = 256  # partial sums of the mean


def mean_code(codebook: Tensor) -> Tensor:
    """(D,): the mean by 256 partial sums in float64, code k in sum k mod 256, then halves upon halves."""
    num, dim = codebook.shape
    padded = torch.zeros((num + _LANES - 1) // _LANES * _LANES, dim, dtype=torch.float64)
    padded = padded.to(codebook.device)
    padded[:num] = codebook
    sums = torch.zeros(_LANES, dim, dtype=torch.float64, device=codebook.device)
    for part in padded.view(-1, _LANES, dim):
        sums = sums + part
    while len(sums) > 1:
        sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
    return (sums[0] / num).to(codebook.dtype)


def _power_of_two(largest: Tensor) -> Tensor:
    """2^-e with ``largest`` in [2^(e - 1), 2^e); 1 where it is zero or not finite."""
    most = 120 if largest.dtype == torch.float32 else 1000
    exponent = torch.frexp(largest.double())[1].clamp(-most, most).long()
    scale = ((1023 - exponent) << 52).view(torch.float64)  # from its bits: exact on every device
    return torch.where((largest > 0) & largest.isfinite(), scale, torch.ones_like(scale)).to(largest.dtype)


def _sum_of_squares(x: Tensor) -> Tensor:
    """Along the last axis, from left to right."""
    total = torch.zeros_like(x[..., 0])
    for i in range(x.shape[-1]):
        total = total + x[..., i] * x[..., i]
    return total


def scores(x: Tensor, codebook: Tensor, cosine: bool = False) -> Tensor:
    """(N, K): what is least for the nearest code."""
    if cosine:
        # frexp of NaN is anything: the largest magnitude leaves NaN out.
        largest = codebook.abs().nan_to_num(nan=0.0, posinf=float("inf")).amax(1, keepdim=True)
        codes = codebook * _power_of_two(largest)
        # torch's square root of float32 is off by one place now and then.
        length = _sum_of_squares(codes).double().sqrt().to(codes.dtype)[:, None]
        codes = torch.where(length > 0, codes / length, codes)
        half = torch.zeros_like(codes[:, 0])
    else:
        center = mean_code(codebook)
        codes = codebook - center
        scale = _power_of_two(codes.abs().nan_to_num(nan=0.0, posinf=float("inf")).amax())
        codes, x = codes * scale, (x - center) * scale
        half = 0.5 * _sum_of_squares(codes)
    score = half.expand(len(x), -1)
    for i in range(x.shape[1]):
        score = score - x[:, i, None] * codes[:, i]
    return score


def topk_codes(x: Tensor, codebook: Tensor, k: int, cosine: bool = False) -> tuple[Tensor, Tensor]:
    """indices (N, k), the lowest index first of equal scores, and |x - e|^2."""
    order = scores(x, codebook, cosine).nan_to_num(
        nan=float("inf"), posinf=float("inf"), neginf=float("-inf")
    )
    indices = order.argsort(dim=1, stable=True)[:, :k]
    return indices, _sum_of_squares(x[:, None] - codebook[indices])


def nearest_code(x: Tensor, codebook: Tensor, cosine: bool = False) -> Tensor:
    """(N,)"""
    return topk_codes(x, codebook, 1, cosine)[0][:, 0]


def code_sums(values: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """sums (K, D), counts (K,)"""
    sums = torch.zeros(num_codes, values.shape[1], dtype=torch.float64)
    for value, code in zip(values.double(), codes.tolist(), strict=True):
        if 0 <= code < num_codes:
            sums[code] += value
    there = codes[(codes >= 0) & (codes < num_codes)]
    return sums.to(values.dtype), torch.bincount(there, minlength=num_codes)


def residual_quantize(
    x: Tensor, codebooks: Tensor, num_levels: int, cosine: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """codes (N, L), quantized (N, D), codebook_loss (L,), commitment_loss (L,). Differentiable."""
    books = codebooks.expand(num_levels, -1, -1) if codebooks.ndim == 2 else codebooks
    residual, quantized = x, torch.zeros_like(x)
    codes, codebook_loss, commitment_loss = [], [], []
    for book in books:
        index = nearest_code(residual.detach(), book.detach(), cosine)
        code = book[index]
        codebook_loss.append((code - residual.detach()).square().mean())
        commitment_loss.append((residual - code.detach()).square().mean())
        residual, quantized = residual - code.detach(), quantized + code.detach()
        codes.append(index)
    straight_through = x + (quantized - x).detach()
    return (
        torch.stack(codes, 1),
        quantized if not x.requires_grad else straight_through,
        torch.stack(codebook_loss),
        torch.stack(commitment_loss),
    )


# ---- Many scales -------------------------------------------------------------------------------------------


def _combine(matrix: Tensor, values: Tensor, axis: int) -> Tensor:
    """``matrix`` (n, m) along an axis of m, summed from left to right."""
    values = values.movedim(axis, -1)
    total = torch.zeros(*values.shape[:-1], len(matrix), dtype=values.dtype, device=values.device)
    for k in range(matrix.shape[1]):
        total = total + matrix[:, k] * values[..., k, None]
    return total.movedim(-1, axis)


def _convolve(grid: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3 x 3 over (B, H, W, D) with weights (out, in, 3, 3), tap by tap and component by component."""
    padded = torch.nn.functional.pad(grid, (0, 0, 1, 1, 1, 1))
    height, width = grid.shape[1:3]
    total = bias.expand(*grid.shape[:3], -1)
    for tap in range(9):
        seen = padded[:, tap // 3 : tap // 3 + height, tap % 3 : tap % 3 + width]
        for i in range(grid.shape[3]):
            total = total + weight[:, i, tap // 3, tap % 3] * seen[..., i, None]
    return total


def multiscale_residual_quantize(
    z: Tensor,
    codebook: Tensor,
    grid: tuple[int, int],
    matrices: list[tuple[Tensor, Tensor, Tensor, Tensor]],
    phi: tuple[Tensor, Tensor] | None = None,
    phi_index: tuple[int, ...] = (),
    phi_ratio: float = 0.5,
    cosine: bool = False,
    codes: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """codes (B, T), quantized (B, M, D), codebook_loss (S,), commitment_loss (S,), inputs. Differentiable.

    ``matrices`` holds for each scale Down along y and x and Up along y and x. Given ``codes`` are taken.
    """
    rest = z.detach().unflatten(1, grid)
    fhat = torch.zeros_like(rest)
    found, codebook_loss, commitment_loss, inputs, first = [], [], [], [], 0
    for s, (down_y, down_x, up_y, up_x) in enumerate(matrices):
        tokens = _combine(down_y, _combine(down_x, rest, 2), 1)
        if codes is None:
            index = nearest_code(tokens.reshape(-1, z.shape[2]), codebook.detach(), cosine)
        else:
            index = codes[:, first : first + len(down_y) * len(down_x)]
        found.append(index.reshape(len(z), -1))
        first += found[-1].shape[1]
        taken = codebook[found[-1]].unflatten(1, (len(down_y), len(down_x)))
        h = _combine(up_y, _combine(up_x, taken, 2), 1)
        if phi is not None:
            weight, bias = phi[0][phi_index[s]], phi[1][phi_index[s]]
            h = (1 - phi_ratio) * h + phi_ratio * _convolve(h, weight, bias)
        fhat, rest = fhat + h, rest - h.detach()
        # The loss of what is left as it is counted down: fhat - z but for the rounding.
        codebook_loss.append((fhat - z.detach().unflatten(1, grid)).square().mean())
        commitment_loss.append((fhat.detach() - z.unflatten(1, grid)).square().mean())
        if s + 1 < len(matrices):
            next_y, next_x = matrices[s + 1][:2]
            inputs.append(_combine(next_y, _combine(next_x, fhat, 2), 1).flatten(1, 2))
    quantized = fhat.detach().flatten(1, 2)
    if z.requires_grad:
        quantized = z + (quantized - z).detach()
    later = torch.cat(inputs, 1) if inputs else fhat.new_zeros(len(z), 0, z.shape[2])
    return (
        torch.cat(found, 1),
        quantized,
        torch.stack(codebook_loss),
        torch.stack(commitment_loss),
        later.detach(),
    )
