"""Surfaces of fields on lattices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastshape._library import backend, define

# ---- flood_fill --------------------------------------------------------------------------------------------


def _new_flood_fill(points: Tensor, solid: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty_like(points, dtype=torch.bool)


def _flood_fill(points: Tensor, solid: Tensor, shape: Sequence[int]) -> Tensor:
    reached = _new_flood_fill(points, solid, shape)
    module = backend()
    workspace = None
    if points.is_cuda or module.emulated:
        size = module.flood_fill_workspace_bytes(solid.numel(), *shape)
        workspace = torch.empty(size, dtype=torch.uint8, device=points.device)
    module.flood_fill(points, solid, *shape, workspace, reached)
    return reached


_flood_fill_op = define(
    "flood_fill(Tensor points, Tensor solid, int[3] shape) -> Tensor",
    implementation=_flood_fill,
    fake=_new_flood_fill,
)


def flood_fill(
    points: Tensor, solid: Tensor, *, shape: tuple[int, int, int], solid_is_sorted: bool = False
) -> Tensor:
    """Which points of a lattice are reached from beyond its border without entering a solid point.

    Water flows along lattice edges, to six neighbors: solid points that touch across a cell already hold it
    back. A solid point is not reached; a point beyond the border is. Time and memory go with the number of
    solid points and of rows, X * Y, not with the number of lattice points.

    Args:
        points: (N,) int64, flat indices ``(x * Y + y) * Z + z`` of the points to be told about, in any order.
        solid: (M,) int64, flat indices of the solid points, in any order, duplicates allowed; those that are
            negative or not below X * Y * Z do nothing (a z that is too large reads as another point).
        shape: (X, Y, Z), points along each axis.
        solid_is_sorted: ``solid`` ascends, which is not checked; saves sorting it.

    Returns:
        (N,) bool.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, a size that is not positive, 2^31 rows and solid points
            or more.

    Gradient: none.

    Device: CPU and CUDA with equal results; no sync. 4 bytes for a solid point, 12 for a row; sorting takes
    more.

    Reference: runs of rows joined by union-find, as in Rosenfeld and Pfaltz 1966; the forest without locks is
    Jayanti and Tarjan's (2016), with the order of the nodes in place of a random one. Our runs are the gaps
    between the given points, numbered without being counted, and the border is a node.
    """
    if not solid_is_sorted:
        solid = solid.sort().values
    return _flood_fill_op(points, solid, list(shape))
