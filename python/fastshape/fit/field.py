"""A surface as parameters on sparse voxels: what FlexiCubes needs on each voxel and each of their corners.

Voxels are cubes of a lattice of R a side in [-0.5, 0.5]^3, coordinates (N, 3) int32 in [0, R). Only those
near the surface exist; their corners are shared. Distances are in voxels, 1 / R of the cube.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from fastshape import ops
from fastshape.geometry import Mesh
from fastshape.geometry.narrow_band import Lattice, find, narrow_band

NUM_WEIGHTS = 21  # 12 beta, 8 alpha, 1 gamma, as TripoSF's and TRELLIS' heads have them


class Surface(NamedTuple):
    """What a field extracts: vertices in [-0.5, 0.5]^3, triangles, and FlexiCubes' deviations."""

    vertices: Tensor  # (V, 3)
    faces: Tensor  # (F, 3)
    deviation: Tensor  # (E,)


class Values(NamedTuple):
    """What a field's parameters say of a part: copies, to be differentiated."""

    corners: Tensor  # (p, 4): the distance in voxels, negative inside, and three shifts before the tanh
    weights: Tensor  # (n, 21), before the activation

    @property
    def distances(self) -> Tensor:
        return self.corners[:, 0]


class Part(NamedTuple):
    """Some voxels of a field, with their own numbering of corners."""

    rows: Tensor  # (n,) rows of the field's voxels, ascending
    corner_rows: Tensor  # (p,) rows of the field's corners, ascending
    cubes: Tensor  # (n, 8) the voxels' corners, 0 to p - 1
    neighbors: Tensor  # (p, 3) the next corner along each axis, -1 where it is not in the part


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


class SurfaceField:
    """Values, shifts and weights of FlexiCubes on sparse voxels.

    Args:
        coords: (N, 3) int32, each voxel once.
        resolution: R.

    Attributes:
        corners: of the voxels; P of them.
        corner_values: (P, 4): the distance in voxels, and three shifts, half a voxel times a tanh.
        weights: (N, 21), before the activation: beta (12), alpha (8), gamma.
    """

    def __init__(self, coords: Tensor, resolution: int) -> None:
        self.resolution = resolution
        self.coords = coords
        self.corners = ops.voxel_corners(coords, resolution=resolution)
        self.corner_values = torch.zeros(len(self.corners.coords), 4, device=coords.device)
        self.weights = torch.zeros(len(coords), NUM_WEIGHTS, device=coords.device)

    @property
    def num_voxels(self) -> int:
        return len(self.coords)

    def corner_points(self) -> Tensor:
        """Where the corners are without shift, (P, 3) float32."""
        return self.corners.coords / self.resolution - 0.5

    def part(self, rows: Tensor) -> Part:
        """Some of the voxels, with the corners that they have.

        Args:
            rows: (n,) int64, ascending, each once.
        """
        cubes = self.corners.cubes[rows]
        takes_part = torch.zeros(len(self.corners.keys), dtype=torch.bool, device=rows.device)
        takes_part[cubes.flatten()] = True
        corner_rows = takes_part.nonzero()[:, 0]
        place = takes_part.cumsum(0) - 1
        # The last of `place` stands for no neighbor, -1.
        place = torch.cat([torch.where(takes_part, place, -1), place.new_full((1,), -1)])
        return Part(rows, corner_rows, place[cubes], place[self._neighbors[corner_rows]])

    @cached_property
    def _neighbors(self) -> Tensor:
        return ops.corner_neighbors(self.corners)

    def whole(self) -> Part:
        """All of the voxels."""
        device = self.coords.device
        return Part(
            torch.arange(self.num_voxels, device=device),
            torch.arange(len(self.corners.keys), device=device),
            self.corners.cubes,
            self._neighbors,
        )

    def values(self, part: Part) -> Values:
        """What the parameters say of a part."""
        return Values(
            self.corner_values.index_select(0, part.corner_rows).requires_grad_(),
            self.weights.index_select(0, part.rows).requires_grad_(),
        )

    def surface(self, part: Part, values: Values, *, training: bool) -> Surface:
        """The part's surface; `training`: with four triangles a quad, and differentiable in `values`."""
        lattice = self.corners.coords.index_select(0, part.corner_rows) / self.resolution - 0.5
        distances, shifts = values.corners.split([1, 3], 1)
        positions = lattice + (0.5 / self.resolution) * shifts.tanh()
        beta, alpha, gamma = values.weights.split([12, 8, 1], 1)
        found = ops.flexicubes(
            distances[:, 0].contiguous(),
            cubes=part.cubes,
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
        inside = (self.corner_values[:, 0] < 0)[self.corners.cubes]
        # A third of the voxels, whose weights alone are copied.
        crossed = self.part((inside.any(1) & ~inside.all(1)).nonzero()[:, 0])
        surface = self.surface(crossed, self.values(crossed), training=False)
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
        parents = self.rows(coords // 2)
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

    def rows(self, coords: Tensor) -> Tensor:
        """The rows of voxels (n, 3), -1 for those that do not exist."""
        keys, order = self._sorted
        at, there = find(keys, _flat(coords, self.resolution))
        return torch.where(there, order[at], -1)

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """The voxels' numbers, ascending, and their rows."""
        found = _flat(self.coords, self.resolution).sort()
        return found.values, found.indices


def _flat(coords: Tensor, size: int) -> Tensor:
    x, y, z = coords.long().unbind(1)
    return (x * size + y) * size + z
