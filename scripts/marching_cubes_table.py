"""Prints csrc/isosurface/marching_cubes_table.h, from the rules in fastshape.reference.isosurface.

A test compares the file with what this prints: ``python scripts/marching_cubes_table.py > FILE``.
"""

from __future__ import annotations

from case_table import entries

from fastshape.reference import isosurface

_HEAD = """// The cases of marching cubes; printed by scripts/marching_cubes_table.py.
//
// Bit i of a case says that corner (i & 1, i >> 1 & 1, i >> 2 & 1) of the cell is inside. The
// twelve edges of a cell are numbered in the order of (lower corner's x, y, z; axis).
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace fastshape {

// Of edge e: its lower corner, its axis.
FASTSHAPE_HOST_DEVICE int cell_edge_corner(int e) {
  return static_cast<int>(0x%012xull >> 4 * e & 15);
}
FASTSHAPE_HOST_DEVICE int cell_edge_axis(int e) {
  return static_cast<int>(0x%012xull >> 4 * e & 15);
}

"""


def crossed_edges(case: int) -> int:
    """Bit e: the surface crosses edge e."""
    return sum(
        ((case >> corner ^ case >> (corner | 1 << axis)) & 1) << edge
        for edge, (corner, axis) in enumerate(isosurface.EDGES)
    )


def packed_triangles(case: int) -> int:
    """The edges of the triangles' corners, four bits each from the lowest; the count in the upper four."""
    triangles = isosurface.case_triangles(case)
    corners = [edge for triangle in triangles for edge in triangle]
    return len(triangles) << 60 | sum(edge << 4 * i for i, edge in enumerate(corners))


def table() -> str:
    """The header."""
    corner = sum(corner << 4 * edge for edge, (corner, _) in enumerate(isosurface.EDGES))
    axis = sum(axis << 4 * edge for edge, (_, axis) in enumerate(isosurface.EDGES))
    return (
        _HEAD % (corner, axis)
        + entries(
            "case_edges",
            "uint16_t",
            "cell_case",
            "Bit e: the surface crosses edge e.",
            [crossed_edges(case) for case in range(256)],
            3,
            12,
        )
        + entries(
            "case_triangles",
            "uint64_t",
            "cell_case",
            "The edges of the triangles' corners, four bits each; the number of triangles in the upper four.",
            [packed_triangles(case) for case in range(256)],
            16,
            4,
        )
        + "}  // namespace fastshape\n"
    )


if __name__ == "__main__":
    print(table(), end="")
