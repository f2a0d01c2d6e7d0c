"""Sharp edges of a mesh, and points on them."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from fastshape.geometry.mesh import Mesh
from fastshape.geometry.neighbors import nearest_neighbors
from fastshape.geometry.orientation import first_at, row_numbers
from fastshape.geometry.sampling import farthest_subset, sample_faces

SharpWeighting = Literal["dora", "length", "angle", "area"]
SharpFallback = Literal["curvature", "uniform", "error"]

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
    edges = _manifold_edges(mesh)
    return SalientEdges(*edges.pick(_is_sharp(edges, angle))[:3])


def count_salient_edges(mesh: Mesh, angle: float = 15.0) -> int:
    """The number of edges that `salient_edges` finds; the detail levels of Dora-Bench count them."""
    return len(salient_edges(mesh, angle).dihedral)


def _welded_faces(mesh: Mesh) -> Tensor:
    """(F, 3) int64, the faces with each vertex replaced by the lowest one at its place."""
    return first_at(mesh.vertices)[mesh.faces]


class _Edges(NamedTuple):
    """Vertices (E, 2), faces (E, 2), dihedral angles (E,) in degrees, and whether the second face is wound
    against the first (E,)."""

    vertices: Tensor
    faces: Tensor
    dihedral: Tensor
    turned: Tensor

    def pick(self, which: Tensor) -> _Edges:
        return _Edges(*(tensor[which] for tensor in self))


def _is_sharp(edges: _Edges, angle: float) -> Tensor:
    return edges.dihedral > angle + _TIE


def _manifold_edges(mesh: Mesh) -> _Edges:
    """All edges with two faces."""
    welded = _welded_faces(mesh)
    kept = (mesh.face_areas > 0).nonzero()[:, 0]
    found = _pairs(welded, kept, mesh.num_vertices, strict=True)
    if found is None:  # three faces or more meet somewhere: perhaps copies
        number = row_numbers(welded[kept].sort(1).values)
        first = torch.full((len(kept),), len(kept)).scatter_reduce(0, number, torch.arange(len(kept)), "amin")
        kept = kept[first[first < len(kept)].sort().values]
        found = _pairs(welded, kept, mesh.num_vertices, strict=False)
        assert found is not None
    vertices, faces, turned = found
    a, b = _normals(mesh, faces, turned)
    # By the arc tangent: the arc cosine is blind to small angles.
    dihedral = torch.atan2(torch.linalg.cross(a, b).norm(dim=1), (a * b).sum(1))
    return _Edges(vertices, faces, torch.rad2deg(dihedral), turned)


def _normals(mesh: Mesh, faces: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """Unit normals (E, 3) float64 of the first and the second face, the second as if wound like the first."""
    normals = torch.nn.functional.normalize(mesh._face_cross, dim=1, eps=1e-300)
    first, second = normals[faces[:, 0]], normals[faces[:, 1]]
    return first, torch.where(turned[:, None], -second, second)


def _pairs(
    welded: Tensor, kept: Tensor, num_vertices: int, *, strict: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Vertices, faces, and whether these run along the edge in one direction, of edges with two of the faces
    `kept`; None if `strict` and an edge has more."""
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
    return vertices, torch.stack([kept[a // 3], kept[b // 3]], 1), up[a] == up[b]


# ---- Samples -----------------------------------------------------------------------------------------------


class SharpSamples(NamedTuple):
    """Points on the sharp edges of a mesh, and how they came about.

    Attributes:
        points: (N, 3) float32: end vertices, then points within edges, then points of the fallback.
        normals: (N, 3) float32 unit vectors: of a vertex the mean over its faces, weighted by their angles
            there; within an edge the mean of its two faces; of the fallback the face's.
        num_edges: sharp edges of the mesh.
        num_vertices: how many of the points are end vertices of such edges.
        num_fallback: how many of the points are not on sharp edges.
    """

    points: Tensor
    normals: Tensor
    num_edges: int
    num_vertices: int
    num_fallback: int


def sample_sharp_edges(
    mesh: Mesh,
    num_samples: int,
    *,
    angle: float = 15.0,
    weighting: SharpWeighting = "dora",
    spacing: float | None = None,
    fallback: SharpFallback = "curvature",
    generator: Generator | None = None,
) -> SharpSamples:
    """Draw points on the sharp edges of a mesh, N whatever the mesh.

    Where the points go follows `weighting`:

    - "dora": all end vertices, once each; if they are more than N, the N that farthest point sampling picks.
      Then the same number of points within each edge, equally spaced (t = j / (k + 1)), and what is left at
      random places of as many different edges. Short edges get as many points as long ones: a finely cut
      curve draws more than a straight edge of its length.
    - "length": equally spaced along all edges, laid end to end from a random start.
    - "angle": the same, denser in proportion to the dihedral angle.
    - "area": the same, each edge by the area of its two faces.

    Args:
        mesh: a mesh with a positive area; the normals need faces that look outward.
        num_samples: N >= 0.
        angle: degrees, see `salient_edges`.
        weighting: see above.
        spacing: no more points on edges than one each `spacing` of their length, in the mesh's unit; the
            rest comes from the fallback. None puts all N on edges, be they ever so short.
        fallback: where points go that the edges do not take, all N on a mesh without any. "curvature": on
            faces, in proportion to their mean curvature (the dihedral angles times the lengths of their
            edges; where all is flat, to their area); "uniform": by area; "error": nowhere.
        generator: CPU generator; None draws from torch's global one.

    Raises:
        ValueError: no surface area, a negative count, an unknown name, no sharp edge with `fallback="error"`.

    Reference: Dora (Chen et al. 2025, arXiv 2412.17808), sharp edge sampling. Its code skips meshes without a
    sharp edge, puts N points on a single one, writes 1 for normals that cancel (here that of the first face),
    and reads only welded meshes. "length", "angle", "area", `spacing` and the fallback are ours.
    """
    if num_samples < 0:
        raise ValueError(f"`num_samples` must be at least 0, got {num_samples}")
    if weighting not in ("dora", "length", "angle", "area"):
        raise ValueError(f'`weighting` must be "dora", "length", "angle" or "area", got {weighting!r}')
    if fallback not in ("curvature", "uniform", "error"):
        raise ValueError(f'`fallback` must be "curvature", "uniform" or "error", got {fallback!r}')
    if spacing is not None and not spacing > 0:
        raise ValueError(f"`spacing` must be positive, got {spacing}")
    if not mesh.num_faces or not mesh.area > 0:
        raise ValueError("the mesh has no surface area to sample")
    if not 0 <= angle <= 180:
        raise ValueError(f"`angle` must lie in 0..180 degrees, got {angle}")
    all_edges = _manifold_edges(mesh)
    sharp = _is_sharp(all_edges, angle)
    edges = all_edges.pick(sharp)
    num_edges = len(edges.dihedral)
    if not num_edges and fallback == "error":
        raise ValueError(f"no edge of the mesh is sharper than {angle} degrees")

    ends = mesh.vertices.double()[edges.vertices]
    lengths = (ends[:, 1] - ends[:, 0]).norm(dim=1)
    count = num_samples if num_edges else 0
    if spacing is not None:
        count = min(count, int(float(lengths.sum()) / spacing) + 1)
    parts: list[tuple[Tensor, Tensor]] = []
    num_vertices = 0
    if count:
        first, second = _normals(mesh, edges.faces, edges.turned)
        normals = first + second
        normals = torch.where((normals.norm(dim=1) > 1e-6)[:, None], normals, first)
        normals = torch.nn.functional.normalize(normals, dim=1)
        if weighting == "dora":
            known = _end_vertices(mesh, edges, normals)
            if len(known[0]) > count:
                kept = farthest_subset(known[0], count)
                known = known[0][kept], known[1][kept]
            num_vertices = len(known[0])
            row, t = _alike_on_each(num_edges, count - num_vertices, generator)
            parts.append(known)
        else:
            weights = lengths
            if weighting == "angle":
                weights = lengths * edges.dihedral
            elif weighting == "area":
                weights = mesh.face_areas[edges.faces].sum(1)
            row, t = _end_to_end(weights, count, generator)
        parts.append((torch.lerp(ends[row, 0], ends[row, 1], t[:, None]), normals[row]))
    if count < num_samples:
        weights = mesh.face_areas
        if fallback == "curvature":
            weights = _curvature(mesh, all_edges.pick(~sharp))
        drawn = sample_faces(mesh, weights, num_samples - count, generator)
        parts.append((drawn.points.double(), drawn.normals.double()))
    points = torch.cat([torch.zeros(0, 3), *(part[0].float() for part in parts)])
    # What should be zero is zero on every processor, whatever its last bits.
    normals = torch.cat([torch.zeros(0, 3), *((part[1] * 2**40).round().float() / 2**40 for part in parts)])
    normals += 0.0  # -0 too
    return SharpSamples(points, normals, num_edges, num_vertices, num_samples - count)


def _end_vertices(mesh: Mesh, edges: _Edges, normals: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and unit normals (K, 3) float64 of the vertices of edges, each once."""
    rows, place = edges.vertices.unique(return_inverse=True)
    number = torch.full((mesh.num_vertices,), len(rows)).index_copy(0, rows, torch.arange(len(rows)))
    corner = number[_welded_faces(mesh)]
    face, which = (corner < len(rows)).nonzero(as_tuple=True)
    triangles = mesh.triangles[face].double()
    own = torch.arange(len(face))
    here = triangles[own, which]
    sides = torch.stack([triangles[own, (which + step) % 3] - here for step in (1, 2)])
    # Half angles by the arc tangent: exact for slivers, and no division.
    sides = torch.nn.functional.normalize(sides, dim=2, eps=1e-300)
    angle = 2 * torch.atan2((sides[0] - sides[1]).norm(dim=1), (sides[0] + sides[1]).norm(dim=1))
    face_normals = torch.nn.functional.normalize(mesh._face_cross, dim=1, eps=1e-300)
    total = torch.zeros(len(rows), 3, dtype=torch.float64)
    total.index_add_(0, corner[face, which], face_normals[face] * angle[:, None])
    # Sheets folded onto each other cancel: then that of the first edge there.
    edge = torch.arange(len(place)).repeat_interleave(2)
    first = torch.full((len(rows),), len(place)).scatter_reduce(0, place.reshape(-1), edge, "amin")
    total = torch.where((total.norm(dim=1) > 1e-6)[:, None], total, normals[first])
    return mesh.vertices.double()[rows], torch.nn.functional.normalize(total, dim=1)


def _alike_on_each(num_edges: int, num_samples: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """Edges (N,) and places t in [0, 1) on them: the same number for each edge, equally spaced, and the rest
    at random places of different edges."""
    each = num_samples // num_edges
    left = num_samples - each * num_edges
    t = (torch.arange(each, dtype=torch.float64) + 1) / (each + 1)
    row = torch.arange(num_edges)
    chosen = torch.randperm(num_edges, generator=generator)[:left]
    chance = torch.rand(left, generator=generator, dtype=torch.float64)
    return torch.cat([row.repeat_interleave(each), chosen]), torch.cat([t.repeat(num_edges), chance])


def _end_to_end(weights: Tensor, num_samples: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """Edges (N,) and places t in [0, 1] on them: equally spaced in the running sum of the weights."""
    total = weights.cumsum(0)
    chance = torch.rand(1, generator=generator, dtype=torch.float64)
    at = (torch.arange(num_samples, dtype=torch.float64) + chance) * (total[-1] / max(num_samples, 1))
    row = torch.searchsorted(total, at, right=True).clamp_(max=len(weights) - 1)
    return row, ((at - total[row]) / weights[row] + 1).clamp(0, 1)


def _curvature(mesh: Mesh, edges: _Edges) -> Tensor:
    """(F,) float64: absolute mean curvature of each face, half of what its edges bend; the area where no edge
    bends."""
    ends = mesh.vertices.double()[edges.vertices]
    bend = (ends[:, 1] - ends[:, 0]).norm(dim=1) * torch.deg2rad(edges.dihedral)
    # Rounded vertices bend flat sides a little.
    bend = torch.where(edges.dihedral > _TIE, bend, torch.zeros_like(bend))
    total = torch.zeros(mesh.num_faces, dtype=torch.float64)
    for side in (0, 1):
        total.index_add_(0, edges.faces[:, side], 0.5 * bend)
    return total if float(total.sum()) > 0 else mesh.face_areas


# ---- Point clouds ------------------------------------------------------------------------------------------


class SharpPoints(NamedTuple):
    """Points of a cloud near its sharp features, and how they came about.

    Attributes:
        points: (N, 3) float32.
        normals: (N, 3) float32, unit vectors, zero where the cloud's is zero.
        rows: (N,) int64, which points of the cloud they are, each once.
        num_sharp: sharp points of the cloud, drawn or not.
        num_fallback: how many of the N are not sharp.
    """

    points: Tensor
    normals: Tensor
    rows: Tensor
    num_sharp: int
    num_fallback: int


def sample_sharp_points(
    points: Tensor,
    normals: Tensor,
    num_samples: int,
    *,
    angle: float = 30.0,
    num_neighbors: int = 16,
    oriented: bool = True,
    generator: Generator | None = None,
) -> SharpPoints:
    """Choose the points of a cloud where its normals change: what `sample_sharp_edges` is to a mesh.

    A point is sharp if the normal of one of its k nearest neighbors is more than `angle` away from its own.
    Of more than N sharp points farthest point sampling picks N among the 1.25 N that have the most such
    neighbors: those right at an edge. If there are fewer, all are taken and the rest is drawn from the others
    without repetition, in proportion to the mean of 1 - cos of their neighbors' angles, which grows with the
    square of the curvature; in a cloud without curvature all are alike.

    A smooth surface seems sharp where it turns by `angle` within reach of k neighbors, and so do, where
    normals are oriented, sheets that are closer to each other than the points are.

    Args:
        points: (P, 3), float32 or float64, finite.
        normals: (P, 3), of any length; those of length 0 neither are nor make sharp.
        num_samples: 0 <= N <= P.
        angle: degrees.
        num_neighbors: k; at most P - 1 are used.
        oriented: whether normals that point in opposite directions differ. False for clouds whose normals are
            known up to the sign.
        generator: CPU generator; None draws from torch's global one.

    Raises:
        ValueError: wrong shapes, a value that is not finite, more points asked for than there are, no
            neighbors, an angle out of range.
    """
    if normals.shape != points.shape or points.dim() != 2 or points.shape[1] != 3:
        raise ValueError(
            "`points` and `normals` must have the same shape (P, 3), "
            f"got {tuple(points.shape)} and {tuple(normals.shape)}"
        )
    if not bool(torch.isfinite(normals).all()):
        raise ValueError("`normals` must be finite")
    if not 0 <= num_samples <= len(points):
        raise ValueError(
            f"`num_samples` must lie in 0..{len(points)}, the number of points, got {num_samples}"
        )
    if num_neighbors < 1:
        raise ValueError(f"`num_neighbors` must be at least 1, got {num_neighbors}")
    if not 0 <= angle <= 180:
        raise ValueError(f"`angle` must lie in 0..180 degrees, got {angle}")
    neighbors = nearest_neighbors(points, min(num_neighbors, max(len(points) - 1, 0))).rows
    unit = torch.nn.functional.normalize(normals.double(), dim=1, eps=1e-300)
    cosine = (unit[neighbors] * unit[:, None]).sum(2)
    if not oriented:
        cosine = cosine.abs()
    known = unit.any(1)
    cosine = torch.where(known[neighbors] & known[:, None], cosine, torch.ones_like(cosine))
    apart = (cosine < math.cos(math.radians(angle))).sum(1)
    sharp = apart > 0
    rows = sharp.nonzero()[:, 0]
    num_sharp = len(rows)
    if num_sharp > num_samples:
        # Right at an edge half of the neighbors lie beyond it, however much it bends.
        rows = rows[apart[rows].sort(stable=True, descending=True).indices[: num_samples * 5 // 4]]
        rows = rows[farthest_subset(points[rows], num_samples)]
    elif num_sharp < num_samples:
        others = (~sharp).nonzero()[:, 0]
        weights = (1 - cosine[others]).clamp(min=0).sum(1)
        weights = weights + max(1e-6 * float(weights.max()), 1e-300)
        # The smallest of exponential waiting times: a weighted draw without repetition.
        waiting = -torch.rand(len(others), generator=generator, dtype=torch.float64).log() / weights
        rows = torch.cat([rows, others[waiting.argsort(stable=True)[: num_samples - num_sharp]]])
    return SharpPoints(
        points[rows].float(), unit[rows].float(), rows, num_sharp, max(num_samples - num_sharp, 0)
    )
