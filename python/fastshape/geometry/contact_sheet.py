"""One picture of many shapes: what a run has made, at a glance."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from fastshape.geometry.mesh import Mesh
from fastshape.geometry.prepare import Prepared
from fastshape.geometry.render import View, render, save_png

_OUT = (0.55, -0.72, 0.42)  # from the shape to the eye


def contact_sheet(
    shapes: Iterable[Prepared], path: str | os.PathLike[str], *, columns: int = 8, size: int = 160
) -> int:
    """Draw the surface points of prepared shapes, shaded by their normals, side by side; z is up.

    A shape without surface points is an empty tile.

    Args:
        shapes: what `prepare` made, or `open_prepared` reads.
        path: the PNG to write.
        columns: tiles in a row.
        size: pixels along a side of a tile.

    Returns:
        The number of tiles.

    Raises:
        ValueError: no shapes.
    """
    return _write([_tile(shape, size) for shape in shapes], path, columns)


def mesh_sheet(
    meshes: Iterable[Mesh | None],
    path: str | os.PathLike[str],
    *,
    columns: int = 8,
    size: int = 128,
    view: View = (35.0, 25.0),
    up: Literal["y", "z"] = "z",
) -> int:
    """Draw meshes side by side, each as large as its tile allows; None is an empty tile.

    Args:
        meshes: what to draw.
        path: the PNG to write.
        columns: tiles in a row.
        size: pixels along a side of a tile.
        view, up: as of `render`.

    Returns:
        The number of tiles.

    Raises:
        ValueError: no meshes.
    """
    tiles = [
        torch.full((size, size, 3), 255, dtype=torch.uint8)
        if mesh is None
        else render(mesh, size=size, views=[view], up=up)
        for mesh in meshes
    ]
    return _write(tiles, path, columns)


def _write(tiles: list[Tensor], path: str | os.PathLike[str], columns: int) -> int:
    if not tiles:
        raise ValueError("there are no shapes to draw")
    columns = min(columns, len(tiles))
    blank = torch.full_like(tiles[0], 255)
    count = len(tiles)
    tiles += [blank] * (-count % columns)
    rows = [torch.cat(tiles[start : start + columns], 1) for start in range(0, len(tiles), columns)]
    save_png(torch.cat(rows), path)
    return count


def _tile(shape: Prepared, size: int) -> Tensor:
    picture = torch.full((size, size, 3), 255, dtype=torch.uint8)
    if "surface_points" not in shape:
        return picture
    out = torch.nn.functional.normalize(torch.tensor(_OUT), dim=0)
    right = torch.nn.functional.normalize(torch.tensor([-_OUT[1], _OUT[0], 0.0]), dim=0)
    view = torch.stack([right, torch.linalg.cross(out, right), out], 1)
    points, normals = (shape[f"surface_{name}"].float() @ view for name in ("points", "normals"))
    splat = max(1, math.ceil(1.5 * size / math.sqrt(max(len(points), 1))))  # pixels along a point's side
    reach = points[:, :2].abs().max().clamp_min(1e-6) * 1.08
    place = ((points[:, :2] / reach * torch.tensor([1.0, -1.0]) + 1) * (size / 2)).long()
    light = (0.25 + 0.7 * normals[:, 2].abs()) * (0.85 + 0.15 * normals[:, 1])
    color = (light[:, None] * torch.tensor([205.0, 215.0, 235.0])).clamp(0, 255).to(torch.uint8)
    order = points[:, 2].sort(stable=True).indices  # the nearest last
    around = torch.cartesian_prod(torch.arange(splat), torch.arange(splat)) - splat // 2
    spots = (place[order][:, None] + around).clamp(0, size - 1)
    pixel = (spots[..., 1] * size + spots[..., 0]).reshape(-1)
    order = order.repeat_interleave(splat * splat)
    # Of the points of a pixel the last in that order stays.
    last = torch.full((size * size,), -1).scatter_reduce(0, pixel, torch.arange(len(pixel)), "amax")
    seen = last >= 0
    flat = picture.view(-1, 3)
    flat[seen] = color[order[last[seen]]]
    return picture
