"""Signed distance to a mesh: the distance and the sign apart."""

from __future__ import annotations

from functools import cached_property
from typing import Literal, Protocol, overload

import torch
from torch import Tensor

from fastshape import ops
from fastshape.geometry.orientation import closing_faces, oriented_faces
from fastshape.geometry.pseudonormals import behind, pseudonormals

Sign = Literal["auto", "winding", "parity", "front"]
SIGNS: tuple[Sign, ...] = ("auto", "winding", "parity", "front")

_RAYS = 3
_CAP_SHARE = 64  # a mesh is left as it is whose holes take more than one face in 64 to close


class _HasFaces(Protocol):
    @property
    def vertices(self) -> Tensor: ...

    @property
    def faces(self) -> Tensor: ...


class DistanceField:
    """Distances to one mesh, whose hierarchy is built once; see :func:`signed_distance`.

    Args:
        mesh: anything with ``vertices`` (V, 3) and ``faces`` (F, 3).
        sign: "auto", "winding", "parity" or "front".
        dtype: of the points to come; None: that of the vertices.
        device: of the points to come; None: that of the vertices.

    Raises:
        ValueError: no faces, or an unknown ``sign``.
    """

    def __init__(
        self,
        mesh: _HasFaces,
        *,
        sign: Sign = "auto",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if sign not in SIGNS:
            raise ValueError(f'`sign` must be "auto", "winding", "parity" or "front", got {sign!r}')
        vertices, faces = mesh.vertices, mesh.faces
        if not len(faces):
            raise ValueError("the distance to a mesh without faces is not defined")
        if sign == "auto":
            faces = oriented_faces(vertices.detach(), faces)
        self.sign = sign
        self._vertices = vertices.to(device=device, dtype=dtype).contiguous()
        self._faces = faces.to(device).contiguous()
        self.bvh = ops.build_bvh(self._vertices, self._faces)

    @cached_property
    def _caps(self) -> tuple[ops.Bvh, ops.Bvh | None] | None:
        """The mesh with its holes closed, and what closes them; None where that is too much.

        The winding number of the first is whole, and a ray counts it; less that of the second it is the
        mesh's own. For a mesh with small holes or none this is several times faster than its winding number.
        """
        vertices, caps = closing_faces(self._vertices.detach(), self._faces)
        if len(caps) * _CAP_SHARE > len(self._faces):
            return None
        if not len(caps):
            return self.bvh, None
        return ops.build_bvh(vertices, torch.cat([self._faces, caps])), ops.build_bvh(vertices, caps)

    @cached_property
    def _normals(self) -> Tensor:
        return pseudonormals(self._vertices.detach(), self._faces).to(self._vertices.dtype)

    def winding(self, points: Tensor) -> Tensor:
        """How often the mesh winds about each point, (Q,): a whole number where it has no holes."""
        if self._caps is None:
            return ops.winding_number(points, self.bvh)
        whole, caps = self._caps
        crossings = ops.ray_crossings(points, whole).to(points.dtype)
        return crossings if caps is None else crossings - ops.winding_number(points, caps)

    def unsigned(self, points: Tensor) -> Tensor:
        """Distance to the mesh, (Q,)."""
        return ops.closest_point(points, self.bvh).distance

    def inside(self, points: Tensor) -> Tensor:
        """Whether each point lies inside by the field's rule, (Q,) bool; False for points that are not
        finite."""
        if self.sign == "front":
            return behind(points, ops.closest_point(points, self.bvh), self._normals)
        if self.sign == "parity":
            return ops.ray_parity(points, self.bvh, num_rays=_RAYS) * 2 > _RAYS
        return self._inside(self.winding(points))

    def _inside(self, winding: Tensor) -> Tensor:
        return winding > 0.5 if self.sign == "auto" else winding.abs() > 0.5

    def __call__(self, points: Tensor) -> Tensor:
        """Signed distance, (Q,), negative inside."""
        closest = ops.closest_point(points, self.bvh)
        if self.sign == "front":
            inside = behind(points, closest, self._normals)
        else:
            inside = self.inside(points)
        return torch.where(inside, -closest.distance, closest.distance)

    def doubt(self, points: Tensor) -> Tensor:
        """Whether each point's sign is in doubt, (Q,) bool: winding and parity differ, or the winding
        number lies between 0.2 and 0.8 or between -0.8 and -0.2."""
        winding = self.winding(points)
        parity = ops.ray_parity(points, self.bvh, num_rays=_RAYS) * 2 > _RAYS
        size = winding.abs()
        return (self._inside(winding) != parity) | ((size > 0.2) & (size < 0.8))


@overload
def signed_distance(
    mesh: _HasFaces, points: Tensor, *, sign: Sign = ..., return_quality: Literal[False] = ...
) -> Tensor: ...
@overload
def signed_distance(
    mesh: _HasFaces, points: Tensor, *, sign: Sign = ..., return_quality: Literal[True]
) -> tuple[Tensor, float]: ...
def signed_distance(
    mesh: _HasFaces, points: Tensor, *, sign: Sign = "auto", return_quality: bool = False
) -> Tensor | tuple[Tensor, float]:
    """The distance of each point to a mesh, negative inside.

    The absolute value is the exact distance to the nearest face, whatever the state of the mesh. The sign
    follows one rule:

    - "auto": the winding number exceeds 0.5, after the faces have been turned consistently within each
      connected component, and outwards (see :func:`fastshape.geometry.orientation.oriented_faces`). Holes
      are closed as a soap film would, parts that overlap count as their union, cavities stay cavities, and
      faces that are turned the wrong way, some or all, do no harm.
    - "winding": the winding number of the faces as they are exceeds 0.5 in absolute value.
    - "parity": two of three rays meet the mesh an odd number of times. Blind to how the faces are turned, but
      overlapping parts carve each other and rays escape through holes.
    - "front": the closest point of the mesh is seen from behind (see
      :mod:`fastshape.geometry.pseudonormals`). The rule for open surfaces, which have two sides and no
      inside; it takes the faces as they are.

    Args:
        mesh: anything with ``vertices`` (V, 3) and ``faces`` (F, 3), :class:`Mesh` say; moved to the
            points' dtype and device.
        points: (Q, 3), float32 or float64, contiguous.
        sign: the rule.
        return_quality: also return the share of points whose sign is in doubt: winding number and parity
            differ, or the winding number's absolute value lies between 0.2 and 0.8. Above 0.01 the mesh has
            no clear inside.

    Returns:
        (Q,), dtype of ``points``; NaN for points that are not finite. With ``return_quality`` a pair.

    Raises:
        ValueError: a mesh without faces, an unknown ``sign``, wrong shapes.
        TypeError: wrong dtype.

    Gradient: of the distance, with the sign held, with respect to the points and the mesh's vertices.

    Device: that of ``points``; the faces are turned on the mesh's device.

    Reference: Barill et al. 2018 for the winding number. libigl's fast winding number rule returns the
    distance times 1 - 2 |w|, which is no distance near holes and doubled faces; here the two stay apart.
    """
    field = DistanceField(mesh, sign=sign, dtype=points.dtype, device=points.device)
    distance = field(points)
    if not return_quality:
        return distance
    return distance, float(field.doubt(points).double().mean()) if len(points) else 0.0
