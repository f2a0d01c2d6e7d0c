"""Cameras around the cube [-0.5, 0.5]^3."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

NEAR, FAR = 0.05, 10.0
FIELD_OF_VIEW = 40.0  # degrees: it shows all of the cube


class Camera(NamedTuple):
    """A perspective camera; matrices take column vectors, depth is the distance from the eye's plane."""

    eye: Tensor  # (3,)
    matrix: Tensor  # (4, 4), from the world to clip coordinates

    def to(self, device: torch.device) -> Camera:
        return Camera(self.eye.to(device), self.matrix.to(device))

    def rays(self, size: int) -> Tensor:
        """Directions (size, size, 3) from the eye through the pixels' centers, of any length."""
        place = ((torch.arange(size, device=self.eye.device) + 0.5) * (2 / size) - 1)[:, None]
        inverse = self.matrix.inverse()
        # Of (x, y, 0, 1) in clip coordinates.
        ends = (inverse[:, 3] - place * inverse[:, 1])[:, None] + place * inverse[:, 0]
        return ends[..., :3] / ends[..., 3:] - self.eye


def camera_at(eye: Tensor, target: Tensor, field_of_view: float) -> Camera:
    """The camera at a point that looks at another; `field_of_view` in degrees, of a square picture."""
    forward = normalize(target - eye, dim=0)
    axis = torch.zeros(3)
    axis[forward.abs().argmin()] = 1.0
    right = normalize(torch.linalg.cross(forward, axis), dim=0)
    up = torch.linalg.cross(right, forward)
    world = torch.eye(4)
    world[:3, :3] = torch.stack([right, up, -forward])
    world[:3, 3] = -(world[:3, :3] @ eye)
    focal = 1.0 / math.tan(math.radians(field_of_view) / 2)
    lens = torch.zeros(4, 4)
    lens[0, 0] = lens[1, 1] = focal
    lens[2, 2], lens[2, 3] = (FAR + NEAR) / (NEAR - FAR), 2 * FAR * NEAR / (NEAR - FAR)
    lens[3, 2] = -1.0
    return Camera(eye, lens @ world)


def random_eyes(number: int, generator: Generator, *, distance: tuple[float, float] = (1.8, 2.4)) -> Tensor:
    """Places (number, 3) anywhere in a shell around the cube."""
    outward = normalize(torch.randn(number, 3, generator=generator), dim=1)
    low, high = distance
    return outward * (low + (high - low) * torch.rand(number, 1, generator=generator))


def random_camera(generator: Generator, *, field_of_view: float = FIELD_OF_VIEW) -> Camera:
    """A camera at one of :func:`random_eyes` that looks at the middle of the cube."""
    return camera_at(random_eyes(1, generator)[0], torch.zeros(3), field_of_view)
