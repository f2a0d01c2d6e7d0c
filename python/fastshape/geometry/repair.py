"""What closes a mesh without a lattice: positions merged, folds dropped, faces turned, solids cut apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastshape.geometry.mesh import Mesh
from fastshape.geometry.orientation import oriented_faces, row_numbers
from fastshape.geometry.union import connected_parts, cut_apart
from fastshape.ops.rows import count_edges


class WatertightError(ValueError):
    """A mesh that cannot be closed in the way that was asked for, and why."""


def count_open_edges(mesh: Mesh) -> int:
    """Edges that are not met by exactly two faces in opposite directions."""
    return sum(count_edges(mesh.faces.int(), mesh.num_vertices))


@dataclass(frozen=True)
class Repaired:
    """A mesh brought as near to closed parts as that takes, and what was done to it."""

    mesh: Mesh  # in the cube, float64, oriented
    origin: Tensor | None  # which of the input's vertices each one is; None: all as they were
    closed: bool
    merged_vertices: int
    dropped_faces: int
    flipped_faces: int


def repair(mesh: Mesh) -> Repaired:
    """Merges, drops and turns as little as it takes to have closed parts."""
    faces = mesh.faces
    a, b, c = faces.unbind(1)
    distinct = (a != b) & (b != c) & (c != a)
    given = replace(mesh, faces=faces[distinct])
    turned = _turn(given)
    if given.is_watertight:
        # Where parts touch, equal positions may join what is apart: whole parts go with most of their area.
        part, count = connected_parts(given.faces, given.num_vertices)
        changed = (turned.faces != given.faces).any(1)
        balance = torch.zeros(count, dtype=torch.float64)
        balance.index_add_(0, part, torch.where(changed, -given.face_areas, given.face_areas))
        turned = replace(
            given, faces=torch.where((balance < 0)[part][:, None], given.faces[:, [0, 2, 1]], given.faces)
        )
    if turned.is_watertight:
        flipped = int((turned.faces != given.faces).any(1).sum())
        return Repaired(turned, None, True, 0, len(faces) - len(given.faces), flipped)

    # Equal positions are one vertex.
    row = row_numbers(mesh.vertices)
    first = torch.full((int(row.max()) + 1,), mesh.num_vertices).scatter_reduce(
        0, row, torch.arange(mesh.num_vertices), "amin"
    )
    faces = row[mesh.faces]
    used = int(mesh.faces.unique().numel())
    best = None
    for kept in _without_copies(faces):
        if not bool(kept.any()):
            continue
        merged = Mesh(mesh.vertices[first], faces[kept])
        turned = _turn(merged)
        flipped = int((turned.faces != merged.faces).any(1).sum())
        dropped = len(mesh.faces) - merged.num_faces
        counts = (used - int(merged.faces.unique().numel()), dropped, flipped)
        cut = cut_apart(turned.vertices, turned.faces)
        if cut is not None:
            apart = Mesh(turned.vertices[cut[1]], cut[0])
            if apart.is_watertight:
                return Repaired(apart, first[cut[1]], True, *counts)
        here = Repaired(turned, first, False, *counts)
        if best is None or count_open_edges(turned) < count_open_edges(best.mesh):
            best = here
    if best is None:
        raise WatertightError("every face of the mesh is degenerate")
    return best


def _without_copies(faces: Tensor) -> list[Tensor]:
    """Which faces are left, (F,) bool, by up to two rules, the better first.

    None of a set of copies of which as many are turned one way as the other: folds, walls that two parts
    share. And one of each set, whichever way they are turned.
    """
    ranked, place = faces.sort(dim=1)
    proper = (ranked[:, 0] != ranked[:, 1]) & (ranked[:, 1] != ranked[:, 2])
    odd = (place[:, 0] > place[:, 1]) ^ (place[:, 1] > place[:, 2]) ^ (place[:, 0] > place[:, 2])
    number = torch.arange(len(faces))
    copies = row_numbers(ranked)
    kept = proper & (
        torch.full_like(number, len(faces)).scatter_reduce(0, copies, number, "amin")[copies] == number
    )
    balance = torch.zeros_like(number).index_add_(0, copies, torch.where(odd, -1, 1))[copies]
    if not bool((kept & (balance == 0)).any()):
        return [kept]
    return [kept & (balance != 0), kept]


def _turn(mesh: Mesh) -> Mesh:
    return replace(mesh, faces=oriented_faces(mesh.vertices, mesh.faces))
