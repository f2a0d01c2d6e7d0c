"""Rigid alignment of two point clouds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastshape.geometry.nearest import nearest_points, point_tree


@dataclass(frozen=True, eq=False)
class RigidMotion:
    """The map `points @ rotation.T + translation`.

    Attributes:
        rotation: (3, 3) float64, determinant 1.
        translation: (3,) float64.
        iterations: how many steps were made.
        rms: root mean square distance of the moved points to their nearest targets, after the last step.
    """

    rotation: Tensor
    translation: Tensor
    iterations: int = 0
    rms: float = 0.0

    def apply(self, points: Tensor) -> Tensor:
        """Points (N, 3) moved, computed in float64, dtype kept."""
        return (points.double() @ self.rotation.T + self.translation).to(points.dtype)

    def rotate(self, normals: Tensor) -> Tensor:
        """Directions (N, 3) turned, computed in float64, dtype kept."""
        return (normals.double() @ self.rotation.T).to(normals.dtype)

    @property
    def degrees(self) -> float:
        """The angle of the rotation."""
        skew = self.rotation - self.rotation.T
        sine = torch.stack([skew[2, 1], skew[0, 2], skew[1, 0]]).norm() / 2
        return float(torch.rad2deg(torch.atan2(sine, (self.rotation.trace() - 1) / 2)))

    def to_dict(self) -> dict[str, Any]:
        return {
            "rotation": self.rotation.tolist(),
            "translation": self.translation.tolist(),
            "degrees": self.degrees,
            "iterations": self.iterations,
            "rms": self.rms,
        }


def best_rigid_motion(points: Tensor, targets: Tensor) -> RigidMotion:
    """The rotation and translation that bring points (N, 3) nearest to their partners, row by row.

    Reference: Kabsch 1976; the least sum of squared distances, reflections excluded.
    """
    p, q = points.double(), targets.double()
    p_mean, q_mean = p.mean(0), q.mean(0)
    u, _, vh = torch.linalg.svd((p - p_mean).T @ (q - q_mean))
    sign = torch.ones(3, dtype=torch.float64)
    sign[2] = torch.sign(torch.linalg.det(u @ vh))
    rotation = vh.T @ torch.diag(sign) @ u.T
    return RigidMotion(rotation, q_mean - p_mean @ rotation.T)


def icp(
    points: Tensor, targets: Tensor, *, max_iterations: int = 100, tolerance: float = 1e-6
) -> RigidMotion:
    """Align points rigidly to targets by iterated closest points, starting where they are.

    Each step pairs every point with its nearest target and takes the best rigid motion for those pairs, so
    the root mean square distance never grows. It ends when a step lowers that distance by less than
    `tolerance` of itself. No outliers are left out, and no scale is fitted. As every such method it finds the
    alignment nearby: from more than some 30 degrees away it may end elsewhere.

    Args:
        points: (N, 3), float32 or float64.
        targets: (M, 3), same dtype.
        max_iterations: upper bound of the steps; 0 leaves the points where they are.
        tolerance: relative.

    Raises:
        ValueError: no points, or fewer than 0 iterations.

    Reference: Besl and McKay 1992, "A method for registration of 3-D shapes", point to point.
    """
    if not len(points) or not len(targets):
        raise ValueError("`points` and `targets` must not be empty")
    if max_iterations < 0:
        raise ValueError(f"`max_iterations` must be at least 0, got {max_iterations}")
    tree = point_tree(targets)
    motion = RigidMotion(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    distance, row = nearest_points(points, tree)
    rms, iterations = float(distance.square().mean().sqrt()), 0
    while iterations < max_iterations:
        iterations += 1
        motion = best_rigid_motion(points, targets[row])
        distance, row = nearest_points(motion.apply(points), tree)
        before, rms = rms, float(distance.square().mean().sqrt())
        if before - rms <= tolerance * before:
            break
    return RigidMotion(motion.rotation, motion.translation, iterations, rms)
