"""Which cells of a coarse lattice the surface passes through, or may pass through unseen.

Blocks of values are (N, kx, ky, kz), their cells one less along each axis; a value that is not known is NaN.
Distances from the level are what counts, so that the level is 0 here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BEND_SAFETY = 2.0  # half a bend is what one kink needs


def any_corner(points: Tensor) -> Tensor:
    """(N, k, ...) bool of points -> (N, k - 1, ...) of cells: one of the eight corners at least."""
    points = points[:, :-1] | points[:, 1:]
    points = points[:, :, :-1] | points[:, :, 1:]
    return points[..., :-1] | points[..., 1:]


def corners_of(cells: Tensor) -> Tensor:
    """(N, k, ...) bool of cells -> (N, k + 1, ...) of points: a corner of one of the cells at least."""
    for dim in (1, 2, 3):
        count = cells.shape[dim]
        shape = list(cells.shape)
        shape[dim] += 1
        points = cells.new_zeros(shape)
        points.narrow(dim, 0, count).copy_(cells)
        points.narrow(dim, 1, count).logical_or_(cells)
        cells = points
    return cells


def may_hide(values: Tensor, reach: float) -> Tensor:
    """Which cells may hold the surface though no corner shows it; see `SurfaceSearch` for the rule.

    Args:
        values: (N, m + 3, m + 3, m + 3): the points of m^3 cells and one more on every side, less the level.
        reach: of the slope test, in cell sides; 0 leaves the bend test alone.

    Returns:
        (N, m, m, m) bool, of cells with all corners known; it says nothing of cells with both signs.
    """
    distance = values[:, 1:-1, 1:-1, 1:-1].abs()
    bends = torch.zeros_like(distance)  # at each point, summed over the axes
    for dim in (1, 2, 3):
        middle = _inner(values, dim)
        count = middle.shape[dim] - 2
        before, here, after = (middle.narrow(dim, i, count) for i in range(3))
        # Of the values' distance from the level: a bend away from the level hides nothing.
        bends += ((before + after - 2 * here) * here.sign()).nan_to_num_(0.0).clamp_min_(0.0)
    hidden = -_window_max(-distance, (2, 2, 2)) < _BEND_SAFETY / 2 * _window_max(bends, (2, 2, 2))
    if reach:
        mean = sum(
            distance[:, x : x + hidden.shape[1], y : y + hidden.shape[2], z : z + hidden.shape[3]]
            for x in (0, 1)
            for y in (0, 1)
            for z in (0, 1)
        )
        hidden |= mean < 8 * reach * _steepest(values)
    return hidden


def _steepest(values: Tensor) -> Tensor:
    """The length of the vector of the largest differences along each axis, of the edges of 27 cells."""
    square: Tensor | float = 0.0
    for dim in (1, 2, 3):
        count = values.shape[dim] - 1
        step = (values.narrow(dim, 1, count) - values.narrow(dim, 0, count)).abs_().nan_to_num_(0.0)
        square = square + _window_max(step, [3 if dim == axis else 4 for axis in (1, 2, 3)]).square()
    return torch.as_tensor(square).sqrt()


def _inner(values: Tensor, dim: int) -> Tensor:
    """Without the outermost points along the two other axes."""
    for other in (1, 2, 3):
        if other != dim:
            values = values.narrow(other, 1, values.shape[other] - 2)
    return values


def _window_max(values: Tensor, windows: Sequence[int]) -> Tensor:
    """The largest value of each window of a size along each axis."""
    for dim, window in zip((1, 2, 3), windows, strict=True):
        count = values.shape[dim] - window + 1
        result = values.narrow(dim, 0, count)
        for i in range(1, window):
            result = torch.maximum(result, values.narrow(dim, i, count))
        values = result
    return values
