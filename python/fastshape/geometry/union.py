"""Closed parts: telling them apart, whether they overlap, and their union."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastshape import ops
from fastshape.geometry.mesh import Mesh
from fastshape.geometry.optional import require
from fastshape.geometry.orientation import joined

_OVERLAP_PLACES = 65536


class UnionError(ValueError):
    """Parts whose union was refused, and why."""


def connected_parts(faces: Tensor, num_vertices: int) -> tuple[Tensor, int]:
    """Parts of a mesh: faces that hang together by vertices.

    Args:
        faces: (F, 3) int64.
        num_vertices: V.

    Returns:
        (F,) int64, the part of each face, numbered by their first vertices; how many there are.
    """
    if not len(faces):
        return faces.new_zeros(0), 0
    u, v = torch.cat([faces[:, :2], faces[:, 1:]]).unbind(1)
    roots = joined(u, v, num_vertices)[faces[:, 0]]
    numbers = torch.zeros(num_vertices, dtype=torch.int64)
    numbers[roots] = 1
    total = numbers.cumsum(0)
    return total[roots] - 1, int(total[-1])


def cut_apart(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor] | None:
    """Closes a surface whose edges are met by as many faces one way as the other.

    Around an edge of more than two faces those are paired that have solid between them, so that solids which
    touch along it come apart; then every vertex becomes as many as there are fans of faces around it.

    Args:
        vertices: (V, 3).
        faces: (F, 3) int64, turned outwards.

    Returns:
        The new faces, and for each new vertex which one it was; None where an edge is met by more faces one
        way, or more than ten thousand are crowded.
    """
    start, end = faces.flatten(), faces.roll(-1, 1).flatten()
    low, high = torch.minimum(start, end), torch.maximum(start, end)
    keys, order = (low * len(vertices) + high).sort(stable=True)
    forward = (start < end)[order]
    _, group, sizes = keys.unique_consecutive(return_inverse=True, return_counts=True)
    balance = torch.zeros_like(sizes).index_add_(0, group, torch.where(forward, 1, -1))
    if bool(balance.any()):
        return None
    first = sizes.cumsum(0) - sizes
    plain = first[sizes == 2]
    crowded = (sizes > 2).nonzero().flatten()
    if len(crowded) > 10_000:
        return None
    one, other = [order[plain]], [order[plain + 1]]
    points = vertices.double()
    for number in crowded.tolist():
        at = int(first[number])
        halves = order[at : at + int(sizes[number])]
        pairs = _pairs(points, start[halves], end[halves], faces.flatten()[_step(_step(halves))])
        one.append(halves[pairs[:, 0]])
        other.append(halves[pairs[:, 1]])
    a, b = torch.cat(one), torch.cat(other)
    # The corner where one half edge starts is where its partner ends.
    roots = joined(torch.cat([a, _step(a)]), torch.cat([_step(b), b]), len(start))
    corners, inverse = roots.unique(return_inverse=True)
    return inverse.view(-1, 3), start[corners]


def _step(corners: Tensor) -> Tensor:
    """The next corner of the same face."""
    return torch.where(corners % 3 == 2, corners - 2, corners + 1)


def _pairs(points: Tensor, start: Tensor, end: Tensor, tip: Tensor) -> Tensor:
    """(K, 2): which of the 2 K half edges along one edge have solid between them.

    Seen along the edge from its lower vertex, the solid of a face that runs down begins at its angle and goes
    up, that of a face that runs up ends there.
    """
    low, high = min(int(start[0]), int(end[0])), max(int(start[0]), int(end[0]))
    along = torch.nn.functional.normalize(points[high] - points[low], dim=0)
    radial = points[tip] - points[low]
    radial = radial - (radial @ along)[:, None] * along
    angle = torch.atan2(radial @ torch.linalg.cross(along, radial[0]), radial @ radial[0])
    ranked = angle.sort(stable=True).indices.tolist()
    waiting: list[int] = []
    pairs: list[tuple[int, int]] = []
    matched: set[int] = set()
    for half in ranked + ranked:  # around twice: what is open at the end is closed from the beginning
        if half in matched:
            continue
        if bool(start[half] > end[half]):
            if half not in waiting:
                waiting.append(half)
        elif waiting:
            begin = waiting.pop()
            pairs.append((begin, half))
            matched.update((begin, half))
    return torch.tensor(pairs)


def part_volumes(mesh: Mesh, part: Tensor, count: int) -> Tensor:
    """(count,) float64: the signed volume of each closed part."""
    corners = mesh.triangles.double() - mesh.vertices[mesh.faces[:, 0]].double().mean(0)
    volumes = (corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum(1) / 6
    return torch.zeros(count, dtype=torch.float64).index_add_(0, part, volumes)


def count_parts(mesh: Mesh) -> tuple[int, int]:
    """Parts of a closed mesh that are solid, and those that are cavities."""
    part, count = connected_parts(mesh.faces, mesh.num_vertices)
    cavities = int((part_volumes(mesh, part, count) < 0).sum()) if count else 0
    return count - cavities, cavities


@dataclass(frozen=True)
class _Part:
    vertices: Tensor
    faces: Tensor
    volume: float

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        return self.vertices.amin(0), self.vertices.amax(0)


def _split(mesh: Mesh) -> list[_Part]:
    part, count = connected_parts(mesh.faces, mesh.num_vertices)
    order = part.sort(stable=True).indices
    sizes = torch.bincount(part, minlength=count).tolist()
    parts = []
    for rows in order.split(sizes):
        used, faces = mesh.faces[rows].unique(return_inverse=True)
        some = Mesh(mesh.vertices[used].double(), faces.view(-1, 3))
        parts.append(_Part(some.vertices, some.faces, some.volume))
    return parts


def overlap(mesh: Mesh) -> float:
    """Share of the area of a closed mesh that does not part inside from outside.

    A face of a solid has winding number 0 on its outer side and 1 on its inner side; where it lies inside
    other parts, or behind a self-intersection, it has not. Asked for a millionth of the mesh's size off the
    faces: at the middle of each, and of a larger one at as many random places as its area has
    65536ths of the whole. What is smaller than these may be overlooked.
    """
    normals = mesh.face_normals.double()
    corners = mesh.triangles.double()
    step = 1e-6 * float((corners.amax((0, 1)) - corners.amin((0, 1))).max())  # unused vertices do not count
    areas = mesh.face_areas
    counts = (areas * (_OVERLAP_PLACES / float(areas.sum()))).ceil().long()  # none where there is no area
    face = torch.repeat_interleave(counts)
    shares = torch.rand(len(face), 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    shares = shares.clamp_min(1e-300).log()  # of exponential distribution, so that points are uniform
    shares = torch.where((counts[face] == 1)[:, None], 1.0, shares)
    shares = 0.01 / 3 + 0.99 * shares / shares.sum(1, keepdim=True)  # not on the edges, where faces meet
    places = (corners[face] * shares[:, :, None]).sum(1)
    bvh = ops.build_bvh(mesh.vertices.double(), mesh.faces)
    outer = ops.ray_crossings(places + step * normals[face], bvh)
    inner = ops.ray_crossings(places - step * normals[face], bvh)
    weights = (areas / counts.clamp_min(1))[face]
    return float(weights[(outer != 0) | (inner != 1)].sum() / weights.sum())


def union(mesh: Mesh) -> Mesh:
    """The union of the closed parts of a mesh, with their cavities, by exact surface intersection.

    A part with a positive volume is solid. A part with a negative one is a cavity of the smallest solid part
    that holds it; where another solid part reaches into it, that part stays.

    Args:
        mesh: every part closed, oriented and of its own vertices, as ``oriented_faces`` turns them.

    Returns:
        A mesh with float64 vertices, closed and oriented.

    Raises:
        ImportError: manifold3d is not installed.
        UnionError: a part that it refuses, a cavity that lies in no part, or nothing left.

    Reference: the library manifold3d (Lalish), guaranteed manifold output. It takes a part that intersects
    itself as it is, so the result may have to be asked for its :func:`overlap`.
    """
    package = require("manifold3d", "geom", "the union of parts")
    parts = _split(mesh)
    solids = sorted((part for part in parts if part.volume > 0), key=lambda part: part.volume)
    cavities: dict[int, list[_Part]] = {}
    trees: dict[int, ops.Bvh] = {}
    for cavity in parts:
        if cavity.volume > 0:
            continue
        if cavity.volume == 0:
            raise UnionError("a part has no volume")
        cavities.setdefault(_holder(cavity, solids, trees), []).append(cavity)

    def manifold(part: _Part) -> object:
        faces = part.faces if part.volume > 0 else part.faces.flip(1)
        made = package.Manifold(
            package.Mesh64(
                np.ascontiguousarray(part.vertices.numpy()),
                np.ascontiguousarray(faces.numpy().astype(np.uint64)),
            )
        )
        if made.status() != package.Error.NoError:
            raise UnionError(f"a part of {len(part.faces)} faces was refused: {made.status().name}")
        return made

    made = []
    for number, solid in enumerate(solids):
        whole = manifold(solid)
        if number in cavities:
            whole = package.Manifold.batch_boolean(
                [whole, *(manifold(cavity) for cavity in cavities[number])], package.OpType.Subtract
            )
        made.append(whole)
    result = package.Manifold.batch_boolean(made, package.OpType.Add)
    if result.status() != package.Error.NoError:
        raise UnionError(f"the union failed: {result.status().name}")
    if result.is_empty():
        raise UnionError("the union is empty")
    arrays = result.to_mesh64()
    vertices = torch.from_numpy(np.array(arrays.vert_properties, np.float64)[:, :3].copy())
    return Mesh(vertices, torch.from_numpy(np.array(arrays.tri_verts).astype(np.int64)))


def _holder(cavity: _Part, solids: list[_Part], trees: dict[int, ops.Bvh]) -> int:
    """The smallest solid part that holds a cavity; ``solids`` ascend by volume."""
    low, high = cavity.bounds
    corners = cavity.vertices[cavity.faces]
    # Just off the cavity's faces, on the side of the material around it.
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    largest = int(cross.norm(dim=1).argmax())
    normal = torch.nn.functional.normalize(cross[largest], dim=0, eps=1e-300)
    point = corners[largest].mean(0) - 1e-6 * float((high - low).max()) * normal
    for number, solid in enumerate(solids):
        solid_low, solid_high = solid.bounds
        if -cavity.volume > solid.volume or bool((low < solid_low).any() | (high > solid_high).any()):
            continue
        if number not in trees:
            trees[number] = ops.build_bvh(solid.vertices, solid.faces)
        if float(ops.winding_number(point[None], trees[number])[0]) > 0.5:
            return number
    raise UnionError("a part is inside out and lies in no other")


def has_manifold3d() -> bool:
    """Whether the union can be tried at all."""
    return importlib.util.find_spec("manifold3d") is not None
