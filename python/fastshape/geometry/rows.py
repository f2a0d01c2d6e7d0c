"""Equal vertices and faces, edges and volumes of large arrays, lean enough for tens of millions of faces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fastshape.ops.rows import EdgeCounts, first_equal_rows
from fastshape.ops.rows import count_edges as count_edges_of

_CHUNK = 1 << 18


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, _CHUNK):
        yield slice(start, min(start + _CHUNK, count))


def first_equal(rows: np.ndarray) -> np.ndarray:
    """For every row of (N, C) the number of the first row that is equal to it, (N,) int64.

    -0.0 and 0.0 are equal; a NaN equals itself.
    """
    if rows.dtype.kind == "f":
        rows = rows + rows.dtype.type(0)  # -0.0 becomes 0.0
    return first_equal_rows(torch.from_numpy(np.ascontiguousarray(rows))).numpy()


def unique_faces(faces: np.ndarray) -> np.ndarray:
    """Numbers of the faces (F, 3) that repeat no earlier one in the same orientation, ascending."""
    canonical = np.empty((len(faces), 3), faces.dtype)
    for part in _chunks(len(faces)):
        a, b, c = faces[part].T
        low = np.minimum(np.minimum(a, b), c)
        at_a, at_b = a == low, b == low
        canonical[part, 0] = low
        canonical[part, 1] = np.where(at_a, b, np.where(at_b, c, a))
        canonical[part, 2] = np.where(at_a, c, np.where(at_b, a, b))
    return np.flatnonzero(first_equal(canonical) == np.arange(len(faces)))


def count_edges(faces: np.ndarray, num_vertices: int) -> EdgeCounts:
    """What the edges of proper faces (F, 3) over welded vertices are like."""
    return count_edges_of(torch.from_numpy(np.ascontiguousarray(faces, np.int32)), num_vertices)


def signed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Volume by the divergence theorem, in chunks; of vertices (V, 3) float64 that stand about the origin."""
    total = 0.0
    for part in _chunks(len(faces)):
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = vertices[faces[part]].transpose(1, 2, 0)
        total += float((ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)).sum())
    return total / 6
