"""Any mesh in, a closed and oriented one out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastshape import ops
from fastshape.geometry.distance import DistanceField
from fastshape.geometry.mesh import Mesh, Normalization, normalize
from fastshape.geometry.narrow_band import (
    Lattice,
    between_points,
    crossed_cells,
    far_from_inside,
    find,
    follow,
    grow,
    narrow_band,
)
from fastshape.geometry.repair import Repaired, WatertightError, count_open_edges, repair
from fastshape.geometry.sampling import sample_surface
from fastshape.geometry.union import (
    UnionError,
    connected_parts,
    count_parts,
    has_manifold3d,
    overlap,
    part_volumes,
    union,
)

Method = Literal["auto", "union", "winding", "shell"]

MOST_DOUBT = 0.01  # share of queries whose sign is in doubt, above which a mesh has no clear inside
MOST_OVERLAP = 1e-3  # share of a single part's area that may lie inside it; of a union's
_QUERIES = 32768  # for the doubt
_SAMPLES = 65536  # for what the result has lost
_WALL = 0.25  # cells: how deep a point is that stands in for a wall beside it
_MOST_ROUNDS = 8  # of looking for such walls
_FILM = 16.0  # cells: how the winding number is scaled to a length where the surface has holes


@dataclass(frozen=True)
class WatertightReport:
    """What :func:`watertight` did. Lengths are in the input's own frame.

    Attributes:
        method: "none", "union", "winding" or "shell".
        why: the rules that led there, in words, in order.
        resolution: cells along [-1.05, 1.05], None where no lattice was used.
        cell: side of a cell, None without a lattice.
        epsilon: thickness added on every side, by "shell" everywhere, by "winding" where it had to; else 0.
        thickened: share of the surface, measured by lattice points beside it, that became thicker or moved.
        merged_vertices: vertices at equal positions that became one.
        dropped_faces: degenerate faces, and copies of others.
        flipped_faces: faces that had to be turned over.
        open_edges: edges, after that, that are not met by two faces in opposite directions.
        parts_in: faces of the input that hang together by vertices, merged where that was needed; of closed
            parts those that are solid.
        cavities_in: closed parts of the input that are cavities.
        parts_out, cavities_out: the same of the result; None where ``check`` was off.
        overlap: of a closed input, the share of its area that lies inside it; None for others.
        doubt: share of queries, half of them uniform in the cube and half beside the surface, whose winding
            number and ray parity disagree, or whose winding number is near neither 0 nor 1; None where the
            input is closed or the method was given.
        largest_distance: from the samples of the input that are not enclosed to the result.
        enclosed: share of the samples that lie deep inside the result: inner walls, swallowed parts.
        lost: share of the samples that lie outside the result and farther from it than the shell's epsilon
            and a cell (after a union: than 1e-4 in [-1, 1]^3).
        lost_parts: parts of the input that have lost more than half of their samples.
        closed: the result's ``is_watertight``; None where ``check`` was off.
        seconds: wall time of each stage.
    """

    method: str
    why: tuple[str, ...]
    resolution: int | None
    cell: float | None
    epsilon: float
    thickened: float
    merged_vertices: int
    dropped_faces: int
    flipped_faces: int
    open_edges: int
    parts_in: int
    cavities_in: int
    parts_out: int | None
    cavities_out: int | None
    overlap: float | None
    doubt: float | None
    largest_distance: float | None
    enclosed: float | None
    lost: float | None
    lost_parts: int | None
    closed: bool | None
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return asdict(self)


class Watertight(NamedTuple):
    """A closed mesh and how it came about."""

    mesh: Mesh
    report: WatertightReport


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin


def _doubt(mesh: Mesh, cell: float) -> float:
    """Share of queries with a doubtful sign, half of them in the cube, half a cell off the surface."""
    generator = torch.Generator().manual_seed(0)
    half = _QUERIES // 2
    uniform = (torch.rand(half, 3, generator=generator, dtype=torch.float64) * 2 - 1) * 1.05
    samples = sample_surface(mesh, half, generator)
    side = torch.where(torch.arange(half) % 2 == 0, 1.0, -1.0)[:, None]
    near = samples.points.double() + samples.normals.double() * side * cell
    oriented = DistanceField(mesh, sign="winding")
    return float(oriented.doubt(torch.cat([uniform, near])).double().mean())


@dataclass(frozen=True)
class _Coverage:
    largest_distance: float
    enclosed: float
    lost: float
    lost_parts: int


def _coverage(mesh: Mesh, result: Mesh, tolerance: float) -> _Coverage:
    """How well the result covers samples of the input: its surface by area, and the middle of each part."""
    generator = torch.Generator().manual_seed(1)
    drawn = sample_surface(mesh, _SAMPLES, generator)
    part, count = connected_parts(mesh.faces, mesh.num_vertices)
    largest = torch.zeros(count, dtype=torch.float64).scatter_reduce(0, part, mesh.face_areas, "amax")
    top = (mesh.face_areas == largest[part]).nonzero().flatten()
    faces = torch.cat([top, torch.arange(0, mesh.num_faces, max(1, mesh.num_faces // _SAMPLES))])
    samples = torch.cat([drawn.points, mesh.triangles[faces].mean(1).float()])
    part = part[torch.cat([drawn.faces, faces])]
    bvh = ops.build_bvh(result.vertices.float(), result.faces)
    distance = ops.closest_point(samples, bvh).distance
    far = (distance > tolerance).nonzero().flatten()
    inside = ops.winding_number(samples[far].contiguous(), bvh) > 0.5
    lost = torch.zeros(len(samples), dtype=torch.bool).index_fill_(0, far[~inside], True)
    enclosed = torch.zeros_like(lost).index_fill_(0, far[inside], True)
    near = distance[~enclosed]
    share = torch.zeros(count).index_add_(0, part, lost.float()) / torch.bincount(part, minlength=count)
    return _Coverage(
        float(near.max()) if len(near) else 0.0,
        float(enclosed.double().mean()),
        float(lost.double().mean()),
        int((share > 0.5).sum()),
    )


def _lattice(resolution: int, reach: float) -> Lattice:
    """With as many points beyond the cube as ``reach`` around [-1, 1] takes."""
    cell = 2.1 / resolution
    return Lattice(resolution, 1.05, max(0, math.ceil((1 + reach - 1.05) / cell) + 1))


def _marched(lattice: Lattice, indices: Tensor, values: Tensor, level: float, clock: _Clock) -> Mesh:
    with clock("cells"):
        coords, corners = crossed_cells(lattice, indices, values, level)
    with clock("march"):
        vertices, faces = ops.marching_cubes_sparse(corners, coords, level=level)
    return Mesh(lattice.positions(vertices), faces)


def _shell(mesh: Mesh, resolution: int, epsilon: float, clock: _Clock) -> Mesh:
    """The outside of all points within ``epsilon`` of the mesh, and of everything they enclose."""
    cell = 2.1 / resolution
    reach = epsilon + math.sqrt(3) * cell * 1.001
    lattice = _lattice(resolution, reach)
    with clock("band"):
        bvh = ops.build_bvh(mesh.vertices.float(), mesh.faces)
        indices, distance = narrow_band(lattice, bvh, reach)
    with clock("fill"):
        solid = distance < epsilon
        free = ~solid
        reached = ops.flood_fill(indices[free], indices[solid], shape=lattice.shape, solid_is_sorted=True)
        values = distance - epsilon
        # What is enclosed lies as deep inside as it lies beyond the shell.
        values[free] = torch.where(reached, values[free], (-values[free]).clamp_max(-1e-3 * cell))
    return _marched(lattice, indices, values, 0.0, clock)


def _winding(mesh: Mesh, resolution: int, epsilon: float, clock: _Clock) -> tuple[Mesh, float] | None:
    """Where the winding number passes 1/2, and ``epsilon`` around what is too thin for the lattice.

    Returns:
        The surface, and the share of the outside points within ``epsilon`` that became solid; None where the
        surface leads too far away from the mesh.
    """
    cell = 2.1 / resolution
    reach = max(math.sqrt(3) * cell, epsilon + cell) * 1.001
    lattice = _lattice(resolution, reach + cell)
    on_face = 1e-3 * cell
    with clock("band"):
        bvh = ops.build_bvh(mesh.vertices.float(), mesh.faces)
        indices, distance = narrow_band(lattice, bvh, reach)

    def signed(indices: Tensor, distance: Tensor) -> Tensor:
        # On the surface the distance is zero, across a hole the winding number passes 1/2: the smaller of
        # the two is continuous, and smooth enough for interpolation on both.
        winding = ops.winding_number(lattice.points(indices), bvh)
        size = torch.minimum(distance, (winding - 0.5).abs() * (_FILM * cell))
        values = torch.where(winding > 0.5, -size, size)
        # On a face the winding number may be either: inside, so that a wall within a solid leaves no trace.
        values = torch.where(distance < on_face, -on_face, values)
        return torch.where(lattice.on_border(indices), size.clamp_min(on_face), values)

    def film(indices: Tensor) -> Tensor:
        return signed(indices, ops.closest_point(lattice.points(indices), bvh).distance)

    with clock("sign"):
        values = torch.cat(
            [signed(i, d) for i, d in zip(indices.split(1 << 20), distance.split(1 << 20), strict=True)]
        )
    with clock("thin"):
        deep = values < -on_face  # a point on a face has no solid around it
        near = ~deep & (distance < epsilon)
        rows = near.nonzero().flatten()
        thin = torch.zeros_like(near)
        thin[rows] = far_from_inside(lattice, indices, deep, rows, bvh)
        thin = grow(lattice, indices, thin, near, rounds=3)  # until it overlaps with what has an inside
        rows, n = thin.nonzero().flatten(), lattice.count
        for step in (1, -1, n, -n, n * n, -n * n):
            at, found = find(indices, indices[rows] + step)
            at = at[found]
            at = at[(values[at] >= 0) & (distance[at] >= epsilon)]
            values[at] = (distance[at] - epsilon).clamp_min(on_face)
        values[thin] = distance[thin] - epsilon
        # A wall between two points closes through the nearer one; that may open another way beside it.
        seen, normals = torch.zeros_like(thin), mesh.face_normals.float()
        for _ in range(_MOST_ROUNDS):
            more = between_points(lattice, indices, values < 0, distance, normals, bvh)
            values[more] = -_WALL * cell
            seen |= more
            if not bool(more.any()):
                break
        thickened = float((thin | seen).sum()) / max(1, int(near.sum()))
    with clock("sign"):
        followed = follow(lattice, indices, values, 0.0, film, most=4 * len(indices) + 4096)
    if followed is None:
        return None
    return _marched(lattice, *followed, 0.0, clock), thickened


def _without_crumbs(mesh: Mesh, num_parts: int, volume: float) -> Mesh:
    """The largest parts of a closed mesh, and of the others those that are not smaller than a cell."""
    part, count = connected_parts(mesh.faces, mesh.num_vertices)
    if count <= num_parts:
        return mesh
    volumes = part_volumes(mesh, part, count)
    kept = volumes.abs() >= volume
    kept[volumes.topk(min(num_parts, count)).indices] = True
    if bool(kept.all()):
        return mesh
    used, faces = mesh.faces[kept[part]].unique(return_inverse=True)
    return Mesh(mesh.vertices[used], faces.view(-1, 3))


def watertight(
    mesh: Mesh,
    *,
    resolution: int = 256,
    method: Method = "auto",
    epsilon: float | None = None,
    check: bool = True,
) -> Watertight:
    """A closed, oriented mesh of the same solid.

    The mesh is centered and scaled to [-1, 1]^3 first, and the result is brought back. Degenerate faces are
    dropped; parts are turned consistently and outwards, cavities inwards (see
    :func:`fastshape.geometry.orientation.oriented_faces`); where that does not close them, vertices at equal
    positions become one, copies of faces and folds (two copies, back to back) are dropped, and solids that
    touch along an edge are cut apart there. Then one of four methods applies:

    - "none": every part is closed, and no face lies inside the solid (of a single part at most a thousandth
      of the area does): the faces as they are, turned.
    - "union": every part is closed, and they overlap: their exact union by manifold3d. Sharp edges and flat
      faces stay as they are. A cavity stays a cavity of the smallest part that holds it; a solid inside a
      solid disappears in it.
    - "winding": the surface where the winding number passes 1/2, on a lattice of ``resolution`` cells along
      [-1.05, 1.05]. Holes are closed by a film, cavities stay, edges are beveled within a cell, and nothing
      becomes thicker but places where the lattice finds no inside, of parts thinner than about a cell: there
      all points within ``epsilon`` are solid. A wall that passes between two lattice points moves to the
      nearer one, so that it has no slits.
    - "shell": the outer surface of all points within ``epsilon`` of the mesh: open sheets become slabs of
      thickness 2 ``epsilon``, whatever is enclosed becomes solid, holes narrower than 2 ``epsilon`` close.
      Closed shapes grow by ``epsilon`` on every side (so does what a VAE sees that is trained on such
      meshes): at a resolution of 256 by 0.0078 in [-1, 1]^3. No part is lost, however thin.

    "auto" takes the first that applies: "none"; "union", unless there is one part only, or manifold3d is not
    installed, refuses a part or leaves an overlap; "winding", if the parts are closed, or the sign is in
    doubt for at most 1 % of the queries (see :func:`fastshape.geometry.signed_distance`) and the film stays
    small; "shell". "winding" gives way to "shell" also where a sample of the input would lie farther outside
    the result than ``epsilon`` and a cell, or where it falls into more pieces than the input has (pieces
    smaller than a cell are dropped).

    Args:
        mesh: any mesh with a surface area.
        resolution: R, cells along [-1.05, 1.05]; time and memory grow with its square. At least 8.
        method: "auto", or one of the methods, whatever comes of it.
        epsilon: see above, in [-1, 1]^3; None is 2 / R, and more than 1.05 / R it must be, or the shell
            would leak.
        check: verify the result: whether it is closed, and how far samples of the input lie from it. "auto"
            needs that for "winding" in any case.

    Returns:
        The mesh in the input's frame and dtype, and a :class:`WatertightReport`. An input that needs nothing
        comes back as it is.

    Raises:
        WatertightError: no surface area; or the ``method`` that was asked for cannot be used.
        ValueError: no faces, no size, a ``resolution`` or ``epsilon`` out of range, an unknown ``method``.
        ImportError: ``method`` is "union" and manifold3d is not installed.

    Reference: Dora, Chen et al. 2025, section 3.1 and its published preparation. We keep every outer part,
    found by a flood fill, where it keeps the largest; lattice point i lies at i / R * 2.1 - 1.05, where it
    writes (i + 1) / (R + 1) * 2.1 - 1.05, which moves the mesh by up to epsilon; and only a narrow band is
    ever computed. Winding numbers: Barill et al. 2018.
    """
    if method not in ("auto", "union", "winding", "shell"):
        raise ValueError(f'`method` must be "auto", "union", "winding" or "shell", got {method!r}')
    if resolution < 8:
        raise ValueError(f"`resolution` must be at least 8, got {resolution}")
    cell = 2.1 / resolution
    eps = 2 / resolution if epsilon is None else float(epsilon)
    if not cell / 2 < eps < 1:
        raise ValueError(f"`epsilon` must lie between half a cell, {cell / 2:.3g}, and 1, got {eps:.3g}")
    clock = _Clock()
    with clock("prepare"):
        cube, normalization = normalize(mesh, dtype=torch.float64)
        if not cube.area > 0:
            raise WatertightError("the mesh has no surface area")
        prepared = repair(cube)
    return _Run(mesh, normalization, prepared, resolution, cell, eps, check, clock).run(method)


@dataclass
class _Run:
    """One call: which methods are tried, and why."""

    given: Mesh
    normalization: Normalization
    prepared: Repaired
    resolution: int
    cell: float
    epsilon: float
    check: bool
    clock: _Clock
    why: list[str] = field(default_factory=list)
    overlap: float | None = None
    doubt: float | None = None
    thickened: float = 0.0

    def run(self, method: Method) -> Watertight:
        if method != "auto":
            self.why.append(f"{method}: asked for")
        if method == "union":
            if not self.prepared.closed:
                raise WatertightError('"union" needs closed parts, and this mesh has open edges')
            try:
                with self.clock("union"):
                    merged = union(self.prepared.mesh)
            except UnionError as error:
                raise WatertightError(f'"union": {error}') from error
            return self.finish("union", merged)
        if method == "winding":
            found = self.winding()
            if found is None:
                raise WatertightError('"winding" leads too far away from the mesh: try "shell"')
            return self.finish("winding", found)
        if method == "shell":
            return self.shell()
        return self.auto()

    def auto(self) -> Watertight:
        mesh = self.prepared.mesh
        if self.prepared.closed:
            with self.clock("overlap"):
                self.overlap = overlap(mesh)
            if self.overlap == 0:
                self.why.append("all parts are closed and none overlaps another")
                return self.finish("none", mesh)
            said = f"all parts are closed, with {self.overlap:.3g} of the area inside others"
            alone = sum(self.parts_in()) == 1
            if alone and self.overlap <= MOST_OVERLAP:
                self.why.append(f"{said}, in a single part at most {MOST_OVERLAP}")
                return self.finish("none", mesh)
            self.why.append(said)
            merged = None if alone else self.try_union()
            if merged is not None:
                return self.finish("union", merged)
        else:
            with self.clock("doubt"):
                self.doubt = _doubt(mesh, self.cell)
            said = f"open, with {self.doubt:.3g} of the signs in doubt"
            if self.doubt > MOST_DOUBT:
                self.why.append(f"{said}, more than {MOST_DOUBT}")
                return self.shell()
            self.why.append(f"{said}, at most {MOST_DOUBT}")
        found = self.winding()
        if found is None:
            self.why.append("winding: leads too far away from the mesh")
            return self.shell()
        with self.clock("check"):
            covered = _coverage(mesh, found, self.epsilon + self.cell)
        if covered.lost:
            self.why.append(
                f"winding: would lose {covered.lost_parts} parts and {covered.lost:.3g} of the surface"
            )
            return self.shell()
        pieces, whole = count_parts(found)[0], self.parts_in()[0]
        if pieces > whole:
            self.why.append(f"winding: {pieces} pieces of {whole} parts")
            return self.shell()
        return self.finish("winding", found, covered)

    def try_union(self) -> Mesh | None:
        if not has_manifold3d():
            self.why.append("union: manifold3d is not installed")
            return None
        with self.clock("union"):
            try:
                merged = union(self.prepared.mesh)
            except UnionError as error:
                self.why.append(f"union: {error}")
                return None
        if not merged.is_watertight:
            self.why.append("union: the result is not closed")
            return None
        with self.clock("overlap"):
            left = overlap(merged)
        if left > MOST_OVERLAP:
            self.why.append(f"union: {left:.3g} of the area stays inside")
            return None
        return merged

    def parts_in(self) -> tuple[int, int]:
        mesh = self.prepared.mesh
        if self.prepared.closed:
            return count_parts(mesh)
        return connected_parts(mesh.faces, mesh.num_vertices)[1], 0

    def winding(self) -> Mesh | None:
        found = _winding(self.prepared.mesh, self.resolution, self.epsilon, self.clock)
        if found is None:
            return None
        result, self.thickened = found
        result = _without_crumbs(result, self.parts_in()[0], self.cell**3)
        if self.thickened:
            self.why.append(f"winding: {self.thickened:.3g} of the surface is thin, and became thicker")
        return result

    def shell(self) -> Watertight:
        return self.finish("shell", _shell(self.prepared.mesh, self.resolution, self.epsilon, self.clock))

    def finish(self, method: str, cube: Mesh, covered: _Coverage | None = None) -> Watertight:
        prepared = self.prepared
        thickened = {"shell": 1.0, "winding": self.thickened}.get(method, 0.0)
        epsilon = self.epsilon if thickened else 0.0
        on_lattice = method in ("winding", "shell")
        scale = self.normalization.scale
        if method == "none":
            vertices = (
                self.given.vertices if prepared.origin is None else self.given.vertices[prepared.origin]
            )
            same = prepared.origin is None and torch.equal(cube.faces, self.given.faces)
            result = self.given if same else Mesh(vertices, cube.faces)
        else:
            with self.clock("undo"):
                result = self.normalization.undo_mesh(cube).to(self.given.vertices.dtype)
        parts_in = self.parts_in()
        parts_out: tuple[int, int] | tuple[None, None] = (None, None)
        closed = None
        if self.check:
            with self.clock("check"):
                parts_out = count_parts(cube)
                closed = cube.is_watertight
                if covered is None and method != "none":
                    tolerance = self.epsilon + self.cell if on_lattice else 1e-4
                    covered = _coverage(prepared.mesh, cube, tolerance)
        if method == "none":
            covered = _Coverage(0.0, 0.0, 0.0, 0)
        report = WatertightReport(
            method=method,
            why=tuple(self.why),
            resolution=self.resolution if on_lattice else None,
            cell=self.cell / scale if on_lattice else None,
            epsilon=epsilon / scale,
            thickened=thickened,
            merged_vertices=prepared.merged_vertices,
            dropped_faces=prepared.dropped_faces,
            flipped_faces=prepared.flipped_faces,
            open_edges=0 if prepared.closed else count_open_edges(prepared.mesh),
            parts_in=parts_in[0],
            cavities_in=parts_in[1],
            parts_out=parts_out[0],
            cavities_out=parts_out[1],
            overlap=self.overlap,
            doubt=self.doubt,
            largest_distance=None if covered is None else covered.largest_distance / scale,
            enclosed=None if covered is None else covered.enclosed,
            lost=None if covered is None else covered.lost,
            lost_parts=None if covered is None else covered.lost_parts,
            closed=closed,
            seconds=self.clock.seconds,
        )
        return Watertight(result, report)
