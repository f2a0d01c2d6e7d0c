import math

import pytest
import torch

from fastshape.geometry import Mesh, count_salient_edges, salient_edges, shapes

CORNERS = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])


def box() -> Mesh:
    """The cube [-1, 1]^3; the diagonals of its sides are flat edges."""
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = [face for a, b, c, d in quads for face in ([a, b, c], [a, c, d])]
    return Mesh(CORNERS.clone(), torch.tensor(faces))


def soup(mesh: Mesh) -> Mesh:
    corners = mesh.triangles.reshape(-1, 3).contiguous()
    return Mesh(corners, torch.arange(len(corners)).reshape(-1, 3))


def prism(sides: int) -> Mesh:
    angle = torch.arange(sides) * (2 * math.pi / sides)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    low, high = (torch.cat([ring, torch.full((sides, 1), z)], 1) for z in (-1.0, 1.0))
    a = torch.arange(sides)
    b = (a + 1) % sides
    walls = [torch.stack([a, b, b + sides], 1), torch.stack([a, b + sides, a + sides], 1)]
    caps = [torch.stack([0 * a, b, a], 1)[1:-1], torch.stack([0 * a, a, b], 1)[1:-1] + sides]
    return Mesh(torch.cat([low, high]), torch.cat(walls + caps))


def test_a_cube_has_twelve_edges() -> None:
    mesh = box()
    assert mesh.volume == pytest.approx(8)
    edges = salient_edges(mesh)
    assert count_salient_edges(mesh) == 12
    torch.testing.assert_close(edges.dihedral, torch.full((12,), 90.0, dtype=torch.float64))
    assert torch.equal(edges.vertices.unique(), torch.arange(8))
    ends = mesh.vertices[edges.vertices]
    torch.testing.assert_close((ends[:, 0] - ends[:, 1]).norm(dim=1), torch.full((12,), 2.0))
    assert bool((edges.vertices[:, 0] < edges.vertices[:, 1]).all())
    assert bool((edges.faces[:, 0] < edges.faces[:, 1]).all())
    for vertices, faces in zip(edges.vertices, edges.faces, strict=True):
        assert all(set(vertices.tolist()) <= set(mesh.faces[face].tolist()) for face in faces)
    assert count_salient_edges(mesh, 90) == 0
    assert count_salient_edges(mesh, 0) == 12


def test_vertices_are_joined_by_position() -> None:
    edges, loose = salient_edges(shapes.gear()), salient_edges(soup(shapes.gear()))
    torch.testing.assert_close(edges.dihedral.sort().values, loose.dihedral.sort().values)
    assert len(loose.vertices.unique()) == len(edges.vertices.unique())
    signs = soup(Mesh(box().vertices + 1, box().faces))
    signs.vertices[::2] = torch.where(signs.vertices[::2] == 0, -0.0, signs.vertices[::2])
    assert count_salient_edges(signs) == 12


def test_winding_and_copies_and_faces_without_area_do_no_harm() -> None:
    mesh = box()
    faces = mesh.faces.clone()
    faces[::2] = faces[::2].flip(1)
    assert count_salient_edges(Mesh(mesh.vertices, faces)) == 12
    copies = torch.cat([mesh.faces, mesh.faces[3:7], mesh.faces[:2].flip(1), torch.tensor([[0, 0, 1]])])
    edges = salient_edges(Mesh(mesh.vertices, copies))
    assert len(edges.dihedral) == 12
    assert int(edges.faces.max()) < 12


def test_rims_and_edges_of_three_faces_do_not_count() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, -1, 0.5], [0, 0, 1]])
    two = Mesh(vertices, torch.tensor([[0, 1, 2], [1, 0, 3]]))
    edges = salient_edges(two)
    assert edges.vertices.tolist() == [[0, 1]]
    assert float(edges.dihedral[0]) == pytest.approx(math.degrees(math.atan(0.5)), abs=1e-5)
    assert count_salient_edges(Mesh(vertices, torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]]))) == 0
    assert count_salient_edges(Mesh(vertices, torch.zeros(0, 3, dtype=torch.int64))) == 0


def test_rounding_does_not_decide_at_the_angle() -> None:
    for sides in (23, 24):  # 15.65 and 15 degrees
        assert count_salient_edges(prism(sides)) == 2 * sides + (sides if sides < 24 else 0)
    with pytest.raises(ValueError, match="degrees, got -1"):
        salient_edges(box(), -1)
