"""The cases of dual marching cubes and their ambiguities, as data.

Copyright (c) 2025 NVIDIA CORPORATION & AFFILIATES, Apache-2.0: ``dmc_table`` and ``check_table`` of
FlexiCubes' ``tables.py``, written in another form; see NOTICE.

Bit i of a case says that corner (i & 1, i >> 1 & 1, i >> 2 & 1) of the cube is inside.
"""

from __future__ import annotations

# The corners of the cube's twelve edges; those along y run down.
EDGES = (
    (0, 1), (1, 5), (4, 5), (0, 4), (2, 3), (3, 7), (6, 7), (2, 6), (2, 0), (3, 1), (7, 5), (6, 4),
)  # fmt: skip

# For each case its dual vertices: for each the edges, as hexadecimal digits, around which it lies.
_VERTICES = """
- 038 019 1389 478 0347 019.478 13479 459 038.459 0145 13458 5789 03579 01578 1357 23b 028b 019.23b
1289b 478.23b 0247b 019.478.23b 12479b 459.23b 028b.459 0145.23b 12458b 5789.23b 02579b 01578.23b
1257b 12a 038.12a 029a 2389a 478.12a 0347.12a 029a.478 23479a 459.12a 038.459.12a 0245a 23458a
5789.12a 03579.12a 02578a 2357a 13ab 018ab 039ab 89ab 478.13ab 0147ab 039ab.478 479ab 459.13ab
018ab.459 0345ab 458ab 5789.13ab 01579ab 03578ab 57ab 67b 038.67b 019.67b 1389.67b 468b 0346b
019.468b 13469b 459.67b 038.459.67b 0145.67b 13458.67b 5689b 03569b 01568b 1356b 2367 02678 019.2367
126789 23468 0246 019.23468 12469 459.2367 02678.459 0145.2367 1245678 235689 02569 0123568 1256
12a.67b 038.12a.67b 029a.67b 2389a.67b 468b.12a 0346b.12a 029a.468b 23469ab 459.12a.67b
038.459.12a.67b 0245a.67b 23458a.67b 5689b.12a 03569b.12a 02568ab 2356ab 1367a 01678a 03679a 6789a
13468a 0146a 034689a 469a 459.1367a 01678a.459 034567a 45678a 135689a 01569a 038.56a 56a 56a 038.56a
019.56a 1389.56a 478.56a 0347.56a 019.478.56a 13479.56a 469a 038.469a 0146a 13468a 6789a 03679a
01678a 1367a 23b.56a 028b.56a 019.23b.56a 1289b.56a 478.23b.56a 0247b.56a 019.478.23b.56a 12479b.56a
469a.23b 028b.469a 0146a.23b 12468ab 6789a.23b 02679ab 01678a.23b 1267ab 1256 038.1256 02569 235689
478.1256 0347.1256 02569.478 2345679 12469 038.12469 0246 23468 126789 0123679 02678 2367 1356b
01568b 03569b 5689b 478.1356b 014567b 03569b.478 45679b 13469b 014689b 0346b 468b 136789b 019.67b
03678b 67b 57ab 038.57ab 019.57ab 1389.57ab 458ab 0345ab 019.458ab 13459ab 479ab 038.479ab 0147ab
13478ab 89ab 039ab 018ab 13ab 2357a 02578a 019.2357a 125789a 23458a 0245a 019.23458a 12459a 23479a
024789a 012347a 478.12a 2389a 029a 01238a 12a 1257b 038.1257b 02579b 235789b 12458b 012345b 024589b
459.23b 12479b 038.12479b 0247b 23478b 1289b 01239b 028b 23b 1357 01578 03579 5789 13458 0145 034589
459 13479 014789 0347 478 1389 019 038 -
"""

# An ambiguous case, the direction of the neighbor across the ambiguous face, and the case that takes its
# place where the neighbor is ambiguous too: C16 and C19 of Nielson's numbering.
_AMBIGUOUS = """
3d+xc2 3e-xc1 5b+ya4 5e-ya1 67+z98 6e+z91 6f+z90 76-z89 7a+y85 7b+y84 7c+x83 7d+x82 9b+z64 9d+z62
9f+z60 a7+y58 ad-y52 b5+y4a b7+y48 b9-z46 bc-x43 be-x41 c7+x38 cb-x34 d3+x2c d7+x28 d9-z26 da-y25
de-y21 e3-x1c e5-y1a e6-z19 eb-x14 ed-y12 f6-z09 f9-z06
"""


def case_vertices(case: int) -> list[list[int]]:
    """The edges of each dual vertex of a case, in the table's order."""
    word = _VERTICES.split()[case]
    return [] if word == "-" else [[int(edge, 16) for edge in group] for group in word.split(".")]


def ambiguous_cases() -> dict[int, tuple[int, int, int]]:
    """Of each ambiguous case: the neighbor's axis, its direction (1 or -1), the other case."""
    return {
        int(word[:2], 16): ("xyz".index(word[3]), 1 if word[2] == "+" else -1, int(word[4:], 16))
        for word in _AMBIGUOUS.split()
    }
