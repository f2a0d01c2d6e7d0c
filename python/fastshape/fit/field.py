"""A surface as parameters on sparse voxels: what FlexiCubes needs on each voxel and each of their corners.

Voxels are cubes of a lattice of R a side in [-0.5, 0.5]^3, coordinates (N, 3) int32 in [0, R). Only those
near the surface exist; their corners are shared. Distances are in voxels, 1 / R of the cube.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastshape import ops
from fastshape.geometry import Mesh
from fastshape.geometry.distance import DistanceField
from fastshape.geometry.narrow_band import Lattice, find, narrow_band

NUM_WEIGHTS = 21  # 12 beta, 8 alpha, 1 gamma, as TripoSF's and TRELLIS' heads have them
_CHUNK = 1 << 20


class Surface(NamedTuple):
    """What a field extracts: vertices in [-0.5, 0.5]^3, triangles, and FlexiCubes' deviations."""

    vertices: Tensor  # (V, 3)
    faces: Tensor  # (F, 3)
    deviation: Tensor  # (E,)


class Values(NamedTuple):
    """What a field's parameters say of a part."""

    distances: Tensor  # (p,) in voxels, negative inside
    shifts: Tensor  # (p, 3), before the tanh
    weights: Tensor  # (n, 21), before the activation


class Part(NamedTuple):
    """Some voxels of a field, with their own numbering of corners."""

    rows: Tensor  # (n,) rows of the field's voxels
    corners: ops.VoxelCorners  # p of them; `cubes` (n, 8) counts them
    corner_rows: Tensor  # (p,) rows of the field's corners


def voxels_near(bvh: ops.Bvh, resolution: int, distance: float = 1.3) -> Tensor:
    """The voxels whose centers lie within a distance of a mesh, (N, 3) int32, in order.

    Args:
        bvh: of a mesh in [-0.5, 0.5]^3, float32.
        resolution: R.
        distance: in voxels; above half the diagonal no voxel that holds a piece of the surface is missed, and
            what is more is room to move in: without, fitting tears holes where the surface leaves its voxels.
    """
    centers = Lattice(resolution - 1, bound=0.5 - 0.5 / resolution)
    indices, _ = narrow_band(centers, bvh, distance / resolution)
    return centers.coords(indices).to(torch.int32)


class SignedDistance:
    """Signed distances to a mesh, negative inside; of an open mesh, negative behind its faces.

    Args:
        mesh: in [-0.5, 0.5]^3.
        closed: whether the inside is that of a solid; None: whether the mesh is watertight.
    """

    def __init__(self, mesh: Mesh, *, closed: bool | None = None) -> None:
        self.closed = mesh.is_watertight if closed is None else closed
        self._field = DistanceField(mesh, dtype=torch.float32)
        self._normals = _corner_pseudonormals(mesh).float()  # (F, 7, 3)

    @property
    def bvh(self) -> ops.Bvh:
        return self._field.bvh

    def __call__(self, points: Tensor) -> Tensor:
        return torch.cat([self._of(part.contiguous()) for part in points.split(_CHUNK)])

    def _of(self, points: Tensor) -> Tensor:
        if self.closed:
            return self._field(points)
        closest = ops.closest_point(points, self.bvh)
        # Which of the face, its edges and its vertices the closest point lies on: bit k if weight k is not 0.
        on = (closest.barycentric > 1e-6).long() @ torch.tensor([1, 2, 4])
        normals = self._normals[closest.face, on - 1]
        behind = ((points - closest.point) * normals).sum(1) < 0
        return torch.where(behind, -closest.distance, closest.distance)


def _corner_pseudonormals(mesh: Mesh) -> Tensor:
    """The normals that tell before from behind, (F, 7, 3) float64: entry b - 1 for the vertices in bits b.

    Those of a vertex are weighted by angle, an edge has the sum of its faces' (Baerentzen and Aanaes 2005,
    "Signed distance computation using the angle weighted pseudonormal").
    """
    faces = mesh.faces
    points = mesh.vertices.double()[faces]  # (F, 3, 3)
    normals = mesh.face_normals.double()
    ahead = nn.functional.normalize(points.roll(-1, 1) - points, dim=2)
    behind = nn.functional.normalize(points.roll(1, 1) - points, dim=2)
    angles = (ahead * behind).sum(2).clamp(-1, 1).acos()
    of_vertices = torch.zeros(len(mesh.vertices), 3, dtype=torch.float64)
    of_vertices.index_add_(0, faces.flatten(), (angles[:, :, None] * normals[:, None]).flatten(0, 1))
    result = normals[:, None].repeat(1, 7, 1)
    for k in range(3):
        result[:, (1 << k) - 1] = of_vertices[faces[:, k]]
    edges = torch.stack([faces, faces.roll(-1, 1)], 2).sort(2).values  # (F, 3, 2): edge k is k, k + 1
    keys, index = (edges[..., 0] * len(mesh.vertices) + edges[..., 1]).unique(return_inverse=True)
    of_edges = torch.zeros(len(keys), 3, dtype=torch.float64)
    of_edges.index_add_(0, index.flatten(), normals[:, None].expand(-1, 3, -1).flatten(0, 1))
    for k in range(3):
        result[:, (1 << k | 1 << (k + 1) % 3) - 1] = of_edges[index[:, k]]
    return result


class SurfaceField(nn.Module):
    """Values, shifts and weights of FlexiCubes on sparse voxels.

    Gradients of both parameters are sparse: a step over some of the voxels costs nothing for the others
    (`torch.optim.SparseAdam`).

    Args:
        coords: (N, 3) int32, each voxel once.
        resolution: R.

    Attributes:
        corners: of the voxels; P of them.
        corner_values: parameter (P, 4): the distance in voxels, and three shifts, half a voxel times a tanh.
        weights: parameter (N, 21), before the activation: beta (12), alpha (8), gamma.
    """

    def __init__(self, coords: Tensor, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.coords = coords
        self.corners = ops.voxel_corners(coords, resolution=resolution)
        device = coords.device
        self.corner_values = nn.Parameter(torch.zeros(len(self.corners.coords), 4, device=device))
        self.weights = nn.Parameter(torch.zeros(len(coords), NUM_WEIGHTS, device=device))

    @property
    def num_voxels(self) -> int:
        return len(self.coords)

    def corner_points(self) -> Tensor:
        """Where the corners are without shift, (P, 3) float32."""
        return self.corners.coords / self.resolution - 0.5

    def part(self, rows: Tensor) -> Part:
        """Some of the voxels, with the corners that they have."""
        corners = ops.voxel_corners(self.coords[rows], resolution=self.resolution)
        place = torch.empty(len(corners.coords), dtype=torch.int64, device=rows.device)
        place[corners.cubes.flatten()] = self.corners.cubes[rows].flatten()
        return Part(rows, corners, place)

    def whole(self) -> Part:
        """All of the voxels."""
        device = self.coords.device
        return Part(
            torch.arange(self.num_voxels, device=device),
            self.corners,
            torch.arange(len(self.corners.coords), device=device),
        )

    def values(self, part: Part) -> Values:
        """What the parameters say of a part."""
        corners = nn.functional.embedding(part.corner_rows, self.corner_values, sparse=True)
        return Values(
            corners[:, 0].contiguous(),
            corners[:, 1:],
            nn.functional.embedding(part.rows, self.weights, sparse=True),
        )

    def surface(self, part: Part, values: Values, *, training: bool) -> Surface:
        """The part's surface; `training`: with four triangles a quad, and differentiable in `values`."""
        lattice = part.corners.coords / self.resolution - 0.5
        positions = lattice + (0.5 / self.resolution) * values.shifts.tanh()
        beta, alpha, gamma = values.weights.split([12, 8, 1], 1)
        found = ops.flexicubes(
            values.distances,
            cubes=part.corners.cubes,
            positions=positions,
            beta=beta.contiguous(),
            alpha=alpha.contiguous(),
            gamma=gamma[:, 0].contiguous(),
            training=training,
        )
        return Surface(found.vertices, found.faces, found.deviation)

    @torch.no_grad()
    def mesh(self) -> Mesh:
        """The whole surface, in [-0.5, 0.5]^3."""
        whole = self.whole()
        surface = self.surface(whole, self.values(whole), training=False)
        return Mesh(surface.vertices.cpu(), surface.faces.cpu())

    @torch.no_grad()
    def refined(self, coords: Tensor) -> SurfaceField:
        """The same surface at twice the resolution.

        Args:
            coords: (n, 3) int32 voxels of the finer lattice, each in one of this one's.

        Raises:
            ValueError: a voxel that is in none.
        """
        finer = SurfaceField(coords, 2 * self.resolution)
        parents = self._rows(coords // 2)
        if bool((parents < 0).any()):
            raise ValueError("`coords` must lie in the voxels of the coarser field")
        # One of the voxels that have a corner says what is there: all of them agree.
        flat = finer.corners.cubes.flatten()
        owner = torch.full_like(finer.corners.keys, flat.numel())
        owner.scatter_reduce_(0, flat, torch.arange(flat.numel(), device=flat.device), "amin")
        voxel, corner = owner // 8, owner % 8
        steps = torch.stack([corner & 1, corner >> 1 & 1, corner >> 2], 1)
        place = (coords[voxel] % 2 + steps) / 2  # in the parent, each 0, 0.5 or 1
        result = torch.zeros_like(finer.corner_values)
        coarse = torch.cat([self.corner_values[:, :1], self.corner_values[:, 1:].tanh()], 1)
        for i in range(8):
            bits = torch.tensor([i & 1, i >> 1 & 1, i >> 2], device=place.device)
            share = torch.where(bits == 1, place, 1 - place).prod(1, keepdim=True)
            result += share * coarse[self.corners.cubes[parents[voxel], i]]
        result *= 2  # the unit of both is half as long
        result[:, 1:] = result[:, 1:].clamp(-0.95, 0.95).atanh()
        finer.corner_values.copy_(result)
        return finer

    def _rows(self, coords: Tensor) -> Tensor:
        """The rows of voxels, -1 for those that do not exist."""
        size = self.resolution
        keys, order = _flat(self.coords, size).sort()
        at, there = find(keys, _flat(coords, size))
        return torch.where(there, order[at], -1)


def _flat(coords: Tensor, size: int) -> Tensor:
    x, y, z = coords.long().unbind(1)
    return (x * size + y) * size + z
