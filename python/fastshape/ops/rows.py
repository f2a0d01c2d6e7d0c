"""Equal rows and edges: what reading a mesh asks of every vertex and face.

Host code for the reading of files, not operators: tensors on the CPU, no gradient, no ``torch.compile``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastshape._library import backend


def first_equal_rows(rows: Tensor) -> Tensor:
    """For every row of (N, C) the number of the first row with the same bits, (N,) int64.

    Args:
        rows: on the CPU, contiguous, of any dtype whose rows are multiples of 4 bytes. Bits are compared:
            0.0 and -0.0 differ, a NaN equals itself.

    Raises:
        TypeError: not a tensor.
        ValueError: wrong shape, not contiguous, or 2^32 - 1 rows and more.

    Device: CPU, of one result for any number of threads; about 25 ns a row.
    """
    first = torch.empty(len(rows), dtype=torch.int64)
    if len(rows):
        backend().first_equal_rows(rows.view(torch.int32), first)
    return first


class EdgeCounts(NamedTuple):
    """Edges of one face, of more than two faces, and of two faces that run through it the same way."""

    open: int
    crowded: int
    contrary: int

    @property
    def closed(self) -> bool:
        """Whether every edge has two faces that run through it in opposite directions."""
        return not any(self)


def count_edges(faces: Tensor, num_vertices: int) -> EdgeCounts:
    """What the edges of a mesh are like.

    Args:
        faces: (F, 3) int32 on the CPU, contiguous, each with three different vertices.
        num_vertices: all indices lie below it.

    Raises:
        TypeError: another dtype.
        ValueError: wrong shape, or an index out of range.
    """
    return EdgeCounts(*backend().count_edges(faces, num_vertices))
