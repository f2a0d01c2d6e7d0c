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
    exponent = torch.frexp(largest.double())[1].clamp(-most, most)
    scale = torch.ldexp(torch.ones_like(largest, dtype=torch.float64), -exponent)
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
