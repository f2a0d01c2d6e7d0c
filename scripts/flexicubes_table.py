"""Prints csrc/isosurface/flexicubes_table.h, from the tables in fastshape.reference.flexicubes_table.

A test compares the file with what this prints: ``python scripts/flexicubes_table.py > FILE``.
"""

from __future__ import annotations

from case_table import entries

from fastshape.reference.flexicubes_table import EDGES, ambiguous_cases, case_vertices

_HEAD = """// The cases of dual marching cubes; printed by scripts/flexicubes_table.py.
//
// Copyright (c) 2025 NVIDIA CORPORATION & AFFILIATES, Apache-2.0: the tables of FlexiCubes, packed;
// see NOTICE.
//
// Bit i of a case says that corner (i & 1, i >> 1 & 1, i >> 2 & 1) of the cube is inside.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace fastshape {

// Edge e runs from one corner to the other; along y it runs down.
FASTSHAPE_HOST_DEVICE int dual_edge_begin(int e) {
  return static_cast<int>(0x%012xull >> 4 * e & 15);
}
FASTSHAPE_HOST_DEVICE int dual_edge_end(int e) {
  return static_cast<int>(0x%012xull >> 4 * e & 15);
}

"""


def packed_edges(case: int) -> int:
    """The edges of all dual vertices, four bits each; from bit 48 how many each vertex has."""
    groups = case_vertices(case)
    edges = [edge for group in groups for edge in group]
    return sum(edge << 4 * i for i, edge in enumerate(edges)) | sum(
        len(group) << 48 + 4 * i for i, group in enumerate(groups)
    )


def packed_vertices(case: int) -> int:
    """The dual vertex of each edge, two bits each; from bit 24 their number, from bit 28 the edges'."""
    groups = case_vertices(case)
    of_edge = sum(vertex << 2 * edge for vertex, group in enumerate(groups) for edge in group)
    return of_edge | len(groups) << 24 | sum(len(group) for group in groups) << 28


def packed_ambiguity(case: int) -> int:
    """Bit 15: ambiguous. Bits 8-9: axis of the neighbor, bit 10: below. Bits 0-7: the other case."""
    if case not in ambiguous_cases():
        return 0
    axis, direction, other = ambiguous_cases()[case]
    return 1 << 15 | (direction < 0) << 10 | axis << 8 | other


def table() -> str:
    """The header's text."""
    begins = sum(begin << 4 * e for e, (begin, _) in enumerate(EDGES))
    ends = sum(end << 4 * e for e, (_, end) in enumerate(EDGES))
    edges = [packed_edges(case) for case in range(256)]
    vertices = [packed_vertices(case) for case in range(256)]
    ambiguities = [packed_ambiguity(case) for case in range(256)]
    return (
        _HEAD % (begins, ends)
        + entries(
            "dual_edges",
            "uint64_t",
            "cube_case",
            "The edges of the dual vertices, four bits each; from bit 48 how many each vertex has.",
            edges,
            16,
            4,
        )
        + entries(
            "dual_vertices",
            "uint32_t",
            "cube_case",
            "The dual vertex of each edge, two bits each; from bit 24 their number, from bit 28 the edges'.",
            vertices,
            8,
            8,
        )
        + entries(
            "dual_ambiguity",
            "uint16_t",
            "cube_case",
            "Bit 15: ambiguous. Bits 8-9: axis of the neighbor, bit 10: below. Bits 0-7: the other case.",
            ambiguities,
            4,
            12,
        )
        + "}  // namespace fastshape\n"
    )


if __name__ == "__main__":
    print(table(), end="")
