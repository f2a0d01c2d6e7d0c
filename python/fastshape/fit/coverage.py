"""Cameras that look at what was seen least."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fastshape import ops
from fastshape.fit.views import FIELD_OF_VIEW, Camera, camera_at, random_camera, random_eyes
from fastshape.geometry import Mesh, sample_surface

_EYES = 64  # cameras among which one is looked for that sees a point
_TRIES = 8  # points
_TOLERANCE = 1e-3  # of the way to a point: it is seen if nothing before that is met


class Coverage:
    """How often each part of a mesh was seen, and cameras for what was seen least.

    Cameras anywhere around a mesh see its outside again and again, and the ground of a cup hardly ever. Here
    each picture begins with a point of those that were seen least, and the camera is one that sees it.

    Args:
        mesh: in [-0.5, 0.5]^3.
        bvh: of it, float32.
        number: S, how many points stand for its surface.
        generator: draws them.

    Attributes:
        points: (S, 3) float32, uniform over the surface.
        seen: (S,) float32, in how many pictures each was.
    """

    def __init__(self, mesh: Mesh, bvh: ops.Bvh, number: int, generator: Generator) -> None:
        self.bvh = bvh
        self.points = sample_surface(mesh, number, generator=generator).points.float()
        self.seen = torch.zeros(number)

    def camera(self, generator: Generator) -> tuple[Camera, Tensor]:
        """A camera, and the point (3,) that it is for."""
        for _ in range(_TRIES):
            least = (self.seen == self.seen.min()).nonzero()[:, 0]
            number = int(least[int(torch.randint(len(least), (), generator=generator))])
            point = self.points[number]
            eyes = random_eyes(_EYES, generator)
            met = ops.cast_rays(eyes, point - eyes, self.bvh).t
            sees = (met > 1 - _TOLERANCE).nonzero()[:, 0]
            if len(sees):
                return camera_at(eyes[sees[0]], torch.zeros(3), FIELD_OF_VIEW), point
            self.seen[number] += 1  # hidden from nearly everywhere, or for good: others come first
        return random_camera(generator), point

    def count(self, camera: Camera, depth: Tensor, tolerance: float) -> None:
        """Notes what a picture shows.

        Args:
            camera: of the picture.
            depth: (H, W) of the mesh, +inf where it shows nothing.
            tolerance: how far behind it a point may lie that is seen.
        """
        matrix, depth = camera.matrix.cpu(), depth.cpu()
        height, width = depth.shape
        clip = self.points @ matrix[:, :3].T + matrix[:, 3]
        place = clip[:, :2] / clip[:, 3:]
        inside = (clip[:, 3] > 0) & (place.abs() < 1).all(1)
        rows = ((1 - place[:, 1]) * (0.5 * height)).long().clamp(0, height - 1)
        columns = ((1 + place[:, 0]) * (0.5 * width)).long().clamp(0, width - 1)
        self.seen += inside & (clip[:, 3] <= depth[rows, columns] + tolerance)
