"""Meshes that the tests of mesh queries share: analytic shapes, and ways of damaging them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastshape import testing

Shape = tuple[Tensor, Tensor]  # vertices (V, 3) float64, faces (F, 3) int64


def torus(rings: int = 40, sides: int = 20, radius: float = 0.6, tube: float = 0.25) -> Shape:
    """Oriented outwards, 2 * rings * sides faces."""
    u = torch.arange(rings, dtype=torch.float64)[:, None] * (2 * math.pi / rings)
    v = torch.arange(sides, dtype=torch.float64)[None] * (2 * math.pi / sides)
    ring = radius + tube * v.cos()
    vertices = torch.stack([ring * u.cos(), ring * u.sin(), (tube * v.sin()).expand(rings, sides)], -1)
    i, j = torch.meshgrid(torch.arange(rings), torch.arange(sides), indexing="ij")

    def vertex(di: int, dj: int) -> Tensor:
        return ((i + di) % rings) * sides + (j + dj) % sides

    faces = torch.cat(
        [
            torch.stack([vertex(0, 0), vertex(1, 0), vertex(1, 1)], -1).view(-1, 3),
            torch.stack([vertex(0, 0), vertex(1, 1), vertex(0, 1)], -1).view(-1, 3),
        ]
    )
    return vertices.reshape(-1, 3), faces


def torus_distance(points: Tensor, radius: float = 0.6, tube: float = 0.25) -> Tensor:
    """Signed, negative inside."""
    return torch.hypot(points[:, :2].norm(dim=1) - radius, points[:, 2]) - tube


def cube() -> Shape:
    """[-0.5, 0.5]^3, twelve faces, oriented outwards: ties everywhere."""
    vertices = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]
    return vertices.double(), torch.tensor(faces)


def join(*shapes: Shape) -> Shape:
    vertices, faces, offset = [], [], 0
    for v, f in shapes:
        vertices.append(v)
        faces.append(f + offset)
        offset += len(v)
    return torch.cat(vertices), torch.cat(faces)


def damage(kind: str, shape: Shape) -> Shape:
    """clean, duplicate, degenerate, hole, soup, flipped, all_flipped, nested, unused."""
    vertices, faces = shape
    chosen = torch.rand(len(faces), generator=testing.generator(5)) < 0.2
    if kind == "duplicate":
        return vertices, torch.cat([faces, faces[chosen]])
    if kind == "degenerate":  # segments and points among the faces, and slivers
        segments, points = faces[chosen].clone(), faces[chosen].clone()
        segments[:, 2] = segments[:, 1]
        points[:, 1:] = points[:, :1]
        return vertices, torch.cat([segments, faces, points])
    if kind == "hole":
        middle = vertices[faces].mean(1)
        return vertices, faces[(middle - middle[7]).norm(dim=1) > 0.12]
    if kind == "soup":
        return vertices[faces].reshape(-1, 3), torch.arange(3 * len(faces)).view(-1, 3)
    if kind == "flipped":
        return vertices, torch.where(chosen[:, None], faces.flip(1), faces)
    if kind == "all_flipped":
        return vertices, faces.flip(1)
    if kind == "nested":
        return join(shape, (vertices * 0.5, faces))
    if kind == "unused":
        return torch.cat([vertices, torch.full((5, 3), 1e30, dtype=vertices.dtype)]), faces
    assert kind == "clean"
    return shape


DAMAGES = ("clean", "duplicate", "degenerate", "hole", "soup", "flipped", "all_flipped", "nested", "unused")


def query_points(shape: Shape, count: int = 2000, seed: int = 0) -> Tensor:
    """Half uniform in [-1, 1]^3, half within about 0.01 of the surface, and some on it; float64."""
    vertices, faces = shape
    generator = testing.generator(seed)
    chosen = torch.randint(len(faces), (count // 2,), generator=generator)
    weights = -torch.rand(count // 2, 3, generator=generator, dtype=torch.float64).log()
    near = (vertices[faces[chosen]] * (weights / weights.sum(1, keepdim=True))[..., None]).sum(1)
    near = near + 0.01 * torch.randn(near.shape, generator=generator, dtype=torch.float64)
    uniform = testing.random_points(count - count // 2, seed=seed, dtype=torch.float64)
    return torch.cat([uniform, near, vertices[faces[:10, 0]]])
