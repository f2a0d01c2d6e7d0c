"""Depth and normal maps against the sphere, where both are known."""

from __future__ import annotations

import pytest
import torch

from fastshape.geometry import Mesh
from fastshape.geometry.maps import depth_picture, normal_picture, surface_maps
from fastshape.testing import icosphere


def sphere(scale: float = 1.0, shift: float = 0.0) -> Mesh:
    vertices, faces = icosphere(5)
    return Mesh(vertices * scale + shift, faces)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-3, 0.0), (50.0, 1e4)])
def test_sphere(scale, shift):
    """The camera is 4.5 radii of the vertices' ball away, so the nearest point of the sphere is 3.5 away."""
    maps = surface_maps(sphere(scale, shift), size=65)
    assert maps.mask[32, 32]
    assert not maps.mask[0, 0]
    assert torch.equal(maps.mask, maps.depth.isfinite())
    assert float(maps.depth[32, 32]) / scale == pytest.approx(3.5, abs=0.01)
    # At depth z, a point of the sphere about 4.5 along the axis has the normal (x, y, 4.5 - z).
    assert maps.normals[..., 2][maps.mask].sub(4.5 - maps.depth[maps.mask] / scale).abs().max() < 0.05
    assert maps.normals[maps.mask].norm(dim=1).sub(1).abs().max() < 1e-5


def test_axes_of_the_camera():
    """Right of the middle normals point right, above it up, in the middle towards the camera."""
    normals = surface_maps(sphere(), size=65).normals
    assert normals[32, 32, 2] > 0.99
    assert normals[32, 50, 0] > 0.3
    assert normals[14, 32, 1] > 0.3


def test_pictures():
    maps = surface_maps(sphere(), size=33)
    depth, normals = depth_picture(maps), normal_picture(maps)
    assert depth.shape == normals.shape == (33, 33, 3)
    assert depth.dtype == normals.dtype == torch.uint8
    assert depth[16, 16].tolist() == [255, 255, 255]
    assert depth[0, 0].tolist() == normals[0, 0].tolist() == [0, 0, 0]
    assert (normals[16, 16].int() - torch.tensor([128, 128, 255])).abs().max() <= 8


def test_wrong_input():
    with pytest.raises(ValueError, match="`size` must be at least 1, got 0"):
        surface_maps(sphere(), size=0)
    with pytest.raises(ValueError, match="without faces"):
        surface_maps(Mesh(torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.int64)))
