"""Surfaces of fields on lattices, on dense grids."""

from __future__ import annotations

import torch
from torch import Tensor


def flood_fill(points: Tensor, solid: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(N,) bool: the points that water from beyond the border reaches, one lattice edge a step."""
    x, y, z = shape
    free = torch.ones(x * y * z, dtype=torch.bool, device=points.device)
    free[solid[(solid >= 0) & (solid < x * y * z)]] = False
    free = free.view(shape)
    water = torch.zeros(x + 2, y + 2, z + 2, dtype=torch.bool, device=points.device)
    water[[0, -1]] = water[:, [0, -1]] = water[:, :, [0, -1]] = True
    while True:
        near = water[2:, 1:-1, 1:-1] | water[:-2, 1:-1, 1:-1] | water[1:-1, 2:, 1:-1]
        near = near | water[1:-1, :-2, 1:-1] | water[1:-1, 1:-1, 2:] | water[1:-1, 1:-1, :-2]
        wet = free & near
        if torch.equal(wet, water[1:-1, 1:-1, 1:-1]):
            break
        water[1:-1, 1:-1, 1:-1] = wet
    beyond = (points < 0) | (points >= x * y * z)
    return beyond | wet.flatten()[points.clamp(0, x * y * z - 1)]
