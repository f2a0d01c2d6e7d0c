"""Mesh queries by brute force: every point against every face."""

from __future__ import annotations

import torch
from torch import Tensor


def closest_point(points: Tensor, vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """distance (Q,), face (Q,), barycentric (Q, 3), point (Q, 3); ties to the lowest face index.

    Differentiable: the candidates on the three edges and in the plane are all computed, the nearest is kept.
    """
    a, b, c = vertices[faces].unbind(1)  # (F, 3) each
    p = points[:, None]  # (Q, 1, 3)

    def on_segment(start: Tensor, end: Tensor) -> Tensor:
        direction = end - start
        length2 = (direction * direction).sum(-1)
        t = ((p - start) * direction).sum(-1) / torch.where(length2 > 0, length2, torch.ones_like(length2))
        return t.clamp(0, 1)

    ab, ac, bc = on_segment(a, b), on_segment(a, c), on_segment(b, c)  # (Q, F)
    zero = torch.zeros_like(ab)
    normal = torch.linalg.cross(b - a, c - a)
    area2 = (normal * normal).sum(-1)
    area2 = torch.where(area2 > 0, area2, torch.full_like(area2, torch.nan))
    v = (torch.linalg.cross(p - a, (c - a).expand_as(p - a)) * normal).sum(-1) / area2
    w = (torch.linalg.cross((b - a).expand_as(p - a), p - a) * normal).sum(-1) / area2
    inside = (v >= 0) & (w >= 0) & (v + w <= 1)
    v, w = torch.where(inside, v, zero), torch.where(inside, w, zero)  # else vertex a: a point of the face
    candidates_v = torch.stack([ab, zero, 1 - bc, v], -1)  # (Q, F, 4)
    candidates_w = torch.stack([zero, ac, bc, w], -1)
    offset = (
        (a - p)[:, :, None]
        + candidates_v[..., None] * (b - a)[:, None]
        + candidates_w[..., None] * (c - a)[:, None]
    )
    distance2 = (offset * offset).sum(-1).flatten(1)  # (Q, F * 4)
    best = distance2.nan_to_num(nan=torch.inf).argmin(1)
    face = best // 4
    rows = torch.arange(len(points), device=points.device)
    v, w = candidates_v.flatten(1)[rows, best], candidates_w.flatten(1)[rows, best]
    barycentric = torch.stack([1 - v - w, v, w], -1)
    point = (vertices[faces[face]] * barycentric[..., None]).sum(1)
    return distance2[rows, best].sqrt(), face, barycentric, point


def winding_number(points: Tensor, vertices: Tensor, faces: Tensor) -> Tensor:
    """(Q,): the sum of the faces' solid angles over 4 pi. Van Oosterom and Strackee 1983."""
    a, b, c = (vertices[faces][None] - points[:, None, None]).unbind(2)  # (Q, F, 3) each
    la, lb, lc = a.norm(dim=-1), b.norm(dim=-1), c.norm(dim=-1)
    numerator = (a * torch.linalg.cross(b, c)).sum(-1)
    denominator = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
    return torch.atan2(numerator, denominator).sum(1) / (2 * torch.pi)


def cast_rays(
    origins: Tensor, directions: Tensor, vertices: Tensor, faces: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """t (Q,), face (Q,), and how many faces each ray crosses (Q,). Moeller and Trumbore 1997."""
    a, b, c = vertices[faces].unbind(1)
    ab, ac = (b - a)[None], (c - a)[None]
    d = directions[:, None].expand(-1, len(faces), -1)
    from_a = origins[:, None] - a[None]
    p = torch.linalg.cross(d, ac.expand_as(d))
    determinant = (ab * p).sum(-1)
    q = torch.linalg.cross(from_a, ab.expand_as(from_a))
    v, w = (from_a * p).sum(-1) / determinant, (d * q).sum(-1) / determinant
    t = (ac * q).sum(-1) / determinant
    hit = (v >= 0) & (w >= 0) & (v + w <= 1) & (t >= 0)
    t = torch.where(hit, t, torch.inf)
    nearest, face = t.min(1)
    return nearest, torch.where(nearest < torch.inf, face, -1), hit.sum(1)


def voxelize_mesh(
    vertices: Tensor, faces: Tensor, resolution: int, box: tuple[float, float] = (-1.0, 1.0)
) -> Tensor:
    """(N, 3) int32, lexicographic: the voxels whose closed box a face touches, by trying all.

    Two convex bodies are apart if and only if they are on one of 13 axes: the box's three, the normal of the
    face, and the products of its edges with the box's axes.
    """
    scale = resolution / (box[1] - box[0])
    corners = (vertices[faces].double() - box[0]) * scale  # (F, 3, 3)
    corners = corners[corners.isfinite().flatten(1).all(1)]
    side = torch.arange(resolution, device=vertices.device)
    voxels = torch.cartesian_prod(side, side, side)  # (R^3, 3)
    relative = corners[:, None] - (voxels.double() + 0.5)[:, None]  # (F, R^3, 3, 3)
    edges = corners.roll(-1, 1) - corners
    units = torch.eye(3, dtype=torch.float64, device=vertices.device)
    products = torch.linalg.cross(edges[:, :, None].expand(-1, -1, 3, -1), units.expand(len(edges), 3, 3, 3))
    normal = torch.linalg.cross(edges[:, 0], edges[:, 1])
    axes = torch.cat([units.expand(len(edges), 3, 3), products.flatten(1, 2), normal[:, None]], 1)
    places = torch.einsum("fvck,fak->fvca", relative, axes)
    radius = 0.5 * axes.abs().sum(-1)[:, None] + 1e-12 * resolution**2
    apart = (places.amin(2) > radius) | (places.amax(2) < -radius)  # (F, R^3, 13)
    return voxels[(~apart.any(2)).any(0)].int()
