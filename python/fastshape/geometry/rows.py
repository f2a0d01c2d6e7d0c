"""Equal rows of large arrays, and what the edges of a mesh say about it, without sorting rows as such."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

_CHUNK = 1 << 19
_HASH_BITS = 40


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, _CHUNK):
        yield slice(start, min(start + _CHUNK, count))


def _sort(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted keys and the stable order that sorts them; torch's radix sort is several times numpy's."""
    ranked, order = torch.from_numpy(keys).sort(stable=True)
    return ranked.numpy(), order.numpy()


def first_equal(rows: np.ndarray) -> np.ndarray:
    """For every row of (N, C) the number of the first row that is equal to it, (N,) int64.

    Rows are ordered by a hash and compared with their neighbors, so the result is exact; where two different
    rows share a hash, those few are ordered by value. -0.0 and 0.0 are equal; NaN equals nothing.
    """
    count = len(rows)
    keys = np.empty(count, np.int64)
    for part in _chunks(count):
        keys[part] = _hash(rows[part])
    ranked, order = _sort(keys)
    del keys
    new_hash = np.ones(count, bool)
    np.not_equal(ranked[1:], ranked[:-1], out=new_hash[1:])
    del ranked
    fresh = new_hash.copy()
    for part in _chunks(count - 1):
        here = rows[order[part.start : part.stop + 1]]
        fresh[part.start + 1 : part.stop + 1] |= (here[1:] != here[:-1]).any(1)

    leader = order[fresh][np.cumsum(fresh) - 1]
    shared = np.flatnonzero(fresh & ~new_hash)
    result = np.empty(count, np.int64)
    result[order] = leader
    if len(shared):  # different rows with one hash: they may alternate, so order them by value
        group = np.cumsum(new_hash)
        places = np.flatnonzero(np.isin(group, group[shared]))
        members = order[places]
        few = rows[members]
        ranking = np.lexsort((members, *few.T[::-1]))
        few, members = few[ranking], members[ranking]
        fresh = np.ones(len(few), bool)
        fresh[1:] = (few[1:] != few[:-1]).any(1)
        result[members] = members[fresh][np.cumsum(fresh) - 1]
    return result


def _hash(rows: np.ndarray) -> np.ndarray:
    """(N,) int64 of `_HASH_BITS` bits: the same for equal rows."""
    if rows.dtype.kind == "f":
        rows = np.ascontiguousarray(rows + rows.dtype.type(0))  # -0.0 becomes 0.0
        rows = rows.view(np.uint32 if rows.dtype.itemsize == 4 else np.uint64)
    total = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        total ^= column.astype(np.uint64)
        total *= np.uint64(0x9E3779B97F4A7C15)
        total ^= total >> np.uint64(29)
    total *= np.uint64(0xBF58476D1CE4E5B9)
    return (total >> np.uint64(64 - _HASH_BITS)).astype(np.int64)


def unique_faces(faces: np.ndarray) -> np.ndarray:
    """Numbers of the faces (F, 3) that repeat no earlier one in the same orientation, ascending."""
    canonical = np.empty_like(faces)
    for part in _chunks(len(faces)):
        a, b, c = faces[part].T
        low = np.minimum(np.minimum(a, b), c)
        at_a, at_b = a == low, b == low
        canonical[part, 0] = low
        canonical[part, 1] = np.where(at_a, b, np.where(at_b, c, a))
        canonical[part, 2] = np.where(at_a, c, np.where(at_b, a, b))
    return np.flatnonzero(first_equal(canonical) == np.arange(len(faces)))


@dataclass(frozen=True)
class EdgeCounts:
    """Edges of one face, of more than two faces, and of two faces that run through it the same way."""

    open: int
    crowded: int
    contrary: int

    @property
    def closed(self) -> bool:
        return not (self.open or self.crowded or self.contrary)


def count_edges(faces: np.ndarray) -> EdgeCounts:
    """What the edges of proper faces (F, 3) over welded vertices are like."""
    count = len(faces)
    keys = np.empty(3 * count, np.int64)
    top = int(faces.max()) + 1 if count else 0
    for part in _chunks(count):
        for corner in range(3):
            start = faces[part, corner].astype(np.int64)
            end = faces[part, (corner + 1) % 3].astype(np.int64)
            here = (np.minimum(start, end) * top + np.maximum(start, end)) * 2 + (start > end)
            keys[corner * count + part.start : corner * count + part.stop] = here
    keys = torch.from_numpy(keys).sort().values.numpy()
    first = np.ones(len(keys), bool)
    np.not_equal(keys[1:] >> 1, keys[:-1] >> 1, out=first[1:])
    starts = np.flatnonzero(first)
    sizes = np.diff(starts, append=len(keys))
    pairs = starts[sizes == 2]
    contrary = int((keys[pairs] == keys[pairs + 1]).sum())
    return EdgeCounts(int((sizes == 1).sum()), int((sizes > 2).sum()), contrary)


def signed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Volume by the divergence theorem, in chunks; of vertices (V, 3) float64 that stand about the origin."""
    total = 0.0
    for part in _chunks(len(faces)):
        a, b, c = (vertices[faces[part, corner]] for corner in range(3))
        total += float(np.einsum("nd,nd->", a, np.cross(b, c)))
    return total / 6
