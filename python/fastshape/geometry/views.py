"""Inside and outside by looking: what no view sees is inside."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastshape.geometry.mesh import Mesh
from fastshape.ops import build_bvh, closest_point, rasterize

_CHUNK = 1 << 20  # points looked at together


def sphere_directions(count: int) -> Tensor:
    """Unit vectors (N, 3) float32, spread evenly over the sphere (Fibonacci lattice)."""
    index = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1 - 2 * index / max(count, 1)
    turn = math.pi * (1 + 5**0.5) * index
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * turn.cos(), radius * turn.sin(), z], 1).float()


def views_occupancy(
    mesh: Mesh, points: Tensor, *, num_views: int = 24, size: int = 512, epsilon: float | None = None
) -> Tensor:
    """Whether points are inside, in the sense that no view from outside sees them.

    Parallel views from all around draw the mesh's depth; a view sees a point that lies before the mesh in all
    four pixels whose centers surround it. A point that no view sees is inside, and so is one that is closer
    than `epsilon` to the mesh, so that sheets are solid.

    Use it for what it is good at: the inner structure of a closed shell vanishes, whatever the state of the
    faces. Elsewhere `signed_distance` is better, faster and exact. IoU of 100000 uniform points of the box
    with the winding number's inside, without `epsilon`: .993 to .999 on a ball, a torus, a gear, a knot and a
    scanned pitcher (what is inside is never seen; the errors lie outside within .001 of the surface), .98 on
    a plate of 1/50 of its side and .93 on one of 1/200 (.90 and .58 by the one nearest pixel, .75 and .05
    where one pixel of the four is enough), .90 on a mug, whose hollow some views miss, and **.003 on a
    half-pipe**, an open surface whose inner side is seen. With an `epsilon` of .02 it is above .999 on the
    closed shapes, plates too, against the points that are inside or that near; the half-pipe becomes a sheet
    of that half thickness and has still nothing of what the winding number calls inside. More views see more
    of hollows.

    Args:
        mesh: a mesh with faces.
        points: (Q, 3), float32 or float64, in the mesh's frame.
        num_views: directions, at least 1, spread over the sphere.
        size: pixels along a side of each picture, which holds the mesh's bounding ball.
        epsilon: distance to the mesh below which a point is inside, in the mesh's unit; None is the side of a
            pixel, 0 turns the rule off.

    Returns:
        (Q,) bool.

    Raises:
        ValueError: no faces, wrong shape, a number out of range.

    Reference: CLAY (Zhang et al. 2024, arXiv 2406.13897), whose preparation VAT (arXiv 2412.02202) takes
    over, as far as they tell: numbers of views and pixels and the rule for pixels are ours.
    """
    if not mesh.num_faces:
        raise ValueError("a mesh without faces has no inside")
    if points.dim() != 2 or points.shape[1] != 3:
        raise ValueError(f"`points` must have shape (Q, 3), got {tuple(points.shape)}")
    if num_views < 1 or size < 1:
        raise ValueError(f"`num_views` and `size` must be at least 1, got {num_views} and {size}")
    if epsilon is not None and not epsilon >= 0:
        raise ValueError(f"`epsilon` must be at least 0, got {epsilon}")
    used = mesh.vertices.double()[mesh.faces.reshape(-1)]
    center = (used.amin(0) + used.amax(0)) / 2
    radius = float((used - center).norm(dim=1).max())
    if not radius > 0:
        raise ValueError("all points of the mesh are equal: it has no inside")
    epsilon = 2 * radius / size if epsilon is None else epsilon

    # The bounding ball is the unit ball.
    vertices = ((mesh.vertices.double() - center) / radius).float()
    bvh = build_bvh(vertices, mesh.faces) if epsilon else None
    views = [_frame(outward) for outward in sphere_directions(num_views)]
    pictures = [_heights(vertices, mesh.faces, view, size) for view in views]
    result = torch.zeros(len(points), dtype=torch.bool)
    for start in range(0, len(points), _CHUNK):
        part = ((points[start : start + _CHUNK].double() - center) / radius).float()
        inside = torch.ones(len(part), dtype=torch.bool)
        for view, picture in zip(views, pictures, strict=True):
            rows = inside.nonzero()[:, 0]
            inside[rows] = ~_sees(picture, part[rows] @ view, size)
        if bvh is not None:
            rows = (~inside).nonzero()[:, 0]
            inside[rows] = closest_point(part[rows], bvh).distance * radius < epsilon
        result[start : start + _CHUNK] = inside
    return result


def _frame(outward: Tensor) -> Tensor:
    """(3, 3): right, up and outward as columns."""
    axis = torch.eye(3)[outward.abs().argmin()]
    right = torch.nn.functional.normalize(torch.linalg.cross(axis, outward), dim=0)
    return torch.stack([right, torch.linalg.cross(outward, right), outward], 1)


def _heights(vertices: Tensor, faces: Tensor, view: Tensor, size: int) -> Tensor:
    """The mesh's height along a view's direction, (size + 2, size + 2) with a border; -inf beside it.

    Pixel (j + 1, i + 1) has its center at x = (i + 0.5) * 2 / size - 1, y = (j + 0.5) * 2 / size - 1."""
    place = vertices @ view
    # Half the height as depth: rounding leaves no part of the ball beyond the planes.
    clip = torch.stack([place[:, 0], -place[:, 1], -0.5 * place[:, 2], torch.ones_like(place[:, 0])], 1)
    seen = rasterize(clip, faces, size)
    heights = torch.where(seen.triangle_id >= 0, -2 * seen.depth, -torch.inf)
    return torch.nn.functional.pad(heights, (1, 1, 1, 1), value=-torch.inf)


def _sees(picture: Tensor, points: Tensor, size: int) -> Tensor:
    """Whether points (N, 3) in the view's frame lie before the mesh in the four pixels around them."""
    # Beside the picture its border, which is empty, is next.
    corner = (points[:, :2] * (size / 2) + (size / 2 + 0.5)).floor().long().clamp_(0, size)
    first = corner[:, 1] * (size + 2) + corner[:, 0]
    flat = picture.reshape(-1)
    top = torch.stack([flat[first + step] for step in (0, 1, size + 2, size + 3)]).amax(0)
    return points[:, 2] > top
