"""Pictures of a mesh from cameras that go around it, as image conditions are made."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastshape.geometry.mesh import Mesh
from fastshape.geometry.render_views import render_views

_GRAY = (0.72, 0.72, 0.72)
_MARGIN = 1.02  # of the distance at which the mesh just fits
_NEAR, _FAR = 0.05, 10.0  # of the distance


class Orbit(NamedTuple):
    """Pictures and their cameras.

    Attributes:
        pictures: (V, 4, H, W) float32 in [0, 1]: red, green, blue and how much of a pixel is covered; colors
            are not multiplied by that.
        azimuths: (V,) degrees.
        elevation: degrees, of all cameras.
        distance: of all cameras from the middle of the mesh's bounding box.
    """

    pictures: Tensor
    azimuths: Tensor
    elevation: float
    distance: float

    def over(self, background: float = 1.0) -> Tensor:
        """The pictures over a gray, 1 for white: (V, 3, H, W)."""
        color, cover = self.pictures[:, :3], self.pictures[:, 3:]
        return color * cover + background * (1.0 - cover)


def orbit(
    mesh: Mesh,
    *,
    frames: int = 24,
    size: int = 512,
    field_of_view: float = 33.8,
    elevation: float | tuple[float, float] = (-5.0, 30.0),
    up: str = "z",
    generator: torch.Generator | None = None,
) -> Orbit:
    """A ring of perspective cameras around a mesh, all at the distance at which it fills the pictures.

    The first camera has azimuth 0, the others follow at equal steps. The distance is the least one at which
    no picture cuts the mesh off, 2 % added. The mesh is gray, shaded by a light at the camera and one above.

    Args:
        mesh: with faces.
        frames: V.
        size: H = W.
        field_of_view: degrees.
        elevation: degrees, or the range of a uniform draw, one for the whole ring.
        up: the vertical axis, "y" or "z"; azimuth 0 looks along the axis after it.
        generator: CPU generator of the draw; None is torch's global one.

    Raises:
        ValueError: no faces, or a number out of range.

    Reference: VAT (arXiv 2412.02202), appendix 6.1, which follows SV3D: 24 frames of 512 x 512, 33.8 degrees,
    elevations of -5 to 30 degrees, a white background. It is drawn by Blender's EEVEE there, with materials.
    """
    if not mesh.num_faces:
        raise ValueError("a mesh without faces cannot be drawn")
    if frames < 1 or size < 1:
        raise ValueError(f"`frames` and `size` must be at least 1, got {frames} and {size}")
    if not 0.0 < field_of_view < 180.0:
        raise ValueError(f"`field_of_view` must be in (0, 180), got {field_of_view}")
    if up not in ("y", "z"):
        raise ValueError(f"`up` must be 'y' or 'z', got {up!r}")
    if isinstance(elevation, tuple):
        low, high = elevation
        elevation = low + (high - low) * float(torch.rand((), generator=generator))
    if not -90.0 < elevation < 90.0:
        raise ValueError(f"`elevation` must be in (-90, 90), got {elevation}")

    mesh = mesh.compact()
    vertices = mesh.vertices.double()
    vertices = vertices - (vertices.amin(0) + vertices.amax(0)) / 2
    vertices = vertices / vertices.norm(dim=1).max().clamp_min(1e-30)
    azimuths = 360.0 * torch.arange(frames, dtype=torch.float64) / frames
    views = torch.stack([_frame(float(azimuth), elevation, up) for azimuth in azimuths])  # (V, 3, 3)
    places = vertices @ views.mT  # (V, N, 3): right, up and toward the camera
    slope = math.tan(math.radians(field_of_view) / 2)
    distance = _MARGIN * float((places[..., :2].abs().amax(-1) / slope + places[..., 2]).max())

    matrices = torch.zeros(frames, 4, 4, dtype=torch.float64)
    matrices[:, :2, :3] = views[:, :2] / slope
    near, far = _NEAR * distance, _FAR * distance
    depth = (far + near) / (far - near)
    matrices[:, 2, :3], matrices[:, 2, 3] = (
        -depth * views[:, 2],
        depth * distance - 2 * far * near / (far - near),
    )
    matrices[:, 3, :3], matrices[:, 3, 3] = -views[:, 2], distance
    seen = render_views(vertices.float(), mesh.faces, matrices.float(), size, smooth=("mask", "normals"))
    normals = normalize(seen.normals, dim=-1)  # (V, H, W, 3)
    toward = normals @ views[:, None, 2, :, None].float()
    upward = normals @ views[:, None, 1, :, None].float()
    light = (0.25 + 0.6 * toward.abs() + 0.15 * upward).clamp(0.0, 1.0)
    color = light * torch.tensor(_GRAY)
    pictures = torch.cat([color, seen.mask[..., None]], -1).permute(0, 3, 1, 2).contiguous()
    return Orbit(pictures, azimuths.float(), float(elevation), distance)


def _frame(azimuth: float, elevation: float, up: str) -> Tensor:
    """(3, 3): right, up and toward the camera as rows."""
    a, e = math.radians(azimuth), math.radians(elevation)
    first, second, third = (0, 1, 2) if up == "z" else (2, 0, 1)
    toward, vertical = torch.zeros(2, 3, dtype=torch.float64)
    toward[first], toward[second] = math.cos(e) * math.sin(a), -math.cos(e) * math.cos(a)
    toward[third], vertical[third] = math.sin(e), 1.0
    right = normalize(torch.linalg.cross(vertical, toward), dim=0)
    return torch.stack([right, torch.linalg.cross(toward, right), toward])
