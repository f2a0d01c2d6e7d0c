"""The normals that tell which side of a mesh a point is on: of its faces, edges and vertices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastshape import ops

_ON = 1e-6  # a weight below it is nothing: the closest point lies on the opposite edge


def pseudonormals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Normals of the parts of each face, of any length: entry b - 1 for that between the vertices in bits b.

    An edge has the sum of its faces' normals, a vertex their sum weighted by the angles there. Whether a
    point's offset from the closest point of the mesh goes with the normal of the part that it lies on, or
    against it, says on which side the point is; beyond the rim of an open mesh the sides are divided by what
    goes on from the rim.

    Args:
        vertices: (V, 3), float32 or float64.
        faces: (F, 3) int64, vertices below 2^31.

    Returns:
        (F, 7, 3) float64.

    Reference: Baerentzen and Aanaes 2005, "Signed Distance Computation Using the Angle Weighted
    Pseudonormal".
    """
    corners = vertices.double()[faces]  # (F, 3, 3)
    normals = normalize(
        torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), dim=1
    )
    ahead = normalize(corners.roll(-1, 1) - corners, dim=2)
    behind = normalize(corners.roll(1, 1) - corners, dim=2)
    angles = (ahead * behind).sum(2).clamp(-1, 1).acos()
    of_vertices = _sums(faces.flatten(), (angles[:, :, None] * normals[:, None]).flatten(0, 1), len(vertices))
    ends = torch.stack([faces, faces.roll(-1, 1)], 2).sort(2).values  # (F, 3, 2): edge k is k, k + 1
    keys, edges = (ends[..., 0] << 31 | ends[..., 1]).unique(return_inverse=True)
    of_edges = _sums(edges.flatten(), normals[:, None].expand(-1, 3, -1).flatten(0, 1), len(keys))
    result = normals[:, None].repeat(1, 7, 1)
    for k in range(3):
        result[:, (1 << k) - 1] = of_vertices[faces[:, k]]
        result[:, (1 << k | 1 << (k + 1) % 3) - 1] = of_edges[edges[:, k]]
    return result


def behind(points: Tensor, closest: ops.ClosestPoint, normals: Tensor) -> Tensor:
    """Whether points lie behind a mesh, (Q,) bool; False for points that are not finite.

    Args:
        points: (Q, 3).
        closest: to them.
        normals: (F, 7, 3) of :func:`pseudonormals`, in the dtype of the points.
    """
    bits = torch.tensor([1, 2, 4], device=points.device)
    part = ((closest.barycentric > _ON).long() * bits).sum(1)
    finite = part > 0  # of NaN no weight is above anything
    normal = normals[closest.face.clamp_min(0), part.clamp_min(1) - 1]
    return finite & (((points - closest.point) * normal).sum(1) < 0)


def _sums(index: Tensor, rows: Tensor, count: int) -> Tensor:
    """(count, 3): the sum of the rows of each index, in their order on every device."""
    return rows.new_zeros(count, 3).index_put_((index,), rows, accumulate=True)
