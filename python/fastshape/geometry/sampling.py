"""Random points on a surface."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from fastshape.geometry.mesh import Mesh
from fastshape.ops import farthest_point_sampling


class SurfaceSamples(NamedTuple):
    """Points on a surface: positions and unit face normals (N, 3) float32, face rows (N,) int64."""

    points: Tensor
    normals: Tensor
    faces: Tensor


def sample_surface(
    mesh: Mesh,
    num_samples: int,
    generator: Generator | None = None,
    *,
    oversample: int | None = None,
) -> SurfaceSamples:
    """Draw points uniformly by area.

    A face is picked by its share of the area (inversion of the running sum in float64, ties to the lowest
    face), the place in it uniformly; the same generator state gives the same points on every machine.

    Args:
        mesh: a mesh with a positive area.
        num_samples: N >= 0.
        generator: CPU generator; None draws from torch's global one.
        oversample: draw that many points and keep the N that farthest point sampling picks, from the first
            on: no two stay close. Dora (Chen et al. 2025, arXiv 2412.17808) thins 200000 to 32768; its code
            picks with approximate buckets, ours is exact.

    Raises:
        ValueError: no surface area, a negative count, or fewer points drawn than to be kept.
    """
    if num_samples < 0:
        raise ValueError(f"`num_samples` must be at least 0, got {num_samples}")
    if oversample is not None and oversample < num_samples:
        raise ValueError(f"`oversample` must be at least `num_samples` = {num_samples}, got {oversample}")
    if not mesh.num_faces or not mesh.area > 0:
        raise ValueError("the mesh has no surface area to sample")
    samples = sample_faces(mesh, mesh.face_areas, oversample or num_samples, generator)
    if oversample is None or oversample == num_samples:
        return samples
    kept = farthest_subset(samples.points, num_samples)
    return SurfaceSamples(*(tensor[kept] for tensor in samples))


def sample_faces(
    mesh: Mesh, weights: Tensor, num_samples: int, generator: Generator | None = None
) -> SurfaceSamples:
    """Draw points uniformly in faces that are picked by their weights (F,) float64, not all of them 0."""
    draws = torch.rand(num_samples, 3, generator=generator, dtype=torch.float64)
    total = weights.cumsum(0)
    last = int(weights.nonzero().max())
    faces = torch.searchsorted(total, draws[:, 0] * total[-1], right=True).clamp_(max=last)
    root = draws[:, 1].sqrt()
    shares = torch.stack([1 - root, root * (1 - draws[:, 2]), root * draws[:, 2]], 1)
    points = (mesh.triangles[faces].double() * shares[:, :, None]).sum(1)
    return SurfaceSamples(points.float(), mesh.face_normals[faces].float(), faces)


def farthest_subset(points: Tensor, num_samples: int) -> Tensor:
    """Rows (N,) int64 of points (P, 3) that lie far apart, the first point first; see
    `ops.farthest_point_sampling`.

    Raises:
        ValueError: fewer points than N.
    """
    if not 0 <= num_samples <= len(points):
        raise ValueError(
            f"`num_samples` must lie in 0..{len(points)}, the number of points, got {num_samples}"
        )
    if num_samples == 0:
        return torch.zeros(0, dtype=torch.int64)
    return farthest_point_sampling(points.float().contiguous()[None], num_samples)[0]
