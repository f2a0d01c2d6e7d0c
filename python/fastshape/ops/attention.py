"""Attention within the windows of a sparse voxel grid and within packed sequences."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

# ---- voxel_order -------------------------------------------------------------------------------------------


def voxel_order(coords: Tensor) -> Tensor:
    """The permutation that puts voxels into the order in which windows are runs of rows: Morton's."""
    batch, x, y, z = coords.long().T
    key = torch.zeros_like(x)
    for bit in reversed(range(20)):
        for axis in (x, y, z):
            key = key * 2 + (axis >> bit & 1)
    order = key.argsort(stable=True)
    return order[batch[order].argsort(stable=True)]


# ---- window_plan -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WindowPlan:
    """Which rows of a list of voxels lie in which window, made by :func:`window_plan`. One device.

    A window is some runs of rows; one after the other these are its tokens. The windows stand by length, the
    longest first, and the tokens of all of them one after the other are positions 0 .. N - 1.

    Attributes:
        coords: (N, 4) int32, as given to ``window_plan``.
        cu_lengths: (W + 1,) int32, the position of every window's first token, and N.
        run_offsets: (W + 1,) int32, every window's first run, and the number of runs R.
        run_starts: (R,) int32, the first row of every run.
        run_positions: (R + 1,) int32, the position of every run's first token, and N.
        window: voxels along an axis of a window.
        shift: what is added to a coordinate before it is divided.
        max_length: tokens of the longest window.
        max_coord: the largest coordinate.
    """

    coords: Tensor
    cu_lengths: Tensor
    run_offsets: Tensor
    run_starts: Tensor
    run_positions: Tensor
    window: int
    shift: int
    max_length: int
    max_coord: int

    @property
    def num_tokens(self) -> int:
        return len(self.coords)

    @property
    def num_windows(self) -> int:
        return len(self.cu_lengths) - 1

    def to(self, device: torch.device | str) -> WindowPlan:
        moved = {
            f.name: getattr(self, f.name).to(device)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


def window_plan(coords: Tensor, *, window: int = 8, shift: int = 0) -> WindowPlan:
    """The windows of voxels that stand in the order of :func:`voxel_order`.

    A voxel's window is (b, (x + shift) // window, (y + shift) // window, (z + shift) // window).

    Args:
        coords: (N, 4) int32, contiguous: number in the batch, x, y, z; in voxel order.
        window: voxels along an axis of a window.
        shift: at least 0; window // 2 in every second block of a Swin transformer.
    """
    cell = math.gcd(window, shift) if shift else window
    cell = cell & -cell  # the largest power of two that divides both: such cells are runs of rows
    n, device = len(coords), coords.device
    wide = coords.long()
    cells = torch.cat([wide[:, :1], wide[:, 1:] // cell], 1)
    first = torch.ones(n, dtype=torch.bool, device=device)
    first[1:] = (cells[1:] != cells[:-1]).any(1)
    starts = first.nonzero()[:, 0]
    ends = torch.cat([starts[1:], starts.new_full((min(n, 1),), n)])
    at = torch.cat([wide[starts, :1], (wide[starts, 1:] + shift) // window], 1)
    _, inverse, counts = at.unique(dim=0, return_inverse=True, return_counts=True)
    lengths = torch.zeros_like(counts).scatter_add_(0, inverse, ends - starts)
    ranks = torch.empty_like(counts)
    ranks[lengths.argsort(descending=True, stable=True)] = torch.arange(len(counts), device=device)
    lengths = lengths.sort(descending=True, stable=True).values
    rank = ranks[inverse]
    order = rank.argsort(stable=True)
    rank, starts, ends = rank[order], starts[order], ends[order]
    begins = torch.ones(len(rank), dtype=torch.bool, device=device)
    begins[1:] = (rank[1:] != rank[:-1]) | (starts[1:] != ends[:-1])  # neighboring cells in one run
    run_lengths = (ends - starts).cumsum(0) - (ends - starts)
    zero = starts.new_zeros(1)
    run_positions = torch.cat([run_lengths[begins], zero + n]).int()
    run_counts = torch.zeros_like(counts).scatter_add_(0, rank[begins], torch.ones_like(rank[begins]))
    return WindowPlan(
        coords,
        torch.cat([zero, lengths.cumsum(0)]).int(),
        torch.cat([zero, run_counts.cumsum(0)]).int(),
        starts[begins].int(),
        run_positions,
        window,
        shift,
        int(lengths[0]) if n else 0,
        int(coords[:, 1:].max()) if n else 0,
    )


# ---- sparse_window_attention -------------------------------------------------------------------------------


def rope_table(
    length: int, head_dim: int, *, base: float = 10000.0, device: torch.device | str | None = None
) -> Tensor:
    """Cosine and sine for the 3-D RoPE of :func:`sparse_window_attention`, for coordinates below ``length``.

    Args:
        length: the largest coordinate and one.
        head_dim: D; an axis has F = D // 2 // 3 frequencies ``base ** (-f / F)``.
        base: 10000 in TRELLIS.2.
        device: of the result.

    Returns:
        (length, F, 2) float32, rounded from float64.
    """
    count = head_dim // 6
    frequency = base ** (-torch.arange(count, dtype=torch.float64) / count)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()], -1).float().to(device)


def sparse_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: WindowPlan,
    *,
    scale: float | None = None,
    q_gamma: Tensor | None = None,
    k_gamma: Tensor | None = None,
    rope: Tensor | None = None,
) -> Tensor:
    """Softmax attention of every voxel to those in its window.

    Args:
        q, k, v: (N, H, D), rows in the order of the plan's coordinates.
        plan: of :func:`window_plan`.
        scale: of the scores; D ** -0.5 by default.
        q_gamma, k_gamma: (H, D): q, k are divided by their norm and multiplied by gamma * sqrt(D) first.
        rope: (P, F, 2), :func:`rope_table`: q and k are rotated by their coordinates, after the norm.

    Returns:
        (N, H, D).
    """
    q_, k_ = _prepared(q, q_gamma, plan.coords, rope), _prepared(k, k_gamma, plan.coords, rope)
    rows = _plan_rows(plan)
    offsets = plan.cu_lengths
    out = _packed(q_[rows], k_[rows], v[rows].to(q_.dtype), offsets, offsets, scale)
    result = torch.zeros_like(q_)
    return result.index_copy(0, rows, out).to(q.dtype)


def sparse_window_attention_packed(
    qkv: Tensor,
    plan: WindowPlan,
    *,
    scale: float | None = None,
    q_gamma: Tensor | None = None,
    k_gamma: Tensor | None = None,
    rope: Tensor | None = None,
) -> Tensor:
    """:func:`sparse_window_attention` of q, k and v in one tensor, (N, 3, H, D); so is the gradient."""
    q, k, v = qkv.unbind(1)
    return sparse_window_attention(q, k, v, plan, scale=scale, q_gamma=q_gamma, k_gamma=k_gamma, rope=rope)


# ---- varlen_attention --------------------------------------------------------------------------------------


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
    """Softmax attention of every sequence's queries to its own keys.

    Args:
        q: (total_q, H, D), the sequences one after the other.
        k, v: (total_k, H, D).
        cu_seqlens_q: (B + 1,) int32, where every sequence's queries begin, and total_q.
        cu_seqlens_k: the same of the keys.
        scale: of the scores; D ** -0.5 by default.
        q_gamma, k_gamma: (H, D), as in :func:`sparse_window_attention`.

    Returns:
        (total_q, H, D); zeros for a sequence without keys.
    """
    q_, k_ = _prepared(q, q_gamma, None, None), _prepared(k, k_gamma, None, None)
    return _packed(q_, k_, v.to(q_.dtype), cu_seqlens_q, cu_seqlens_k, scale).to(q.dtype)


def _prepared(x: Tensor, gamma: Tensor | None, coords: Tensor | None, rope: Tensor | None) -> Tensor:
    x = x if x.dtype == torch.float64 else x.float()
    if gamma is not None:
        x = torch.nn.functional.normalize(x, dim=-1, eps=1e-12) * gamma.to(x.dtype) * x.shape[-1] ** 0.5
    if rope is not None and coords is not None:
        phases = rope[coords[:, 1:].long()].flatten(1, 2)[:, None].to(x.dtype)
        cos, sin = phases.unbind(-1)
        size = 2 * cos.shape[-1]
        even, odd = x[..., 0:size:2], x[..., 1:size:2]
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
        x = torch.cat([turned, x[..., size:]], -1)
    return x


def _plan_rows(plan: WindowPlan) -> Tensor:
    lengths = plan.run_positions.diff().long()
    shift = (plan.run_starts - plan.run_positions[:-1]).long()
    return torch.arange(plan.num_tokens, device=plan.coords.device) + shift.repeat_interleave(lengths)


def _packed(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, scale: float | None) -> Tensor:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    parts = [q[:0]]
    for queries, keys, values in zip(
        q.split(cu_q.diff().tolist()),
        k.split(cu_k.diff().tolist()),
        v.split(cu_k.diff().tolist()),
        strict=True,
    ):
        if len(keys) == 0:
            parts.append(queries * 0)
            continue
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * scale
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
    return torch.cat(parts)
