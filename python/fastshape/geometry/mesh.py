"""The triangle mesh that every part of the library passes around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastshape.geometry.points import PointCloud


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh on the CPU.

    Args:
        vertices: positions, (V, 3), float32 or float64, finite; copied where they are not contiguous.
        faces: vertex indices of the triangles, (F, 3), int64, counter-clockwise seen from outside; likewise.
        notes: what a reader had to repair, in words, e.g. "3 degenerate faces dropped".

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: wrong shape, a vertex that is not finite, or a face index out of range.
    """

    vertices: Tensor
    faces: Tensor
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, tensor in (("vertices", self.vertices), ("faces", self.faces)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"`{name}` must be a torch.Tensor, got {type(tensor).__name__}")
            if tensor.device.type != "cpu":
                raise ValueError(f"`{name}` must be on the CPU, got {tensor.device}")
            if tensor.dim() != 2 or tensor.shape[1] != 3:
                letter = name[0].upper()
                raise ValueError(f"`{name}` must have shape ({letter}, 3), got {tuple(tensor.shape)}")
        if self.vertices.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"`vertices` must be float32 or float64, got {self.vertices.dtype}")
        if self.faces.dtype != torch.int64:
            raise TypeError(f"`faces` must be int64, got {self.faces.dtype}")
        if not bool(torch.isfinite(self.vertices).all()):
            count = int((~torch.isfinite(self.vertices)).any(1).sum())
            raise ValueError(f"`vertices` has {count} rows that are not finite")
        if self.faces.numel():
            low, high = self.faces.aminmax()
            if int(low) < 0 or int(high) >= len(self.vertices):
                wrong = ((self.faces < 0) | (self.faces >= len(self.vertices))).any(1)
                face = int(wrong.nonzero()[0])
                raise ValueError(
                    f"face {face} is {self.faces[face].tolist()}, but there are {len(self.vertices)} vertices"
                )
        for name in ("vertices", "faces"):  # the kernels read rows
            object.__setattr__(self, name, getattr(self, name).contiguous())

    def __repr__(self) -> str:
        return f"Mesh({self.num_vertices} vertices, {self.num_faces} faces)"

    @property
    def num_vertices(self) -> int:
        return len(self.vertices)

    @property
    def num_faces(self) -> int:
        return len(self.faces)

    @cached_property
    def _used(self) -> Tensor | None:
        """(V,) bool, whether a face uses the vertex; None where all count: all are used, or no face is."""
        used = torch.zeros(self.num_vertices, dtype=torch.bool)
        used[self.faces.reshape(-1)] = True
        return None if not self.num_faces or bool(used.all()) else used

    @property
    def used_vertices(self) -> Tensor:
        """The vertices that faces use, (U, 3), in their order; without faces all of them."""
        return self.vertices if self._used is None else self.vertices[self._used]

    @cached_property
    def bounds(self) -> Tensor:
        """Lowest and highest corner of the bounding box of `used_vertices`, (2, 3)."""
        if not self.num_vertices:
            raise ValueError("a mesh without vertices has no bounds")
        points = self.used_vertices
        return torch.stack([points.amin(0), points.amax(0)])

    @cached_property
    def triangles(self) -> Tensor:
        """Corner positions, (F, 3, 3)."""
        return self.vertices[self.faces]

    @cached_property
    def _face_cross(self) -> Tensor:
        corners = self.triangles.double()
        a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        # Not by torch.linalg.cross, which rounds differently on different processors.
        turned = a.roll(-1, 1) * b.roll(-2, 1)
        return turned.sub_(a.roll(-2, 1) * b.roll(-1, 1))

    @cached_property
    def face_areas(self) -> Tensor:
        """(F,) float64."""
        return 0.5 * self._face_cross.norm(dim=1)

    @cached_property
    def face_normals(self) -> Tensor:
        """Unit normals, (F, 3), in the vertices' dtype; zero where a face has no area."""
        return torch.nn.functional.normalize(self._face_cross, dim=1, eps=1e-300).to(self.vertices.dtype)

    @cached_property
    def vertex_normals(self) -> Tensor:
        """Area-weighted unit normals, (V, 3), in the vertices' dtype; zero for unused vertices."""
        total = torch.zeros(self.num_vertices, 3, dtype=torch.float64)
        for corner in range(3):
            total.index_add_(0, self.faces[:, corner], self._face_cross)
        return torch.nn.functional.normalize(total, dim=1, eps=1e-300).to(self.vertices.dtype)

    @cached_property
    def area(self) -> float:
        """Sum of the triangles' areas."""
        return float(self.face_areas.sum())

    @cached_property
    def volume(self) -> float:
        """Signed volume by the divergence theorem: positive for outward faces; meaningful when closed."""
        if not self.num_faces:
            return 0.0
        corners = self.triangles.double() - self.bounds.double().mean(0)
        return float((corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum() / 6)

    @cached_property
    def is_watertight(self) -> bool:
        """Whether every edge is met by exactly two faces that run through it in opposite directions."""
        if not self.num_faces:
            return False
        directed = torch.cat([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]])
        forward = directed[:, 0] * self.num_vertices + directed[:, 1]
        backward = directed[:, 1] * self.num_vertices + directed[:, 0]
        forward = forward.sort().values
        return bool((forward.diff() != 0).all()) and torch.equal(forward, backward.sort().values)

    def compact(self) -> Mesh:
        """The mesh without the vertices that no face uses; one without faces as it is."""
        if self._used is None:
            return self
        return replace(self, vertices=self.used_vertices, faces=(self._used.cumsum(0) - 1)[self.faces])

    def to(self, dtype: torch.dtype) -> Mesh:
        """The same mesh with vertices of `dtype` (float32 or float64)."""
        return replace(self, vertices=self.vertices.to(dtype))

    def transform(self, matrix: Tensor) -> Mesh:
        """The mesh moved by a (4, 4) affine matrix, computed in float64; a mirror turns the faces over.

        Raises:
            ValueError: wrong shape, or a matrix that flattens the mesh (determinant 0).
        """
        if tuple(matrix.shape) != (4, 4):
            raise ValueError(f"`matrix` must have shape (4, 4), got {tuple(matrix.shape)}")
        matrix = matrix.detach().double().cpu()
        determinant = float(torch.linalg.det(matrix[:3, :3]))
        if determinant == 0:
            raise ValueError("`matrix` has determinant 0 and would flatten the mesh")
        moved = self.vertices.double() @ matrix[:3, :3].T + matrix[:3, 3]
        mesh = replace(self, vertices=moved.to(self.vertices.dtype))
        return mesh.flip() if determinant < 0 else mesh

    def flip(self) -> Mesh:
        """The mesh with every face turned over."""
        return replace(self, faces=self.faces.flip(1))

    @staticmethod
    def join(meshes: Sequence[Mesh]) -> Mesh:
        """The meshes as one, in order; nothing is merged."""
        if not meshes:
            raise ValueError("`meshes` is empty")
        dtype = torch.float64 if any(m.vertices.dtype == torch.float64 for m in meshes) else torch.float32
        offset, faces = 0, []
        for mesh in meshes:
            faces.append(mesh.faces + offset)
            offset += mesh.num_vertices
        notes = tuple(note for mesh in meshes for note in mesh.notes)
        return Mesh(torch.cat([mesh.vertices.to(dtype) for mesh in meshes]), torch.cat(faces), notes)


@dataclass(frozen=True)
class Normalization:
    """The map `(x - center) * scale` from a mesh's own frame to the normalized cube, and its way back."""

    center: tuple[float, float, float]
    scale: float

    @staticmethod
    def of_points(
        points: Tensor, extent: float = 1.0, fit: Literal["box", "sphere"] = "box"
    ) -> Normalization:
        """The map that centers the bounding box of points (N, 3) and scales them; see :func:`normalize`.

        Raises:
            ValueError: all points are equal, or an unknown `fit`.
        """
        if fit not in ("box", "sphere"):
            raise ValueError(f'`fit` must be "box" or "sphere", got {fit!r}')
        points = points.double()
        low, high = points.amin(0), points.amax(0)
        middle = low + (high - low) / 2
        half = float((high - low).max() / 2 if fit == "box" else (points - middle).norm(dim=1).max())
        if not half > 0:
            raise ValueError("all points of the mesh are equal: it has no size to normalize")
        x, y, z = middle.tolist()
        return Normalization((x, y, z), extent / half)

    def apply(self, points: Tensor) -> Tensor:
        """Points (..., 3) of the mesh's own frame in the cube, computed in float64, dtype kept."""
        center = torch.tensor(self.center, dtype=torch.float64)
        return ((points.double() - center) * self.scale).to(points.dtype)

    def undo(self, points: Tensor) -> Tensor:
        """Points (..., 3) of the cube in the mesh's own frame, computed in float64, dtype kept."""
        center = torch.tensor(self.center, dtype=torch.float64)
        return (points.double() / self.scale + center).to(points.dtype)

    def apply_mesh(self, mesh: Mesh, dtype: torch.dtype = torch.float32) -> Mesh:
        """`mesh` in the cube; centered before the cast, so that a small mesh far away keeps its detail."""
        return replace(mesh, vertices=self.apply(mesh.vertices.double()).to(dtype))

    def undo_mesh(self, mesh: Mesh) -> Mesh:
        """`mesh` back in its own frame, in float64."""
        return replace(mesh, vertices=self.undo(mesh.vertices.double()))


@overload
def normalize(
    mesh: Mesh, *, extent: float = ..., fit: Literal["box", "sphere"] = ..., dtype: torch.dtype = ...
) -> tuple[Mesh, Normalization]: ...
@overload
def normalize(
    mesh: PointCloud, *, extent: float = ..., fit: Literal["box", "sphere"] = ..., dtype: torch.dtype = ...
) -> tuple[PointCloud, Normalization]: ...
def normalize(
    mesh: Mesh | PointCloud,
    *,
    extent: float = 1.0,
    fit: Literal["box", "sphere"] = "box",
    dtype: torch.dtype = torch.float32,
) -> tuple[Mesh | PointCloud, Normalization]:
    """Center the bounding box of a mesh or point cloud at the origin and scale it to a cube or a ball.

    Unused vertices do not count: only vertices of faces make the box.

    Args:
        mesh: any mesh with a surface, or a point cloud.
        extent: largest absolute coordinate of the result, or largest distance from the origin.
        fit: "box" scales the longest side of the bounding box to `2 * extent`, "sphere" the point that is
            farthest from the box's center to `extent`.
        dtype: dtype of the result; the arithmetic is float64.

    Returns:
        The mesh or cloud in [-extent, extent]^3 or the ball, and the `Normalization` that leads back.

    Raises:
        ValueError: no faces, all points equal, or an unknown `fit`.
    """
    if not isinstance(mesh, Mesh):
        return mesh.normalize(extent=extent, fit=fit, dtype=dtype)
    if not mesh.num_faces:
        raise ValueError("a mesh without faces cannot be normalized")
    normalization = Normalization.of_points(mesh.used_vertices, extent, fit)
    return normalization.apply_mesh(mesh, dtype), normalization
