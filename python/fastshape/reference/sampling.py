"""Farthest point sampling, one pick after the other over all points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def farthest_point_sampling(
    points: Tensor,
    num_samples: int | Sequence[int],
    *,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    start: int | Tensor = 0,
    return_distances: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The whole rule of :func:`fastshape.ops.farthest_point_sampling`, in its words."""
    if cu_seqlens is not None:
        bounds = cu_seqlens.tolist()
        clouds = [points[a:b] for a, b in pairwise(bounds)]
    else:
        sizes = [points.shape[1]] * len(points) if lengths is None else lengths.tolist()
        clouds = [cloud[:size] for cloud, size in zip(points, sizes, strict=True)]
    nums = [num_samples] * len(clouds) if isinstance(num_samples, int) else list(num_samples)
    starts = [start] * len(clouds) if isinstance(start, int) else start.tolist()
    picked = [one_cloud(*arguments) for arguments in zip(clouds, nums, starts, strict=True)]

    if cu_seqlens is not None:
        rows = [torch.where(i < 0, i, i + begin) for (i, _), begin in zip(picked, bounds[:-1], strict=True)]
        indices = torch.cat(rows) if rows else points.new_zeros(0, dtype=torch.int64)
        distances = torch.cat([d for _, d in picked]) if picked else points.new_zeros(0)
    else:
        shape = (len(clouds), max(nums, default=num_samples if isinstance(num_samples, int) else 0))
        indices = torch.full(shape, -1, dtype=torch.int64, device=points.device)
        distances = torch.zeros(shape, device=points.device)
        for b, (i, d) in enumerate(picked):
            indices[b, : len(i)], distances[b, : len(d)] = i, d
    return (indices, distances) if return_distances else indices


def one_cloud(points: Tensor, num: int, start: int) -> tuple[Tensor, Tensor]:
    """Indices (num,) and distances (num,) of one cloud (N, 3)."""
    indices = torch.full((num,), -1, dtype=torch.int64, device=points.device)
    distances = torch.zeros(num, device=points.device)
    finite = points.isfinite().all(dim=1)
    candidates = int(finite.sum())
    if candidates == 0:
        return indices, distances
    pick = start if 0 <= start < len(points) and bool(finite[start]) else int(finite.int().argmax())
    nearest = torch.where(finite, torch.inf, -1.0)
    for k in range(min(num, candidates)):
        if k > 0:
            # max() and then the first that equals it: argmax promises nothing about ties.
            pick = int((nearest == nearest.max()).int().argmax())
        # torch's float32 square root is not the correctly rounded one; by way of float64 it is.
        indices[k], distances[k] = pick, nearest[pick].double().sqrt()
        dx, dy, dz = (points - points[pick]).unbind(1)
        squared = (dx * dx + dy * dy) + dz * dz
        nearest = torch.where(finite, torch.minimum(nearest, squared), -1.0)
    return indices, distances
