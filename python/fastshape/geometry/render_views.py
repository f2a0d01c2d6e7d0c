"""Depth, normals and mask of a mesh in the pictures of given cameras, differentiable."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastshape.ops import antialias, edge_twins, interpolate, rasterize


class RenderedViews(NamedTuple):
    """What the cameras see, one value per pixel center; a picture has (height, width) = (H, W).

    Attributes:
        depth: (B, H, W), the w of clip coordinates: the distance from the plane of a perspective camera, 0
            where nothing is seen.
        ndc_depth: (B, H, W), z/w in [-1, 1], for orthographic cameras too; 1 where nothing is seen.
        normals: (B, H, W, 3) in the frame of the mesh, of unit length but where a silhouette is smoothed; 0
            where nothing is seen.
        mask: (B, H, W), 1 where the mesh is seen and 0 elsewhere, in between along smoothed silhouettes.
        triangle_id: (B, H, W) int64, -1 where nothing is seen.
    """

    depth: Tensor
    ndc_depth: Tensor
    normals: Tensor
    mask: Tensor
    triangle_id: Tensor


def render_views(
    vertices: Tensor,
    faces: Tensor,
    matrices: Tensor,
    size: int | tuple[int, int],
    *,
    normals: Literal["face", "vertex"] | Tensor = "face",
    smooth: Collection[str] = ("mask",),
    twins: Tensor | None = None,
) -> RenderedViews:
    """Draw a mesh through cameras, with gradients to its vertices, to the cameras and to given normals.

    Args:
        vertices: (V, 3), float32 or float64.
        faces: (F, 3) int64.
        matrices: (B, 4, 4), dtype of ``vertices``: makes clip coordinates of column vectors (x, y, z, 1), as
            projection times extrinsics does. A picture shows x/w and y/w from -1 to 1, x to the right, y up.
        size: (height, width) in pixels; one number for both.
        normals: those of the faces, those of the vertices (of the faces around them by area) interpolated
            and brought to unit length, or your own (V, 3) treated like these.
        smooth: which of "depth", "normals" and "mask" get smooth silhouettes, and with them gradients of
            the outline (:func:`fastshape.ops.antialias`). Depth and normals are mixed with what lies beyond,
            0 where that is nothing.
        twins: :func:`fastshape.ops.edge_twins` of ``faces``; computed where it is needed and None.

    Raises:
        TypeError, ValueError: as :func:`fastshape.ops.rasterize`, or an unknown name in ``smooth``.

    Gradient: with respect to ``vertices``, ``matrices`` and ``normals``; deterministic.

    Device: CPU and CUDA; no sync.
    """
    unknown = set(smooth) - {"depth", "normals", "mask"}
    if unknown:
        raise ValueError(f"`smooth` takes 'depth', 'normals' and 'mask', got {sorted(unknown)}")
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"`vertices` must have shape (V, 3), got {tuple(vertices.shape)}")
    if matrices.ndim != 3 or matrices.shape[1:] != (4, 4):
        raise ValueError(f"`matrices` must have shape (B, 4, 4), got {tuple(matrices.shape)}")
    clip = vertices @ matrices[:, :, :3].mT + matrices[:, None, :, 3]
    seen = rasterize(clip.contiguous(), faces, size)
    if isinstance(normals, str) and normals == "face":
        # Each face is drawn as a triangle of one vertex, itself.
        rows = torch.arange(len(faces), device=faces.device)[:, None].expand(-1, 3).contiguous()
        values = torch.nn.functional.normalize(_face_areas(vertices, faces), dim=1)
        image = interpolate(values, rows, seen.triangle_id, seen.barycentrics.detach())
    else:
        values = _vertex_normals(vertices, faces) if isinstance(normals, str) else normals
        image = interpolate(values.contiguous(), faces, seen.triangle_id, seen.barycentrics)
        image = torch.nn.functional.normalize(image, dim=-1)
    pictures = {
        "depth": seen.w[..., None],
        "normals": image,
        "mask": (seen.triangle_id >= 0).to(vertices.dtype)[..., None],
    }
    names = [name for name in pictures if name in smooth]
    if names:
        twins = edge_twins(faces) if twins is None else twins
        parts = [pictures[name] for name in names]
        smoothed = antialias(
            torch.cat(parts, -1), seen.triangle_id, seen.depth, clip.contiguous(), faces, twins=twins
        )
        pictures.update(zip(names, smoothed.split([part.shape[-1] for part in parts], -1), strict=True))
    return RenderedViews(
        pictures["depth"][..., 0], seen.depth, pictures["normals"], pictures["mask"][..., 0], seen.triangle_id
    )


def _face_areas(vertices: Tensor, faces: Tensor) -> Tensor:
    """Normals (F, 3), twice as long as the faces are large."""
    a, b, c = vertices[faces].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def _vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    # index_put sorts and adds in order on every device; index_add would use atomics.
    areas = _face_areas(vertices, faces).repeat_interleave(3, 0)
    total = torch.zeros_like(vertices).index_put((faces.reshape(-1),), areas, accumulate=True)
    return torch.nn.functional.normalize(total, dim=1)
