"""The papers' augmentations of a training shape: one motion for its input points, normals and queries.

Signed distances belong to the shape as it was: a similarity's factor is given back with the points, and an
uneven scaling leaves only their sign (`Augmented.factor` is None).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor


class Augmented(NamedTuple):
    """Clouds (N, 3 or 6) and queries (Q, 3) after the motion, and what distances are to be multiplied by."""

    clouds: list[Tensor]
    queries: Tensor
    factor: float | None


def augment(name: str, clouds: list[Tensor], queries: Tensor, generator: Generator) -> Augmented:
    """Moves a shape as the code of a paper does.

    - "none".
    - "axes": a random permutation of the axes and random signs: the 48 symmetries of the cube.
    - "vecset": each axis is scaled by U[0.75, 1.25], then all so that max |coordinate| is 0.999999; the input
      points get noise of 0.005 and are cut off at the cube.
    - "lagem": the same scaling, to a largest norm of 0.999 about the origin; then a random permutation of the
      axes, random signs, and a rotation by three N(0, 1) angles.
    - "dora": with probability 0.75 a mirror image along one axis, then a rotation about a random axis by a
      uniform angle.

    Args:
        name: one of these.
        clouds: (N, 3) points, or (N, 6) with unit normals; the first decides the scale.
        queries: (Q, 3).
        generator: CPU generator of the draws.

    Reference: 3DShape2VecSet's, LaGeM's and Dora's code. LaGeM's paper has the rotation alone.
    """
    if name == "none":
        return Augmented(clouds, queries, 1.0)
    points = clouds[0][:, :3]
    if name in ("axes", "dora"):
        return _moved(clouds, queries, motion(name, generator), 1.0)
    scale = torch.diag(0.75 + 0.5 * torch.rand(3, generator=generator))
    scaled = points @ scale
    if name == "vecset":
        stretch = scale * (0.999999 / scaled.abs().max().clamp_min(1e-6))
        moved = _moved(clouds, queries, stretch, None)
        noise = 0.005 * torch.randn(points.shape, generator=generator)
        moved.clouds[0][:, :3].add_(noise).clamp_(-1.0, 1.0)
        return moved
    assert name == "lagem", name
    stretch = scale * (0.999 / scaled.norm(dim=1).max().clamp_min(1e-6))
    return _moved(clouds, queries, stretch @ _lagem_motion(generator), None)


def motion(name: str, generator: Generator) -> Tensor:
    """The orthogonal matrix (3, 3) by which "none", "axes" or "dora" multiplies points from the right."""
    if name == "none":
        return torch.eye(3)
    return _permutation(generator) if name == "axes" else _dora_motion(generator)


def _moved(clouds: list[Tensor], queries: Tensor, motion: Tensor, factor: float | None) -> Augmented:
    """Applies the motion (3, 3) from the right; normals go with its inverse transpose."""
    to_normals = torch.linalg.inv(motion).T
    result = []
    for cloud in clouds:
        points = cloud[:, :3] @ motion
        if cloud.shape[1] > 3:
            normals = torch.nn.functional.normalize(cloud[:, 3:] @ to_normals, dim=1)
            points = torch.cat([points, normals], 1)
        result.append(points)
    return Augmented(result, queries @ motion, factor)


def _axis_rotation(axis: int, angle: Tensor) -> Tensor:
    i, j = (k for k in range(3) if k != axis)
    rotation = torch.eye(3)
    rotation[i, i] = rotation[j, j] = angle.cos()
    rotation[i, j], rotation[j, i] = -angle.sin(), angle.sin()
    return rotation


def _permutation(generator: Generator) -> Tensor:
    signs = torch.diag(2.0 * torch.randint(2, (3,), generator=generator) - 1.0)
    return torch.eye(3)[torch.randperm(3, generator=generator)] @ signs


def _lagem_motion(generator: Generator) -> Tensor:
    yaw, pitch, roll = torch.randn(3, generator=generator)
    return (
        _permutation(generator) @ _axis_rotation(2, yaw) @ _axis_rotation(1, pitch) @ _axis_rotation(0, roll)
    )


def _dora_motion(generator: Generator) -> Tensor:
    motion = torch.eye(3)
    if float(torch.rand(1, generator=generator)) < 0.75:
        axis = int(torch.randint(3, (1,), generator=generator))
        motion[axis, axis] = -1.0
    x, y, z = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0)
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = 2.0 * math.pi * torch.rand(1, generator=generator)
    # Rodrigues' formula.
    return motion @ (torch.eye(3) + angle.sin() * cross + (1.0 - angle.cos()) * cross @ cross)
