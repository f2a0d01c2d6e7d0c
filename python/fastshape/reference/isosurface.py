"""Surfaces of fields on lattices: a flood on a dense grid, and marching cubes from its rules."""

from __future__ import annotations

import itertools
from functools import cache

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


# ---- Marching cubes ----------------------------------------------------------------------------------------
#
# The triangles of every case are derived from nothing but the signs. A corner of a cell is inside where its
# value is below the level; corner i lies at (i & 1, i >> 1 & 1, i >> 2 & 1). Around each face of the cell
# every run of inside corners is cut off by one segment, so on an ambiguous face the two inside corners are
# separated, and both cells of the face agree. The segments join to loops, and each loop is triangulated by
# diagonals that lie in no face of the cell: a face's segments are then the only edges that two cells share,
# and each of the two has them once. Such a triangulation exists for every loop.

# (lower corner, axis) of the cell's twelve edges, in the order of (lower corner's x, y, z; axis).
EDGES = [(0, 0), (0, 1), (0, 2), (4, 0), (4, 1), (2, 0), (2, 2), (6, 0), (1, 1), (1, 2), (5, 1), (3, 2)]
_BETWEEN = {frozenset((corner, corner | 1 << axis)): edge for edge, (corner, axis) in enumerate(EDGES)}
# Each face's corners, counterclockwise seen from outside the cell.
_FACES = [(0, 4, 6, 2), (1, 3, 7, 5), (0, 1, 5, 4), (2, 6, 7, 3), (0, 2, 3, 1), (4, 5, 7, 6)]

Triangle = tuple[int, int, int]


def case_segments(case: int) -> dict[int, int]:
    """From which edge of the cell to which the surface crosses a face, over all six faces.

    The inside lies to the right of a segment, seen from outside the cell: the loops then run counterclockwise
    around the normal that points away from the inside.
    """
    segments = {}
    for face in _FACES:
        signs = [case >> corner & 1 for corner in face]
        for begin in range(4):
            if signs[begin] and not signs[begin - 1]:  # a run of inside corners begins
                end = begin
                while signs[(end + 1) % 4]:
                    end += 1
                entered = _BETWEEN[frozenset((face[begin - 1], face[begin]))]
                left = _BETWEEN[frozenset((face[end % 4], face[(end + 1) % 4]))]
                segments[entered] = left
    return segments


def case_loops(case: int) -> list[list[int]]:
    """The closed loops of a case as lists of edges, each from its lowest edge, in the order of that."""
    segments, loops = case_segments(case), []
    while segments:
        edge = min(segments)
        loop = []
        while edge in segments:
            loop.append(edge)
            edge = segments.pop(edge)
        loops.append(loop)
    return loops


def _middle(edge: int) -> tuple[int, ...]:
    """Twice the position of an edge's middle."""
    corner, axis = EDGES[edge]
    return tuple(2 * (corner >> k & 1) + (k == axis) for k in range(3))


def _in_one_face(a: int, b: int) -> bool:
    """Whether two edges lie in a common face: there the neighboring cell could have the same diagonal."""
    return any(p == q and p != 1 for p, q in zip(_middle(a), _middle(b), strict=True))


@cache
def _triangulate(loop: tuple[int, ...]) -> tuple[int, tuple[Triangle, ...]] | None:
    """The least sum of squared diagonals, the first of equals, with its triangles; None if there is none."""
    if len(loop) == 2:
        return 0, ()
    best = None
    for middle in range(1, len(loop) - 1):  # the third corner of the triangle on the side from last to first
        cost, triangles = 0, [(loop[0], loop[middle], loop[-1])]
        for part in (loop[: middle + 1], loop[middle:]):
            if len(part) > 2:
                if _in_one_face(part[0], part[-1]):
                    break
                ends = zip(_middle(part[0]), _middle(part[-1]), strict=True)
                cost += sum((p - q) ** 2 for p, q in ends)
            rest = _triangulate(part)
            if rest is None:
                break
            cost += rest[0]
            triangles += rest[1]
        else:
            if best is None or cost < best[0]:
                best = cost, tuple(triangles)
    return best


@cache
def case_triangles(case: int) -> tuple[Triangle, ...]:
    """The triangles of a case as edges of the cell, counterclockwise seen from outside the surface."""
    found = [_triangulate(tuple(loop)) for loop in case_loops(case)]
    if any(f is None for f in found):
        raise AssertionError(f"case {case} has a loop without a triangulation off the faces")
    return tuple(itertools.chain.from_iterable(f[1] for f in found if f is not None))


def marching_cubes_sparse(values: Tensor, coords: Tensor, level: float = 0.0) -> tuple[Tensor, Tensor]:
    """vertices (V, 3), faces (F, 3) of cells with corner values (N, 8) at coords (N, 3). Differentiable."""
    inside = values < level
    cases = (inside * (1 << torch.arange(8))).sum(1)
    positions, keys, owners = [], [], []
    cell_key = coords.long() @ torch.tensor([1 << 40, 1 << 20, 1])
    for corner, axis in EDGES:
        a, b = values[:, corner], values[:, corner | 1 << axis]
        crossing = inside[:, corner] != inside[:, corner | 1 << axis]
        t = ((level - a) / torch.where(crossing, b - a, 1)).nan_to_num(nan=0.5)
        point = coords.long() + torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1])
        direction = torch.eye(3, dtype=values.dtype)[axis]
        positions.append(point.to(values.dtype) + t[:, None] * direction)
        keys.append((point @ torch.tensor([1 << 40, 1 << 20, 1])) * 4 + axis)
        owners.append(torch.where(crossing, cell_key, -1))
    key, owner = torch.stack(keys, 1), torch.stack(owners, 1)  # (N, 12)
    slots = (owner >= 0).flatten().nonzero()[:, 0]
    # Of the cells that share an edge the last one owns it, so that it comes first here.
    slots = slots[owner.flatten()[slots].argsort(descending=True, stable=True)]
    slots = slots[key.flatten()[slots].argsort(stable=True)]
    sorted_keys = key.flatten()[slots]
    _, inverse, counts = sorted_keys.unique_consecutive(return_inverse=True, return_counts=True)
    first = counts.cumsum(0) - counts
    vertices = torch.stack(positions, 1).reshape(-1, 3)[slots[first]]
    index = torch.full((key.numel(),), -1)
    index[slots] = inverse
    index = index.view(-1, 12)
    table = torch.full((256, 5, 3), -1)
    for case in range(256):
        for row, triangle in enumerate(case_triangles(case)):
            table[case, row] = torch.tensor(triangle)
    triangles = table[cases]  # (N, 5, 3)
    cell, k = (triangles[:, :, 0] >= 0).nonzero(as_tuple=True)
    return vertices, index[cell[:, None], triangles[cell, k]]


def marching_cubes(values: Tensor, level: float = 0.0) -> tuple[Tensor, Tensor]:
    """The same for all cells of a lattice of values (X, Y, Z). Differentiable."""
    coords = torch.cartesian_prod(*(torch.arange(max(n - 1, 0)) for n in values.shape)).view(-1, 3)
    corners = [coords + torch.tensor([i & 1, i >> 1 & 1, i >> 2 & 1]) for i in range(8)]
    cells = torch.stack([values[tuple(c.T)] for c in corners], 1)
    return marching_cubes_sparse(cells, coords, level)
