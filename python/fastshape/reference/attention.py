"""Voxel order and attention within windows and packed sequences, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def voxel_order(coords: Tensor) -> Tensor:
    """As ``ops.voxel_order``: stable, by the batch, then by the bits of x, y and z from the highest down."""
    batch, x, y, z = coords.long().T
    key = torch.zeros_like(x)
    for bit in reversed(range(20)):
        for axis in (x, y, z):
            key = key * 2 + (axis >> bit & 1)
    order = key.argsort(stable=True)
    return order[batch[order].argsort(stable=True)]


def windows(coords: Tensor, window: int = 8, shift: int = 0) -> list[Tensor]:
    """The rows of every window, ascending; the windows by length, the longest first."""
    moved = coords.long()
    moved = torch.cat([moved[:, :1], (moved[:, 1:] + shift).div(window, rounding_mode="floor")], 1)
    _, inverse = moved.unique(dim=0, return_inverse=True)
    order = inverse.argsort(stable=True)
    parts = list(order.split(inverse.bincount().tolist())) if len(coords) else []
    return sorted(parts, key=len, reverse=True)


def rope_table(length: int, head_dim: int, *, base: float = 10000.0) -> Tensor:
    """As ``ops.rope_table``."""
    count = head_dim // 6
    frequency = base ** (-torch.arange(count, dtype=torch.float64) / count)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()], -1).float()


def normalize(x: Tensor, gamma: Tensor) -> Tensor:
    """The RMS norm of (N, H, D) with gamma (H, D): a unit vector times gamma times sqrt(D)."""
    return torch.nn.functional.normalize(x, dim=-1, eps=1e-12) * gamma * x.shape[-1] ** 0.5


def rotate(x: Tensor, coords: Tensor, table: Tensor) -> Tensor:
    """3-D RoPE of (N, H, D): pairs of neighboring features, F pairs an axis, the rest as it is."""
    phases = table[coords[:, 1:].long()].flatten(1, 2)[:, None].to(x.dtype)  # (N, 1, 3 F, 2)
    cos, sin = phases.unbind(-1)
    size = 2 * cos.shape[-1]
    even, odd = x[..., 0:size:2], x[..., 1:size:2]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    return torch.cat([turned, x[..., size:]], -1)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """(L, H, D) with (M, H, D): the softmax of q k^T times scale, times v. Without keys: zeros."""
    if len(k) == 0:
        return q * 0
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def sparse_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    coords: Tensor,
    *,
    window: int = 8,
    shift: int = 0,
    scale: float | None = None,
    q_gamma: Tensor | None = None,
    k_gamma: Tensor | None = None,
    rope: Tensor | None = None,
) -> Tensor:
    """As ``ops.sparse_window_attention``, of coordinates instead of the plan; float32 within, or float64."""
    dtype, scale = q.dtype, q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = _wide(q), _wide(k), _wide(v)
    if q_gamma is not None:
        q = normalize(q, _wide(q_gamma))
    if k_gamma is not None:
        k = normalize(k, _wide(k_gamma))
    if rope is not None:
        q, k = rotate(q, coords, rope), rotate(k, coords, rope)
    rows = windows(coords, window, shift)
    if not rows:
        return (q * 0).to(dtype)
    out = torch.cat([attention(q[r], k[r], v[r], scale) for r in rows])
    return out[torch.cat(rows).argsort()].to(dtype)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    scale: float | None = None,
    q_gamma: Tensor | None = None,
    k_gamma: Tensor | None = None,
) -> Tensor:
    """As ``ops.varlen_attention``; at least float32 within."""
    dtype, scale = q.dtype, q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = _wide(q), _wide(k), _wide(v)
    if q_gamma is not None:
        q = normalize(q, _wide(q_gamma))
    if k_gamma is not None:
        k = normalize(k, _wide(k_gamma))
    ends = zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True)
    begin_q, begin_k = next(ends)
    parts = [q[:0] * 0]
    for end_q, end_k in ends:
        parts.append(attention(q[begin_q:end_q], k[begin_k:end_k], v[begin_k:end_k], scale))
        begin_q, begin_k = end_q, end_k
    return torch.cat(parts).to(dtype)
