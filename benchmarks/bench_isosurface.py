"""Surfaces of fields on lattices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastshape import ops

from .peers import installed
from .registry import Case, Peer, Target, row


def radius(points: Tensor, resolution: int) -> Tensor:
    """Distance of the points with flat indices of the (R + 1)^3 lattice from its middle, in cells."""
    count = resolution + 1
    axes = torch.stack([points // count**2, points // count % count, points % count])
    return (axes.double() - resolution / 2).norm(dim=0)


def ball_shell(resolution: int) -> Tensor:
    """Flat indices, ascending, of the points of the (R + 1)^3 lattice that lie within a cell of a sphere."""
    count, found = resolution + 1, []
    for x in range(count):
        points = torch.arange(x * count**2, (x + 1) * count**2)
        found.append(points[(radius(points, resolution) - 0.45 * resolution).abs() < 1])
    return torch.cat(found)


@row(family="isosurface", op="flood_fill", shape="shell in 257^3", dtype="int64", resolution=256)
@row(family="isosurface", op="flood_fill", shape="shell in 513^3", dtype="int64", resolution=512)
def flood_fill(device: torch.device, resolution: int) -> Case:
    """The neighbors of a spherical shell, beside labels on the dense grid."""
    count = resolution + 1
    solid = ball_shell(resolution)
    steps = torch.tensor([0, 1, -1, count, -count, count**2, -(count**2)])
    points = (solid[:, None] + steps).unique()
    outside = (radius(points, resolution) > 0.45 * resolution) & ~torch.isin(points, solid)
    solid, points, outside = solid.to(device), points.to(device), outside.to(device)

    def scipy() -> Peer | None:
        if installed("scipy") is None or device.type != "cpu":
            return None
        from scipy import ndimage

        shell, asked = solid.numpy(), points.numpy()

        def run() -> Any:
            free = torch.ones(count**3, dtype=torch.bool).numpy()
            free[shell] = False
            labels, _ = ndimage.label(free.reshape(count, count, count))
            return labels.ravel()[asked] == labels[0, 0, 0]

        return Peer(run, result=torch.from_numpy, note="dense grid")

    return Case(
        run=lambda: ops.flood_fill(points, solid, shape=(count, count, count), solid_is_sorted=True),
        reference=lambda: outside,
        peers={"scipy": scipy()},
        bytes=solid.nbytes + 9.0 * len(points),
        target=Target("scipy", 1 / 5),
    )
