"""Depth and normal maps of a mesh, and the pictures of them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastshape.geometry.mesh import Mesh
from fastshape.geometry.render import VIEWS, View, look_at
from fastshape.ops import rasterize


class SurfaceMaps(NamedTuple):
    """What a pinhole camera sees of a mesh, one value per pixel center.

    Attributes:
        depth: (H, W) float32, along the camera's axis (z depth, not ray length), in the mesh's unit; inf
            where no face is met.
        normals: (H, W, 3) float32 unit normals of the faces, turned towards the camera, in the camera's
            frame: x right, y up, z towards the camera; 0 where no face is met.
        mask: (H, W) bool, whether a face is met.
    """

    depth: Tensor
    normals: Tensor
    mask: Tensor


def surface_maps(
    mesh: Mesh,
    *,
    size: int = 512,
    view: View = VIEWS[0],
    up: Literal["y", "z"] = "z",
    frame: Mesh | None = None,
) -> SurfaceMaps:
    """Depth and normals of a mesh from one view.

    Args:
        mesh: what to look at.
        size: height and width in pixels.
        view: azimuth and elevation in degrees, as in `render`.
        up: the vertical axis.
        frame: the mesh that the camera is fitted to; None is `mesh`.

    Raises:
        ValueError: no faces, or a size below 1.
    """
    if not mesh.num_faces:
        raise ValueError("a mesh without faces has no depth and no normals")
    if size < 1:
        raise ValueError(f"`size` must be at least 1, got {size}")
    mesh = mesh.compact()  # the camera's range of depths is that of the vertices
    frame = mesh if frame is None else frame
    # Pictures are drawn in float32: a mesh far from the origin or of millimeters must give the same picture.
    center = frame.bounds.double().mean(0)
    scale = 1 / float((frame.bounds[1] - frame.bounds[0]).max())
    near, fitted = (Mesh(((m.vertices.double() - center) * scale).float(), m.faces) for m in (mesh, frame))
    (camera,) = look_at(fitted, [view], up=up)
    steps = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    _, directions = camera.rays(x.reshape(-1), y.reshape(-1))
    seen = rasterize(camera.clip(near.vertices), near.faces, size)
    face = seen.triangle_id.reshape(-1)
    mask = face >= 0
    depth = seen.w.reshape(-1) / scale
    normals = near.face_normals[face.clamp_min(0)]
    normals = torch.where(((normals * directions).sum(1) > 0)[:, None], -normals, normals)
    basis = torch.stack([camera.right, camera.up, -camera.forward], 1)  # columns: x, y, z
    normals = torch.where(mask[:, None], normals @ basis, torch.zeros(3))
    return SurfaceMaps(
        torch.where(mask, depth, torch.inf).reshape(size, size),
        normals.reshape(size, size, 3),
        mask.reshape(size, size),
    )


def depth_picture(maps: SurfaceMaps) -> Tensor:
    """The depth as a gray picture for `save_png`: near is light, no face is black; uint8 (H, W, 3)."""
    gray = torch.zeros_like(maps.depth)
    if bool(maps.mask.any()):
        near, far = maps.depth[maps.mask].aminmax()
        share = (maps.depth[maps.mask] - near) / (far - near).clamp_min(1e-12)
        gray[maps.mask] = 1 - 0.8 * share
    return (gray * 255 + 0.5).to(torch.uint8)[..., None].expand(-1, -1, 3).contiguous()


def normal_picture(maps: SurfaceMaps) -> Tensor:
    """The normals as the usual colors for `save_png`, (n + 1) / 2 as RGB; uint8 (H, W, 3)."""
    color = torch.where(maps.mask[..., None], (maps.normals + 1) / 2, torch.zeros(3))
    return (color * 255 + 0.5).to(torch.uint8)
