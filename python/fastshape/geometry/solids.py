"""What procedural shapes are made of: solids that know their inside, and grids of triangles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastshape.geometry.mesh import Mesh, Normalization, normalize
from fastshape.geometry.optional import require

Rule = Callable[[Tensor], Tensor]  # points (N, 3) float64 -> (N,) bool

ROUNDING = 1e-6  # of float32 coordinates in [-1, 1]


@dataclass(frozen=True)
class Inside:
    """What a normalized shape encloses: `inside(points (N, 3)) -> (N,) bool`.

    Args:
        rule: the shape's own, in its own frame.
        normalization: from that frame to the cube.
        band: closer to the surface than this the answer may differ from that of the triangles: 1e-6 for
            polyhedra, whose rule is exact, and the largest error of the facets for curved shapes.
    """

    rule: Rule
    normalization: Normalization
    band: float

    def __call__(self, points: Tensor) -> Tensor:
        return self.rule(self.normalization.undo(points.double()))


@dataclass(frozen=True)
class Made:
    """A shape in the cube, how it came there, and the rule in its own frame if it has one."""

    mesh: Mesh
    normalization: Normalization
    rule: Rule | None
    error: Callable[[], float] = lambda: 0.0  # of the facets, in its own frame

    @property
    def inside(self) -> Inside | None:
        if self.rule is None:
            return None
        return Inside(self.rule, self.normalization, self.error() * self.normalization.scale + ROUNDING)


def finish(mesh: Mesh, rule: Rule | None, error: Callable[[], float] = lambda: 0.0) -> Made:
    """The shape in the cube; the arguments as of `Made`."""
    normalized, normalization = normalize(mesh)
    return Made(normalized, normalization, rule, error)


def mesh_of(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    """vertices (V, 3), faces (F, 3) of any integer type."""
    return Mesh(torch.from_numpy(vertices.copy()), torch.from_numpy(faces.astype(np.int64)))


def manifold_module() -> Any:
    """manifold3d; ImportError says how to install it."""
    return require("manifold3d", "demo", "making solids")


class Solid:
    """A manifold together with the rule of its inside; a boolean of two is the boolean of their rules."""

    def __init__(self, manifold: Any, rule: Rule) -> None:
        self.manifold, self.rule = manifold, rule

    def __add__(self, other: Solid) -> Solid:
        return Solid(self.manifold + other.manifold, any_of([self.rule, other.rule]))

    def __sub__(self, other: Solid) -> Solid:
        return Solid(self.manifold - other.manifold, lambda p: self.rule(p) & ~other.rule(p))

    def mesh(self) -> Mesh:
        mesh = self.manifold.to_mesh()
        return mesh_of(np.asarray(mesh.vert_properties, np.float64)[:, :3], np.asarray(mesh.tri_verts))

    def made(self) -> Made:
        return finish(self.mesh(), self.rule)


def any_of(rules: Sequence[Rule]) -> Rule:
    """The rule of a union."""

    def rule(points: Tensor) -> Tensor:
        inside = rules[0](points)
        for other in rules[1:]:
            inside = inside | other(points)
        return inside

    return rule


def convex(manifold: Any) -> Solid:
    """A convex polyhedron: inside is behind all of its faces."""
    mesh = manifold.to_mesh64()
    corners = np.asarray(mesh.vert_properties)[:, :3][np.asarray(mesh.tri_verts)]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1)
    kept = length > 1e-9 * length.max()  # the plane of a sliver is noise, and its neighbors have it too
    normals = normals[kept] / length[kept, None]
    offsets = np.einsum("nd,nd->n", normals, corners[kept, 0])
    _, first = np.unique(np.concatenate([normals, offsets[:, None]], 1).round(9), axis=0, return_index=True)
    planes, limits = torch.from_numpy(normals[first]), torch.from_numpy(offsets[first])

    def rule(points: Tensor) -> Tensor:
        parts = points.split(max(1, (1 << 22) // len(planes)))
        return torch.cat([(part @ planes.T <= limits).all(1) for part in parts])

    return Solid(manifold, rule)


def prism(outline: Sequence[tuple[float, float]], height: float) -> Solid:
    """A polygon without crossings, extruded along z about the origin."""
    module = manifold_module()
    ring = torch.tensor(outline, dtype=torch.float64)
    after = ring.roll(-1, 0)

    def rule(points: Tensor) -> Tensor:
        x, y = points[:, 0, None], points[:, 1, None]
        spans = (ring[:, 1] <= y) != (after[:, 1] <= y)
        slope = (after[:, 0] - ring[:, 0]) / torch.where(
            after[:, 1] == ring[:, 1], 1, after[:, 1] - ring[:, 1]
        )
        crossings = (spans & (x < ring[:, 0] + (y - ring[:, 1]) * slope)).sum(1)
        return (crossings % 2 == 1) & (points[:, 2].abs() <= height / 2)

    solid = module.CrossSection([list(outline)]).extrude(height).translate((0, 0, -height / 2))
    return Solid(solid, rule)


def grid_faces(rows: int, columns: int, *, wrap_rows: bool, wrap_columns: bool) -> np.ndarray:
    """Triangles over a (rows, columns) grid of vertices."""
    i, j = np.meshgrid(
        np.arange(rows if wrap_rows else rows - 1),
        np.arange(columns if wrap_columns else columns - 1),
        indexing="ij",
    )
    a, b = i * columns + j, (i + 1) % rows * columns + j
    c, d = (i + 1) % rows * columns + (j + 1) % columns, i * columns + (j + 1) % columns
    return np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
