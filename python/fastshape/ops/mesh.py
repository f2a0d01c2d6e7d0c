"""Queries on triangle meshes, over a bounding volume hierarchy that is built once a mesh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastshape._library import backend, define

_WIDTH = 8  # kBvhWidth in csrc/geometry/bvh.h


@dataclass(frozen=True)
class Bvh:
    """A mesh and its bounding volume hierarchy, made by :func:`build_bvh`. All tensors lie on one device.

    Attributes:
        vertices: (V, 3), as given to ``build_bvh``, with its gradient history.
        faces: (F, 3) int64.
        boxes: (nodes, 6, 8), the boxes of each node's eight children.
        first_child: (nodes,) int32.
        triangles: (blocks, 9, 8), the corners of eight faces.
        face_index: (blocks, 8) int32, which faces they are; -1 where there is none.
    """

    vertices: Tensor
    faces: Tensor
    boxes: Tensor
    first_child: Tensor
    triangles: Tensor
    face_index: Tensor


class ClosestPoint(NamedTuple):
    """What :func:`closest_point` found."""

    distance: Tensor
    face: Tensor
    barycentric: Tensor
    point: Tensor


# ---- build_bvh ---------------------------------------------------------------------------------------------


def _bvh_sizes(num_faces: int) -> tuple[int, int]:
    num_blocks = (num_faces + _WIDTH - 1) // _WIDTH
    num_nodes, count = 0, num_blocks
    while True:
        count = (count + _WIDTH - 1) // _WIDTH
        num_nodes += count
        if count <= 1:
            return num_nodes, num_blocks


def _new_bvh(vertices: Tensor, faces: Tensor, morton_order: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_nodes, num_blocks = _bvh_sizes(faces.shape[0] if faces.ndim else 0)
    return (
        vertices.new_empty(num_nodes, 6, _WIDTH),
        vertices.new_empty(num_nodes, dtype=torch.int32),
        vertices.new_empty(num_blocks, 9, _WIDTH),
        vertices.new_empty(num_blocks, _WIDTH, dtype=torch.int32),
    )


def _build_bvh(vertices: Tensor, faces: Tensor, morton_order: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arrays = _new_bvh(vertices, faces, morton_order)
    backend().build_bvh(vertices, faces, morton_order, *arrays)
    return arrays


_build_bvh_op = define(
    "build_bvh(Tensor vertices, Tensor faces, bool morton_order) -> (Tensor, Tensor, Tensor, Tensor)",
    implementation=_build_bvh,
    fake=_new_bvh,
)


def build_bvh(vertices: Tensor, faces: Tensor) -> Bvh:
    """Builds the bounding volume hierarchy that the mesh queries search.

    The hierarchy is eight wide and implicit: its sizes follow from the number of faces. On the CPU the
    faces are split over the longest side of their centers' box, on the GPU they lie along a Morton curve.
    No query's answer depends on that, but for the rounding of :func:`winding_number`.

    A face with a vertex that is not finite takes no part in any query. Degenerate faces (segments, points)
    and duplicates do.

    Args:
        vertices: (V, 3), float32 or float64, contiguous.
        faces: (F, 3), int64, contiguous, on the same device; rows of ``vertices``. 1 <= F < 2^31.

    Returns:
        A :class:`Bvh`, which keeps both arguments.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, no faces, another device, not contiguous; on the CPU also an index outside
            ``vertices`` (on CUDA that would need a sync: there such a face takes no part).

    Gradient: none; distances are differentiated through ``bvh.vertices``.

    Device: CPU and CUDA; deterministic; no sync. About 60 bytes a face.

    Reference: the Morton order is Lauterbach et al. 2009, "Fast BVH Construction on GPUs"; packing sorted
    items into a complete tree is Kamel and Faloutsos 1993, "On packing R-trees". We split top down on the
    CPU.
    """
    arrays = _build_bvh_op(vertices.detach(), faces, False)
    return Bvh(vertices, faces, *arrays)


# ---- closest_point -----------------------------------------------------------------------------------------


def _new_closest_point(
    points: Tensor, boxes: Tensor, first_child: Tensor, triangles: Tensor, face_index: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = points.shape[:1]
    return (
        points.new_empty(rows),
        points.new_empty(rows, dtype=torch.int64),
        points.new_empty((*rows, 3)),
        points.new_empty((*rows, 3)),
    )


def _closest_point(
    points: Tensor, boxes: Tensor, first_child: Tensor, triangles: Tensor, face_index: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _new_closest_point(points, boxes, first_child, triangles, face_index)
    backend().closest_point(points, boxes, first_child, triangles, face_index, *outputs)
    return outputs


_closest_point_op = define(
    "closest_point(Tensor points, Tensor boxes, Tensor first_child, Tensor triangles, Tensor face_index)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    implementation=_closest_point,
    fake=_new_closest_point,
)


def _new_closest_point_backward(
    grad_distance: Tensor, points: Tensor, vertices: Tensor, faces: Tensor, face: Tensor, barycentric: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(points), torch.empty_like(vertices)


def _closest_point_backward(
    grad_distance: Tensor, points: Tensor, vertices: Tensor, faces: Tensor, face: Tensor, barycentric: Tensor
) -> tuple[Tensor, Tensor]:
    outputs = _new_closest_point_backward(grad_distance, points, vertices, faces, face, barycentric)
    backend().closest_point_backward(grad_distance, points, vertices, faces, face, barycentric, *outputs)
    return outputs


_closest_point_backward_op = define(
    "closest_point_backward(Tensor grad_distance, Tensor points, Tensor vertices, Tensor faces, Tensor face,"
    " Tensor barycentric) -> (Tensor, Tensor)",
    implementation=_closest_point_backward,
    fake=_new_closest_point_backward,
)


class _ClosestPoint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        vertices: Tensor,
        faces: Tensor,
        boxes: Tensor,
        first_child: Tensor,
        triangles: Tensor,
        face_index: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        distance, face, barycentric, point = _closest_point_op(
            points, boxes, first_child, triangles, face_index
        )
        ctx.save_for_backward(points, vertices, faces, face, barycentric)
        ctx.mark_non_differentiable(face, barycentric, point)
        return distance, face, barycentric, point

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_distance: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        points, vertices, faces, face, barycentric = ctx.saved_tensors
        grad_points, grad_vertices = _closest_point_backward_op(
            grad_distance.contiguous(), points, vertices, faces, face, barycentric
        )
        return grad_points, grad_vertices, None, None, None, None, None


def closest_point(points: Tensor, bvh: Bvh) -> ClosestPoint:
    """The closest point of a mesh to each of ``points``, with its unsigned distance.

    The face is the one whose rounded squared distance, in the precision of the mesh, is smallest; ties go
    to the lowest face index. So the answer depends neither on the hierarchy nor on the other points. Around
    a vertex all faces tie, to the bit; along an edge its two faces differ by rounding. A point with a
    coordinate that is not finite gets distance NaN and face -1; a point whose squared distance to every
    face overflows, or a mesh without a finite face, distance inf and face -1. In both cases ``barycentric``
    and ``point`` are NaN.

    Args:
        points: (Q, 3), dtype and device of the mesh, contiguous. Q may be 0; below 2^32 on the CPU.
        bvh: of :func:`build_bvh`.

    Returns:
        ``distance`` (Q,) in the unit of the mesh, ``face`` (Q,) int64, ``barycentric`` (Q, 3) (not
        negative, the weights of the face's three vertices) and ``point`` (Q, 3).

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous.

    Gradient: of ``distance`` with respect to ``points`` and ``bvh.vertices``, once; zero where the distance
    is zero. ``barycentric`` and ``point`` carry none: ``(bvh.vertices[bvh.faces[face]] * barycentric[...,
    None]) .sum(1)`` is the closest point, held in place on its face.

    Device: CPU and CUDA with equal results, forward and backward; no sync.

    Reference: Ericson 2005, "Real-Time Collision Detection", 5.1.5; we try the edges first and the plane
    last, so that slivers cannot mislead the search. The gradient is the envelope theorem's.
    """
    arrays = (bvh.boxes, bvh.first_child, bvh.triangles, bvh.face_index)
    if torch.is_grad_enabled() and (points.requires_grad or bvh.vertices.requires_grad):
        return ClosestPoint(*_ClosestPoint.apply(points, bvh.vertices, bvh.faces, *arrays))
    return ClosestPoint(*_closest_point_op(points, *arrays))
