"""Equal rows and edges: against plain Python, for any number of threads."""

import pytest
import torch

from fastshape import testing
from fastshape.ops.rows import count_edges, first_equal_rows
from fastshape.testing import generator


def by_hand(rows: torch.Tensor) -> list[int]:
    seen: dict[tuple[int, ...], int] = {}
    return [seen.setdefault(tuple(row), i) for i, row in enumerate(rows.tolist())]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("columns", [1, 3, 7])
@pytest.mark.parametrize("kinds", [1, 2, 50, 10**6])
def test_first_equal_rows(threads: int, columns: int, kinds: int) -> None:
    rows = torch.randint(kinds, (20000, columns), generator=generator(0), dtype=torch.int32)
    with testing.num_threads(threads):
        assert first_equal_rows(rows).tolist() == by_hand(rows)
        assert first_equal_rows(rows.long()).tolist() == by_hand(rows)
        assert first_equal_rows(rows.double()).tolist() == by_hand(rows)
        assert first_equal_rows(rows[:100]).tolist() == by_hand(rows[:100])


def test_rows_that_are_few_or_wrong() -> None:
    assert first_equal_rows(torch.zeros(0, 3)).tolist() == []
    assert first_equal_rows(torch.zeros(3, 2)).tolist() == [0, 0, 0]
    assert first_equal_rows(torch.tensor([[torch.nan], [0.0], [torch.nan], [-0.0]])).tolist() == [0, 1, 0, 3]
    with pytest.raises(ValueError, match=r"`rows` must have shape \(N, C\)"):
        first_equal_rows(torch.zeros(3))
    with pytest.raises(ValueError, match="contiguous"):
        first_equal_rows(torch.zeros(3, 4)[:, ::2].view(3, 2).transpose(0, 1))


def edges_by_hand(faces: torch.Tensor) -> tuple[int, int, int]:
    uses: dict[tuple[int, int], list[bool]] = {}
    for face in faces.tolist():
        for i in range(3):
            a, b = face[i], face[(i + 1) % 3]
            uses.setdefault((min(a, b), max(a, b)), []).append(a > b)
    pairs = [ways for ways in uses.values() if len(ways) == 2]
    alone = sum(len(ways) == 1 for ways in uses.values())
    return alone, len(uses) - alone - len(pairs), sum(ways[0] == ways[1] for ways in pairs)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("num_vertices", [3, 8, 400, 200000])
def test_count_edges(threads: int, num_vertices: int) -> None:
    corners = torch.randint(num_vertices, (3000, 3), generator=generator(1), dtype=torch.int32)
    a, b, c = corners.unbind(1)
    faces = corners[(a != b) & (b != c) & (c != a)]
    with testing.num_threads(threads):
        assert count_edges(faces, num_vertices) == edges_by_hand(faces)


def test_edges_of_a_tetrahedron() -> None:
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype=torch.int32)
    assert count_edges(faces, 4).closed
    assert count_edges(faces[:3], 4) == (3, 0, 0)
    assert count_edges(torch.cat([faces, faces[:1]]), 4) == (0, 3, 0)
    assert count_edges(torch.cat([faces[:3], faces[3:].flip(1)]), 4) == (0, 0, 3)
    assert count_edges(faces[:0], 0).closed
    with pytest.raises(ValueError, match="`faces` has the vertex 3, expected 0 to 2"):
        count_edges(faces, 3)
    with pytest.raises(ValueError, match="`faces` has the vertex -2"):
        count_edges(-faces, 4)
    with pytest.raises(TypeError, match="`faces` must be int32"):
        count_edges(faces.long(), 4)
