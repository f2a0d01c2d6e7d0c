"""Carving of voxels by depth and dilation of voxel grids, in plain torch."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def depth_carve(
    coords: Tensor,
    depth: Tensor,
    matrices: Tensor,
    *,
    resolution: int,
    threshold: float,
    depth_rows: Tensor | None = None,
    bounds: tuple[float, float] = (-0.5, 0.5),
    near: float = 0.0,
    far: float = float("inf"),
    any_view: bool = False,
    keep_outside: bool = False,
    keep_background: bool = True,
    keep_invalid: bool = True,
    bottom_up: bool = False,
    neighborhood: int = 1,
) -> tuple[Tensor, Tensor]:
    """As ``ops.depth_carve``; the options as the kernel takes them."""
    if coords.shape[1] == 3:
        coords = torch.nn.functional.pad(coords, (1, 0))
        depth, matrices = depth[None], matrices[None]
        depth_rows = None if depth_rows is None else depth_rows[None]
    low, high = bounds
    height, width = depth.shape[2:]
    mask = torch.zeros(len(coords), dtype=torch.bool, device=coords.device)
    for shape in range(len(depth)):
        rows = (coords[:, 0] == shape).nonzero()[:, 0]
        centers = (coords[rows, 1:].to(depth.dtype) + 0.5) * ((high - low) / resolution) + low
        kept = torch.full(rows.shape, not any_view, device=coords.device)
        for view in range(depth.shape[1]):
            matrix = matrices[shape, view]
            w = times(matrix[3], centers)
            distance = w if depth_rows is None else times(depth_rows[shape, view], centers)
            inverse = 1 / w
            right, up = times(matrix[0], centers) * inverse, times(matrix[1], centers) * inverse
            column = (1 + right) * (width * 0.5)
            row = (1 + up if bottom_up else 1 - up) * (height * 0.5)
            seen = (w > 0) & (distance >= near) & (distance <= far)
            seen &= (column >= 0) & (column < width) & (row >= 0) & (row < height)
            pixel = torch.where(seen, row, 0).long() * width + torch.where(seen, column, 0).long()
            shown = depth[shape, view].reshape(-1)[pixel]
            keeps = torch.full_like(seen, keep_outside)
            keeps = torch.where(seen & (shown == torch.inf), keep_background, keeps)
            keeps = torch.where(seen & ~(shown > 0), keep_invalid, keeps)
            surface = seen & (shown > 0) & (shown < torch.inf)
            keeps = torch.where(surface, distance <= shown + threshold, keeps)
            kept = kept | keeps if any_view else kept & keeps
        mask[rows] = kept
    if neighborhood:
        mask = near_any(coords, mask, neighborhood)
    return mask, mask.nonzero()[:, 0]


def times(row: Tensor, points: Tensor) -> Tensor:
    """(4,) times (x, y, z, 1), rounded after each step from left to right."""
    return row[0] * points[:, 0] + row[1] * points[:, 1] + row[2] * points[:, 2] + row[3]


def near_any(coords: Tensor, mask: Tensor, distance: int) -> Tensor:
    """Which rows of coords (N, 4) are at most `distance` steps along each axis from a row in the mask."""
    size = int(coords.max()) + 2 * distance + 1 if len(coords) else 1
    batch, x, y, z = coords.long().T
    keys = ((batch * size + x) * size + y) * size + z
    result = torch.zeros_like(mask)
    for step in steps(distance):
        result |= torch.isin(keys, keys[mask] + (step[0] * size + step[1]) * size + step[2])
    return result


def steps(distance: int = 1) -> list[tuple[int, ...]]:
    return list(itertools.product(range(-distance, distance + 1), repeat=3))


def dilate(grid: Tensor, iterations: int = 1) -> Tensor:
    """As ``ops.dilate``: bool (..., X, Y, Z)."""
    for _ in range(iterations):
        padded = torch.nn.functional.pad(grid, (1,) * 6)
        sizes = grid.shape[-3:]
        grid = torch.zeros_like(grid)
        for step in steps():
            x, y, z = (slice(1 + s, 1 + s + n) for s, n in zip(step, sizes, strict=True))
            grid |= padded[..., x, y, z]
    return grid


def dilate_coords(coords: Tensor, shape: tuple[int, int, int], iterations: int = 1) -> Tensor:
    """As ``ops.dilate_coords``, by 27 additions and ``unique`` of one number for each voxel."""
    columns = coords.shape[1]
    if columns == 3:
        coords = torch.nn.functional.pad(coords, (1, 0))
    size = torch.tensor(shape, dtype=coords.dtype, device=coords.device)
    step = torch.tensor(steps(), dtype=coords.dtype, device=coords.device)
    for turn in range(iterations + 1):
        if turn:
            moved = (coords[:, None] + torch.nn.functional.pad(step, (1, 0))).reshape(-1, 4)
            coords = moved[((moved[:, 1:] >= 0) & (moved[:, 1:] < size)).all(1)]
        batch, x, y, z = coords.long().T
        keys = (((batch * shape[0] + x) * shape[1] + y) * shape[2] + z).unique()
        rest = keys // shape[2]
        x = rest // shape[1]
        parts = [x // shape[0], x % shape[0], rest % shape[1], keys % shape[2]]
        coords = torch.stack(parts, 1).int()
    return coords[:, -columns:]
