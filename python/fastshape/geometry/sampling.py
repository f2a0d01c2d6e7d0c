"""Random points on and around a surface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from fastshape.geometry.mesh import Mesh


class SurfaceSamples(NamedTuple):
    """Points on a surface: positions and unit face normals (N, 3) float32, face rows (N,) int64."""

    points: Tensor
    normals: Tensor
    faces: Tensor


def sample_surface(mesh: Mesh, num_samples: int, generator: Generator | None = None) -> SurfaceSamples:
    """Draw points uniformly by area.

    A face is picked by its share of the area (inversion of the running sum in float64, ties to the lowest
    face), the place in it uniformly; the same generator state gives the same points on every machine.

    Args:
        mesh: a mesh with a positive area.
        num_samples: N >= 0.
        generator: CPU generator; None draws from torch's global one.

    Raises:
        ValueError: no surface area, or a negative count.
    """
    if num_samples < 0:
        raise ValueError(f"`num_samples` must be at least 0, got {num_samples}")
    if not mesh.num_faces or not mesh.area > 0:
        raise ValueError("the mesh has no surface area to sample")
    draws = torch.rand(num_samples, 3, generator=generator, dtype=torch.float64)
    total = mesh.face_areas.cumsum(0)
    last = int(mesh.face_areas.nonzero().max())
    faces = torch.searchsorted(total, draws[:, 0] * total[-1], right=True).clamp_(max=last)
    root = draws[:, 1].sqrt()
    weights = torch.stack([1 - root, root * (1 - draws[:, 2]), root * draws[:, 2]], 1)
    points = (mesh.triangles[faces].double() * weights[:, :, None]).sum(1)
    return SurfaceSamples(points.float(), mesh.face_normals[faces].float(), faces)


class Queries(NamedTuple):
    """Places to ask a field at: volume points (Nv, 3) and near-surface points (Nn, 3), float32."""

    volume: Tensor
    near: Tensor


QUERY_PRESETS: dict[str, tuple[float, ...]] = {
    "vecset": (0.005, 0.05),  # LaGeM, 3DShape2VecSet's lineage
    "dora": (0.001, 0.005),  # without the salient-edge part
    "hunyuan": (0.005, 0.05),
}


def sample_queries(
    mesh: Mesh,
    num_volume: int,
    num_near: int,
    *,
    preset: str = "vecset",
    sigmas: Sequence[float] | None = None,
    bound: float = 1.0,
    generator: Generator | None = None,
) -> Queries:
    """Draw the places where a training step asks the field of a normalized mesh.

    Volume points are uniform in [-bound, bound]^3. Near points are surface points moved by a normal
    distribution, the first Nn / len(sigmas) of them by the first sigma and so on; they are not truncated.

    Args:
        mesh: a mesh in [-1, 1]^3.
        num_volume: Nv.
        num_near: Nn.
        preset: the sigmas of a paper: "vecset", "dora" or "hunyuan".
        sigmas: standard deviations instead of a preset's.
        bound: half side of the cube.
        generator: CPU generator; None draws from torch's global one.

    Raises:
        ValueError: unknown preset, no sigmas, or no surface area.
    """
    if sigmas is None:
        if preset not in QUERY_PRESETS:
            raise ValueError(f"`preset` must be one of {sorted(QUERY_PRESETS)}, got {preset!r}")
        sigmas = QUERY_PRESETS[preset]
    if not sigmas or min(sigmas) < 0:
        raise ValueError(f"`sigmas` must be one or more numbers >= 0, got {list(sigmas)}")
    volume = (torch.rand(num_volume, 3, generator=generator) * 2 - 1) * bound
    surface = sample_surface(mesh, num_near, generator).points
    which = torch.arange(num_near) * len(sigmas) // max(num_near, 1)
    noise = torch.randn(num_near, 3, generator=generator) * torch.tensor(list(sigmas))[which, None]
    return Queries(volume, surface + noise)
