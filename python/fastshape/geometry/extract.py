"""Turning a field into a mesh."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fastshape import ops
from fastshape.geometry.mesh import Mesh

Inside = Literal["negative", "positive"]


class NoSurfaceError(ValueError):
    """A field that does not cross the level."""


def grid_points(resolution: int, *, bounds: float = 1.0, begin: int = 0, end: int | None = None) -> Tensor:
    """Points (N, 3) float32 of `linspace(-bounds, bounds, resolution)^3` in [x, y, z] order, z fastest.

    Args:
        resolution: R, points along an axis.
        bounds: half side of the cube.
        begin: first flat index.
        end: flat index after the last; None means R^3.
    """
    axis = torch.linspace(-bounds, bounds, resolution)
    flat = torch.arange(begin, resolution**3 if end is None else end)
    return torch.stack(
        [axis[flat // resolution**2], axis[flat // resolution % resolution], axis[flat % resolution]], 1
    )


def extract_surface(
    values: Tensor,
    *,
    level: float = 0.0,
    inside: Inside = "negative",
    bounds: float = 1.0,
    closed: bool = False,
) -> Mesh:
    """Extract the surface where a sampled field crosses a level, by `ops.marching_cubes`.

    The sample `values[i, j, k]` belongs to the point `(x_i, y_j, z_k)` of `linspace(-bounds, bounds, R)^3`,
    so a vertex at grid position v lies at `(v / (R - 1) * 2 - 1) * bounds`. Faces look away from the inside:
    a closed surface has a positive volume.

    Args:
        values: (R, R, R) floating point, finite, R >= 2; the work is done on their device.
        level: value on the surface.
        inside: the side of the level that is solid: "negative" (values below it: a signed distance) or
            "positive" (values above it: occupancy, or its logits).
        bounds: half side of the cube.
        closed: everything beyond the cube counts as outside: a solid that reaches its border gets a face
            there. False leaves it open.

    Returns:
        Mesh with float32 vertices.

    Raises:
        NoSurfaceError: no sample on one side of the level; gives the range of the field and what to try.
        ValueError: wrong shape or values that are not finite.

    Two inside samples of an ambiguous cell face are never joined across it. Where a sample equals the level,
    triangles without area are possible.

    Reference: Lorensen and Cline 1987; see `ops.marching_cubes`.
    """
    if inside not in ("negative", "positive"):
        raise ValueError(f"`inside` must be 'negative' or 'positive', got {inside!r}")
    if values.dim() != 3 or len(set(values.shape)) != 1 or values.shape[0] < 2:
        raise ValueError(f"`values` must have shape (R, R, R) with R >= 2, got {tuple(values.shape)}")
    field = values.detach()
    if field.dtype not in (torch.float32, torch.float64):
        field = field.float()
    level = float(torch.tensor(level, dtype=field.dtype))  # as marching cubes compares with it
    low, high = (float(end) for end in field.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):  # NaN takes both
        count = int((~torch.isfinite(field)).sum())
        raise ValueError(f"`values` has {count} of {field.numel()} entries that are not finite")
    if not low < level < high:
        side = "above" if low >= level else "below"
        raise NoSurfaceError(
            f"no surface at level {level:g}: the field lies between {low:.4g} and {high:.4g}, all {side} it. "
            f"Try a level inside that range, a finer grid than {values.shape[0]}^3 for thin parts, "
            "or train longer if the field comes from a model"
        )
    resolution = values.shape[0]
    sign = 1 if inside == "negative" else -1
    if closed:
        # Far beyond the level, so that the face lies on the border to within a thousandth of a cell.
        padded = field.new_full((resolution + 2,) * 3, sign * level + 1e3 * (high - low))
        torch.mul(field, sign, out=padded[1:-1, 1:-1, 1:-1])
        field = padded
    else:
        field = field.contiguous() if sign == 1 else -field.contiguous()
    vertices, faces = ops.marching_cubes(field, level=sign * level)
    position = vertices.double() - (1 if closed else 0)
    positions = (position / (resolution - 1) * 2 - 1).clamp(-1, 1) * bounds
    return Mesh(positions.float().cpu(), faces.cpu())


@torch.no_grad()
def extract(
    field: Callable[[Tensor], Tensor],
    resolution: int = 128,
    *,
    level: float = 0.0,
    inside: Inside = "negative",
    bounds: float = 1.0,
    closed: bool = False,
    chunk: int = 65536,
    device: torch.device | str = "cpu",
    progress: Callable[[float], None] | None = None,
) -> Mesh:
    """Evaluate a field on the whole grid and extract its surface.

    Args:
        field: maps points (N, 3) float32 on `device` to values (N,) or (N, 1).
        resolution: R, points along an axis.
        level, inside, bounds, closed: as in `extract_surface`.
        chunk: points per call of `field`.
        device: where the points go, the field is asked and its surface extracted.
        progress: called with the share that is done, from 0 to 1.

    Raises:
        NoSurfaceError, ValueError: as `extract_surface`; or a field of the wrong shape.
    """
    if resolution < 2 or chunk < 1:
        raise ValueError(
            f"`resolution` must be at least 2 and `chunk` at least 1, got {resolution} and {chunk}"
        )
    total = resolution**3
    values = torch.empty(total, device=device)
    for step in range(math.ceil(total / chunk)):
        begin, end = step * chunk, min((step + 1) * chunk, total)
        answer = field(grid_points(resolution, bounds=bounds, begin=begin, end=end).to(device))
        if answer.numel() != end - begin:
            raise ValueError(
                f"`field` must return one value per point, got {tuple(answer.shape)} for {end - begin}"
            )
        values[begin:end] = answer.reshape(-1)
        if progress is not None:
            progress(end / total)
    cube = values.reshape(resolution, resolution, resolution)
    return extract_surface(cube, level=level, inside=inside, bounds=bounds, closed=closed)
