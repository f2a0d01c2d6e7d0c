"""Nearest neighbors within a point cloud, exact, on the CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 1 << 20  # pairs of points looked at together
_FINEST = 2.0**-19  # of the cloud's size: three coordinates of cubes fit in an integer


class Neighbors(NamedTuple):
    """The nearest other points of each point, nearest first: rows (N, k) int64, distances (N, k) float64."""

    rows: Tensor
    distances: Tensor


def nearest_neighbors(points: Tensor, k: int) -> Neighbors:
    """The k nearest other points of each point of a cloud.

    Points are hashed into cubes; a point is done when k others in the 27 cubes around it lie within a side,
    and those that are not go on with cubes of twice the side, so that any density is served.

    Args:
        points: (N, 3), float32 or float64, finite.
        k: 0 <= k < N.

    Raises:
        ValueError: wrong shape, a coordinate that is not finite, or k out of range.
    """
    if points.dim() != 2 or points.shape[1] != 3:
        raise ValueError(f"`points` must have shape (N, 3), got {tuple(points.shape)}")
    if not bool(torch.isfinite(points).all()):
        raise ValueError("`points` must be finite")
    count = len(points)
    if not 0 <= k < max(count, 1):
        raise ValueError(f"`k` must lie in 0..{max(count, 1) - 1}, got {k}")
    rows = torch.zeros(count, k, dtype=torch.int64)
    distances = torch.zeros(count, k, dtype=torch.float64)
    if not k:
        return Neighbors(rows, distances)
    points = points.double()
    points = points - points.amin(0)
    size = float(points.amax())
    if size == 0:  # all in one place: any will do
        rows[:] = torch.arange(k) + (torch.arange(k) >= torch.arange(count)[:, None]).long()
        return Neighbors(rows, distances)
    # A surface of this many points has about k in a square of this side; where they crowd, the densest
    # cube decides.
    side = max(size * (k / count) ** 0.5 / 2, size * _FINEST)
    while side > size * _FINEST:
        keys = _keys(points, side)[0].sort().values
        if int(torch.unique_consecutive(keys, return_counts=True)[1].max()) <= 4 * k + 32:
            break
        side = max(side / 4, size * _FINEST)
    open_rows = torch.arange(count)
    while len(open_rows):
        open_rows = _search(points, open_rows, k, side, side >= size, rows, distances)
        side = min(2 * side, size)
    return Neighbors(rows, distances)


def _keys(points: Tensor, side: float) -> tuple[Tensor, int]:
    """Numbers of the points' cubes (N,) in the order x, y, z, with a border of empty ones, and how many cubes
    a side has."""
    cell = (points / side).long() + 1
    width = int(cell.max()) + 2
    return (cell[:, 0] * width + cell[:, 1]) * width + cell[:, 2], width


def _search(
    points: Tensor, queries: Tensor, k: int, side: float, last: bool, rows: Tensor, distances: Tensor
) -> Tensor:
    """Fill in the neighbors of those of the rows `queries` that are done with cubes of a side; the others."""
    unsorted, width = _keys(points, side)
    keys, order = unsorted.sort(stable=True)
    # Three cubes along z follow each other: nine runs of points.
    steps = torch.tensor([(x * width + y) * width for x in (-1, 0, 1) for y in (-1, 0, 1)])
    middle = unsorted[queries][:, None] + steps
    begin = torch.searchsorted(keys, middle - 1)
    length = torch.searchsorted(keys, middle + 1, right=True) - begin
    total = length.sum(1)
    enough = total > k
    left = [queries[~enough]]
    queries, begin, length, total = queries[enough], begin[enough], length[enough], total[enough]
    by_total = total.argsort(stable=True)
    start = 0
    while start < len(queries):
        # Queries with about as many candidates together, as rows of a table.
        stop = start + max(1, _CHUNK // int(total[by_total[start]]))
        stop = min(stop, len(queries))
        stop = min(stop, start + max(1, _CHUNK // int(total[by_total[stop - 1]])))
        part = by_total[start:stop]
        start = stop
        own, span = queries[part], length[part]
        widest = int(total[part[-1]])
        place = torch.arange(widest)
        run = torch.searchsorted(span.cumsum(1), place.expand(len(part), -1).contiguous(), right=True)
        real = run < 9
        run = run.clamp_(max=8)
        shift = begin[part] - (span.cumsum(1) - span)
        candidate = order[(shift.gather(1, run) + place).clamp_(max=len(order) - 1)]
        square = ((points[candidate] - points[own][:, None]) ** 2).sum(2)
        square[~real | (candidate == own[:, None])] = torch.inf
        near, which = square.topk(k, largest=False)
        done = near[:, -1] <= side * side
        if last:
            done = torch.ones_like(done)
        rows[own[done]] = candidate.gather(1, which)[done]
        distances[own[done]] = near[done].sqrt()
        left.append(own[~done])
    return torch.cat(left)
