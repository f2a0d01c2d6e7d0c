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
