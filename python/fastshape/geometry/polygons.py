"""Cutting polygons into triangles without leaving their outline."""

from __future__ import annotations

import numpy as np

_CHUNK = 1 << 20  # corners judged at a time


def triangulate(vertices: np.ndarray, indices: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, int]:
    """Cut polygons into triangles: convex ones as fans from their first corner, others by ear clipping.

    A fan over a concave polygon covers ground outside of it; ear clipping does not. Polygons that are not
    flat are judged in the plane of their Newell normal.

    Args:
        vertices: (V, 3), finite where used; judged in float64.
        indices: corners of all polygons, one polygon after the other.
        sizes: number of corners of each polygon, at least 3.

    Returns:
        Triangles (F, 3) in the order of the polygons, and how many polygons were not convex.
    """
    if int(sizes.max(initial=0)) == 3 == int(sizes.min(initial=3)):
        return indices.reshape(-1, 3), 0
    starts = np.cumsum(sizes) - sizes
    first_triangle = np.cumsum(sizes - 2) - (sizes - 2)
    triangles = np.empty((int((sizes - 2).sum()), 3), indices.dtype)
    concave = 0
    for size in np.unique(sizes):
        every = np.flatnonzero(sizes == size)
        fan = np.stack([np.zeros(size - 2, np.int64), np.arange(1, size - 1), np.arange(2, size)], 1)
        for which in np.array_split(every, len(every) * int(size) // _CHUNK + 1):
            corners = indices[starts[which][:, None] + np.arange(size)]
            cut = corners[:, fan]
            if size > 3:
                convex = _is_convex(vertices[corners].astype(np.float64))
                for row in np.flatnonzero(~convex):
                    cut[row] = corners[row][_clip_ears(vertices[corners[row]].astype(np.float64))]
                concave += int((~convex).sum())
            triangles[first_triangle[which][:, None] + np.arange(size - 2)] = cut
    return triangles, concave


def _newell(corners: np.ndarray) -> np.ndarray:
    centered = corners - corners.mean(-2, keepdims=True)
    return np.cross(centered, np.roll(centered, -1, -2)).sum(-2)


def _is_convex(corners: np.ndarray) -> np.ndarray:
    """Whether every corner of the polygons (P, N, 3) turns the way of the outline, up to rounding."""
    before, after = corners - np.roll(corners, 1, 1), np.roll(corners, -1, 1) - corners
    normal = _newell(corners)
    turns = np.einsum("pnd,pd->pn", np.cross(before, after), normal)
    floor = 1e-12 * np.einsum("pd,pd->p", normal, normal)
    # Turning the right way at every corner is not enough: a pentagram does so too, but winds twice.
    length = np.linalg.norm(before, axis=2) * np.linalg.norm(after, axis=2)
    cosine = np.einsum("pnd,pnd->pn", before, after) / np.where(length > 0, length, 1)
    total = np.arccos(np.clip(cosine, -1, 1)).sum(1)
    return (turns >= -floor[:, None]).all(1) & (total < 3 * np.pi)


def _clip_ears(corners: np.ndarray) -> np.ndarray:
    """Local triangles (N - 2, 3) of one polygon (N, 3), the roundest ear first; O(N^3) at worst."""
    normal = _newell(corners)
    axis = int(np.abs(normal).argmax())
    u, v = (axis + 1) % 3, (axis + 2) % 3
    flat = corners[:, [u, v]] if normal[axis] >= 0 else corners[:, [v, u]]
    left = list(range(len(corners)))
    triangles = []

    def turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        left, right = b - a, c - a
        return left[..., 0] * right[..., 1] - left[..., 1] * right[..., 0]

    while len(left) > 3:
        ring = np.array(left)
        a, b, c = flat[np.roll(ring, 1)], flat[ring], flat[np.roll(ring, -1)]
        area = turn(a, b, c)
        sides = np.stack([((p - q) ** 2).sum(1) for p, q in ((a, b), (b, c), (c, a))])
        quality = area / np.maximum(sides.max(0), 1e-300)
        best = -1
        for at in np.argsort(-quality, kind="stable"):
            if area[at] <= 0:
                break
            trio = {left[at - 1], left[at], left[(at + 1) % len(left)]}
            others = flat[[i for i in left if i not in trio]]
            inside = (
                (turn(a[at], b[at], others) >= 0)
                & (turn(b[at], c[at], others) >= 0)
                & (turn(c[at], a[at], others) >= 0)
            )
            # A corner exactly on one of the ear's own corners (a bridge to a hole) does not block it.
            same = ((others[:, None] == np.stack([a[at], b[at], c[at]])).all(2)).any(1)
            if not (inside & ~same).any():
                best = int(at)
                break
        if best < 0:
            best = int(quality.argmax())  # crossing or collinear outline: no ear exists, keep the count right
        triangles.append((left[best - 1], left[best], left[(best + 1) % len(left)]))
        left.pop(best)
    triangles.append((left[0], left[1], left[2]))
    return np.array(triangles, np.int64)
