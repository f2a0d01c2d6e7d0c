"""Meshes whose distances and volumes are known."""

import torch

from fastshape.geometry import Mesh
from fastshape.testing import icosphere


def box(low: tuple[float, float, float], high: tuple[float, float, float]) -> Mesh:
    """An axis-aligned box of 12 faces."""
    a, b = torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
    corners = torch.tensor([[x, y, z] for x in (0.0, 1) for y in (0.0, 1) for z in (0.0, 1)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([t for p, q, r, s in quads for t in ((p, q, r), (p, r, s))])
    return Mesh(a + corners.double() * (b - a), faces)


def square(side: float = 1.0, height: float = 0.0) -> Mesh:
    """A square in the plane z = height, seen from above."""
    half = side / 2
    vertices = [[-half, -half, height], [half, -half, height], [half, half, height], [-half, half, height]]
    return Mesh(torch.tensor(vertices, dtype=torch.float64), torch.tensor([[0, 1, 2], [0, 2, 3]]))


def ball(subdivisions: int = 5, scale: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Mesh:
    """The unit sphere, or an ellipsoid of these half axes; inscribed."""
    vertices, faces = icosphere(subdivisions)
    return Mesh(vertices.double() * torch.tensor(scale, dtype=torch.float64), faces)
