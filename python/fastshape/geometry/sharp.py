"""Sharp edges of a mesh, and points on them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastshape.geometry.mesh import Mesh
from fastshape.geometry.orientation import _row_numbers

# Rounded float32 vertices must not decide about a cylinder of 24 sides, whose edges all have 15 degrees.
_TIE = 0.01


class SalientEdges(NamedTuple):
    """The sharp edges of a mesh, in the order of their vertices.

    Attributes:
        vertices: (E, 2) int64, rows of the mesh's vertices, lower first; of vertices at one place the lowest
            row stands for all.
        faces: (E, 2) int64, the two faces that meet there, lower first.
        dihedral: (E,) float64, degrees between the faces' normals: 0 is flat, 180 is folded back.
    """

    vertices: Tensor
    faces: Tensor
    dihedral: Tensor


def salient_edges(mesh: Mesh, angle: float = 15.0) -> SalientEdges:
    """Find the edges where two faces meet at more than an angle.

    An edge counts if exactly two faces with an area share it; edges of one face (the rim of an open surface)
    and of three or more do not. Vertices are joined by position, so that a soup has the edges of the welded
    mesh; copies of a face count once. Where two neighbors are wound against each other one of them is seen as
    turned. The angle must exceed `angle` by 0.01 degrees, so that rounding does not decide where a model has
    just that angle.

    Args:
        mesh: any mesh.
        angle: degrees, 0 to 180.

    Raises:
        ValueError: an angle outside that range.

    Reference: Dora (Chen et al. 2025, arXiv 2412.17808) selects with Blender's "select sharp edges" at 15
    degrees, which knows no welding, takes neighbors of opposite winding as folded, and faces without an area
    as sharp.
    """
    if not 0 <= angle <= 180:
        raise ValueError(f"`angle` must lie in 0..180 degrees, got {angle}")
    vertices, faces, dihedral = _manifold_edges(mesh)
    sharp = dihedral > angle + _TIE
    return SalientEdges(vertices[sharp], faces[sharp], dihedral[sharp])


def count_salient_edges(mesh: Mesh, angle: float = 15.0) -> int:
    """The number of edges that `salient_edges` finds; the detail levels of Dora-Bench count them."""
    return len(salient_edges(mesh, angle).dihedral)


def _welded_faces(mesh: Mesh) -> Tensor:
    """(F, 3) int64, the faces with each vertex replaced by the lowest one at its place."""
    number = _row_numbers(mesh.vertices)
    rows = torch.arange(mesh.num_vertices)
    lowest = torch.full_like(rows, mesh.num_vertices).scatter_reduce(0, number, rows, "amin")
    return lowest[number][mesh.faces]


def _manifold_edges(mesh: Mesh) -> tuple[Tensor, Tensor, Tensor]:
    """Vertices (E, 2), faces (E, 2) and dihedral angles (E,) in degrees of the edges with two faces."""
    welded = _welded_faces(mesh)
    kept = (mesh.face_areas > 0).nonzero()[:, 0]
    edges = _pairs(welded, kept, mesh.num_vertices)
    if edges is None:  # three faces or more meet somewhere: perhaps copies
        number = _row_numbers(welded[kept].sort(1).values)
        first = torch.full((len(kept),), len(kept)).scatter_reduce(0, number, torch.arange(len(kept)), "amin")
        kept = kept[first[first < len(kept)].sort().values]
        edges = _pairs(welded, kept, mesh.num_vertices, strict=False)
        assert edges is not None
    vertices, faces, opposed = edges
    normals = torch.nn.functional.normalize(mesh._face_cross, dim=1, eps=1e-300)
    a, b = normals[faces[:, 0]], normals[faces[:, 1]]
    b = torch.where(opposed[:, None], b, -b)
    # By the arc tangent: the arc cosine is blind to small angles.
    angle = torch.atan2(torch.linalg.cross(a, b).norm(dim=1), (a * b).sum(1))
    return vertices, faces, torch.rad2deg(angle)


def _pairs(
    welded: Tensor, kept: Tensor, num_vertices: int, *, strict: bool = True
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Vertices, faces, and whether the faces run along the edge in opposite directions, of edges with two
    faces among `kept`; None if `strict` and an edge has more."""
    start = welded[kept]
    end = start.roll(-1, 1)
    low, high = torch.minimum(start, end).reshape(-1), torch.maximum(start, end).reshape(-1)
    keys, order = (low * num_vertices + high).sort(stable=True)
    count = torch.unique_consecutive(keys, return_counts=True)[1]
    if strict and bool((count > 2).any()):
        return None
    first = (count.cumsum(0) - count)[count == 2]
    a, b = order[first], order[first + 1]
    up = (start < end).reshape(-1)
    vertices = torch.stack([low[a], high[a]], 1)
    return vertices, torch.stack([kept[a // 3], kept[b // 3]], 1), up[a] != up[b]
