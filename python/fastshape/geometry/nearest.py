"""Nearest points of a point cloud, on the mesh kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastshape.ops import Bvh, build_bvh, closest_point


def point_tree(points: Tensor) -> Bvh:
    """The hierarchy over points (N, 3), float32 or float64, for `nearest_points`."""
    corners = torch.arange(len(points))[:, None].expand(-1, 3).contiguous()
    return build_bvh(points.detach().contiguous(), corners)  # every point is a face of no size


def nearest_points(points: Tensor, targets: Tensor | Bvh) -> tuple[Tensor, Tensor]:
    """The nearest target of each point.

    Candidates are compared by their squared distance as rounded in the dtype of the points, ties go to the
    lowest row; the distance to the one found is then computed in float64. So in float32 the distance exceeds
    that of the nearest by at most some 1e-7 of itself.

    Args:
        points: (N, 3), float32 or float64.
        targets: (M, 3), M >= 1, in the same dtype, or their `point_tree`.

    Returns:
        Distances (N,) float64 and rows of the targets (N,) int64.
    """
    tree = targets if isinstance(targets, Bvh) else point_tree(targets)
    found = closest_point(points.contiguous(), tree)
    offset = points.double() - tree.vertices[found.face].double()
    return offset.norm(dim=1), found.face
