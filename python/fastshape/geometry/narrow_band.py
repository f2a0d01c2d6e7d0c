"""Fields on the points of a fine lattice near a surface, without the lattice.

Points and cells are flat indices ``(x * n + y) * n + z`` (int64), a cell that of its lowest corner; lists of
them ascend. So a neighbor along z is the next entry, if it is there at all, and memory goes with the surface.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastshape import ops

_TOP = 32  # points along a side of the blocks that the descent starts with
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Lattice:
    """The points ``index / resolution * 2 * bound - bound`` of each axis, and some beyond either end.

    Args:
        resolution: R, cells along a side of [-bound, bound]^3.
        bound: half side of the cube.
        margin: points beyond the cube on every side; index -margin is stored as 0.
    """

    resolution: int
    bound: float = 1.05
    margin: int = 0

    @property
    def count(self) -> int:
        """n, points along an axis."""
        return self.resolution + 1 + 2 * self.margin

    @property
    def cell(self) -> float:
        """Side of a cell."""
        return 2 * self.bound / self.resolution

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.count, self.count, self.count

    def coords(self, indices: Tensor) -> Tensor:
        """(N, 3) int64 stored coordinates, each in [0, n), of flat indices."""
        n = self.count
        plane = torch.div(indices, n, rounding_mode="floor")
        x = torch.div(plane, n, rounding_mode="floor")
        return torch.stack([x, plane - x * n, indices - plane * n], 1)

    def flat(self, coords: Tensor) -> Tensor:
        """(N,) flat indices of stored coordinates (N, 3)."""
        return (coords[:, 0] * self.count + coords[:, 1]) * self.count + coords[:, 2]

    def positions(self, coords: Tensor) -> Tensor:
        """Positions in float64 of stored coordinates (..., 3), whole or not."""
        return (coords.double() - self.margin) / self.resolution * (2 * self.bound) - self.bound

    def points(self, indices: Tensor) -> Tensor:
        """(N, 3) float32 positions of flat indices."""
        return self.positions(self.coords(indices)).float()

    def on_border(self, indices: Tensor) -> Tensor:
        """(N,) bool: points of the outermost layer."""
        coords = self.coords(indices)
        return ((coords == 0) | (coords == self.count - 1)).any(1)


def narrow_band(lattice: Lattice, bvh: ops.Bvh, radius: float) -> tuple[Tensor, Tensor]:
    """All lattice points within ``radius`` of a mesh.

    Blocks of points, first of 32 along a side, are kept and halved while their middle is no farther from the
    mesh than ``radius`` and half their diagonal; distances change by no more than the way, so none is lost.

    Args:
        lattice: which points.
        bvh: of the mesh, in float32.
        radius: of the band.

    Returns:
        Flat indices (N,), ascending, and distances (N,) float32.
    """
    side = _TOP
    blocks = (lattice.count + side - 1) // side
    axis = torch.arange(blocks) * side
    origins = torch.cartesian_prod(axis, axis, axis).to(torch.int32)
    halves = torch.cartesian_prod(*[torch.arange(2, dtype=torch.int32)] * 3)
    while True:
        reach = radius + 1e-6 + (side - 1) / 2 * math.sqrt(3) * lattice.cell
        kept, distances = [], []
        for some in origins.split(_CHUNK):
            distance = ops.closest_point(
                lattice.positions(some.double() + (side - 1) / 2).float(), bvh
            ).distance
            near = distance <= (radius if side == 1 else reach)
            kept.append(some[near])
            distances.append(distance[near])
        if side == 1:
            break
        side //= 2
        origins = torch.cat([_split(some, halves * side, lattice.count) for some in kept])
    indices = torch.cat([lattice.flat(some.long()) for some in kept])
    indices, order = indices.sort()
    return indices, torch.cat(distances)[order]


def _split(origins: Tensor, offsets: Tensor, count: int) -> Tensor:
    children = (origins[:, None] + offsets).view(-1, 3)
    return children[(children < count).all(1)]


def find(indices: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where ``wanted`` stands in ascending ``indices``: positions (N,), and whether it is there at all."""
    if not len(indices):
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    at = torch.searchsorted(indices, wanted).clamp_(max=len(indices) - 1)
    return at, indices[at] == wanted


def far_from_inside(
    lattice: Lattice, indices: Tensor, inside: Tensor, candidates: Tensor, bvh: ops.Bvh
) -> Tensor:
    """Which points stand beside a place of the mesh that has no inside point within 1.8 cells.

    Behind a flat face there always is one, at most 0.8 + sqrt(3) / 2 cells away; behind the faces of a part
    that is thinner than about a cell there may be none.

    Args:
        lattice: whose points.
        indices: flat indices (N,), ascending: all points within 1.7 cells of the mesh.
        inside: (N,) bool.
        candidates: (M,) rows of ``indices``, of outside points.
        bvh: of the mesh, in float32.

    Returns:
        (M,) bool.
    """
    solid = indices[inside]
    result = torch.zeros(len(candidates), dtype=torch.bool)
    cube = torch.cartesian_prod(*[torch.arange(-1, 3)] * 3)
    for begin in range(0, len(candidates), _CHUNK):
        points = lattice.points(indices[candidates[begin : begin + _CHUNK]])
        places = ops.closest_point(points, bvh).point
        inwards = torch.nn.functional.normalize(places - points, dim=1)
        place = (places.double() + lattice.bound) / lattice.cell + lattice.margin
        # The middle of what half a ball holds is the best guess; then everything that is near enough.
        guess = (place + 0.8 * inwards).round().long()
        open_rows = (~find(solid, lattice.flat(guess))[1]).nonzero().flatten()
        for some in open_rows.split(_CHUNK // 64):
            around = place[some].floor().long()[:, None] + cube
            near = (around - place[some][:, None]).square().sum(2) <= 1.8**2
            found = find(solid, lattice.flat(around.view(-1, 3)))[1].view(near.shape)
            result[begin + some] = ~(found & near).any(1)
    return result


def between_points(
    lattice: Lattice,
    indices: Tensor,
    inside: Tensor,
    distance: Tensor,
    normals: Tensor,
    bvh: ops.Bvh,
) -> Tensor:
    """Which outside points have a wall beside them that passes between two lattice points unseen.

    The two are outside, neighbors along an axis, or across a square whose other corners are inside (there the
    surface would let both through); the way from either to the other meets the mesh, and what they meet looks
    apart by more than 120 degrees: the two sides of a wall, not the edge of a solid.

    Args:
        lattice: whose points.
        indices: flat indices (N,), ascending.
        inside: (N,) bool.
        distance: to the mesh, (N,).
        normals: of the mesh's faces, (F, 3) float32.
        bvh: of the mesh, in float32.

    Returns:
        (N,) bool: of each such two the one nearer to the wall.
    """
    chosen = torch.zeros_like(inside)
    n = lattice.count
    strides = (n * n, n, 1)
    outside = ~inside
    ways: list[tuple[int, int | None]] = [(stride, None) for stride in strides]
    for low, high in ((2, 1), (2, 0), (1, 0)):
        ways += [(strides[high] + sign * strides[low], strides[high]) for sign in (1, -1)]
    for step, corner in ways:
        way = (lattice.coords(torch.tensor([step + n * n + n + 1]))[0] - 1).double() * lattice.cell
        length = float(way.norm())
        rows = (outside & (distance < length)).nonzero().flatten()
        at, found = find(indices, indices[rows] + step)
        found &= outside[at] & (distance[rows] + distance[at] <= length)
        rows, at = rows[found], at[found]
        if corner is not None:
            for other in (corner, step - corner):
                place, found = find(indices, indices[rows] + other)
                found &= inside[place]
                rows, at = rows[found], at[found]
        for some in torch.arange(len(rows)).split(_CHUNK):
            ends = rows[some], at[some]
            directions = way.float().expand(len(some), 3)
            hits = [
                ops.cast_rays(lattice.points(indices[end]), (sign * directions).contiguous(), bvh)
                for end, sign in zip(ends, (1, -1), strict=True)
            ]
            met = (hits[0].face >= 0) & (hits[1].face >= 0) & (hits[0].t + hits[1].t <= 1)
            seen = [normals[hit.face.clamp_min(0)] for hit in hits]
            wall = met & ((seen[0] * seen[1]).sum(1) < -0.5)
            nearer = torch.where(distance[ends[0]] <= distance[ends[1]], ends[0], ends[1])
            chosen[nearer[wall]] = True
    return chosen


def grow(lattice: Lattice, indices: Tensor, chosen: Tensor, within: Tensor, rounds: int) -> Tensor:
    """The chosen points (N,) bool, and those of ``within`` that a few king's moves lead to from them."""
    chosen = chosen.clone()
    frontier = chosen.nonzero().flatten()
    moves = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3)
    steps = ((moves[:, 0] * lattice.count + moves[:, 1]) * lattice.count + moves[:, 2]).tolist()
    for _ in range(rounds):
        reached = [frontier[:0]]
        for step in steps:
            at, found = find(indices, indices[frontier] + step)
            at = at[found & within[at] & ~chosen[at]]
            chosen[at] = True
            reached.append(at)
        frontier = torch.cat(reached)
    return chosen


def crossed_cells(lattice: Lattice, indices: Tensor, values: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The cells with all eight corners in a list of points, some below the level and some not.

    Args:
        lattice: whose points.
        indices: flat indices (N,), ascending.
        values: (N,).
        level: what divides the corners.

    Returns:
        Stored coordinates (M, 3) int32 of the cells and the values (M, 8) of their corners, as
        :func:`fastshape.ops.marching_cubes_sparse` takes them.
    """
    n = lattice.count
    inside = values < level
    steps = torch.tensor([0, n * n, n, n * n + n])  # corners 0..3; 4..7 lie one further along z
    coords, corners = [], []
    # Whoever has a next neighbor along z; at the end of a row the next index belongs to another row, but then
    # the row's own end is on the border and the other corners decide.
    has_next = torch.zeros(len(indices), dtype=torch.bool)
    has_next[:-1] = indices[1:] == indices[:-1] + 1
    for begin in range(0, max(len(indices), 1), _CHUNK):
        rows = has_next[begin : begin + _CHUNK].nonzero().flatten() + begin
        low, high = inside[rows] | inside[rows + 1], inside[rows] & inside[rows + 1]
        places = [rows]
        for step in steps[1:].tolist():
            at, found = find(indices, indices[rows] + step)
            found &= has_next[at]
            at_next = (at + 1).clamp_(max=len(indices) - 1)
            rows, low, high, at, at_next = (t[found] for t in (rows, low, high, at, at_next))
            places = [place[found] for place in places] + [at]
            low |= inside[at] | inside[at_next]
            high &= inside[at] & inside[at_next]
        mixed = low & ~high
        at = torch.stack([place[mixed] for place in places], 1)
        corners.append(values[torch.cat([at, at + 1], 1)])
        coords.append(lattice.coords(indices[rows[mixed]]).to(torch.int32))
    return torch.cat(coords), torch.cat(corners)


def follow(
    lattice: Lattice,
    indices: Tensor,
    values: Tensor,
    level: float,
    field: Callable[[Tensor], Tensor],
    most: int,
) -> tuple[Tensor, Tensor] | None:
    """Adds the points that the surface of a field needs where it leaves the band.

    Around every lattice edge between known points that crosses the level, all points of its four cells are
    made known, until that holds everywhere: then no surface that meets the band ends anywhere.

    Args:
        lattice: whose points; those on its border must not be below the level.
        indices, values, level: as for :func:`crossed_cells`.
        field: values (M,) of new points with flat indices (M,).
        most: how many points may be added.

    Returns:
        Indices and values with the new points among them; None if there would be more than ``most``.
    """
    n = lattice.count
    strides = (n * n, n, 1)
    added = 0
    fresh = torch.ones(len(indices), dtype=torch.bool)  # the points whose edges are to be looked at
    while True:
        missing = []
        base = fresh.nonzero().flatten()
        for begin in range(0, len(base), _CHUNK):
            rows = base[begin : begin + _CHUNK]
            here = values[rows] < level
            for axis, stride in enumerate(strides):
                others = [s for a, s in enumerate(strides) if a != axis]
                for step in (stride, -stride):
                    at, found = find(indices, indices[rows] + step)
                    crossing = found & (here != (values[at] < level))
                    ends = indices[rows[crossing]]
                    if not len(ends):
                        continue
                    around = torch.tensor(
                        [i * others[0] + j * others[1] for i in (-1, 0, 1) for j in (-1, 0, 1)]
                    )
                    needed = (ends[:, None] + torch.cat([around, around + step])).flatten()
                    missing.append(needed[~find(indices, needed)[1]].unique())
        if not missing:
            return indices, values
        new = torch.cat(missing).unique()
        if not len(new):
            return indices, values
        added += len(new)
        if added > most:
            return None
        indices, order = torch.cat([indices, new]).sort()
        values = torch.cat([values, field(new)])[order]
        fresh = order >= len(values) - len(new)
