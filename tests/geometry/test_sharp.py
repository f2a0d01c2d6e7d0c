import math

import pytest
import torch

from fastshape.geometry import (
    Mesh,
    SharpSamples,
    count_salient_edges,
    salient_edges,
    sample_sharp_edges,
    shapes,
)
from fastshape.testing import icosphere

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


# ---- Samples -----------------------------------------------------------------------------------------------


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check(samples: SharpSamples, count: int) -> None:
    assert samples.points.shape == samples.normals.shape == (count, 3)
    assert samples.points.dtype == samples.normals.dtype == torch.float32
    torch.testing.assert_close(samples.normals.norm(dim=1), torch.ones(count))


def box_edge_offset(points: torch.Tensor) -> torch.Tensor:
    """Distance of points in the cube to its edges: two coordinates are 1."""
    return (1 - points.abs()).sort(1).values[:, :2].norm(dim=1)


def test_dora_on_a_cube_by_hand() -> None:
    """8 vertices, 3 points on each of 12 edges at t = 1/4, 1/2, 3/4, and 5 at random: 49."""
    samples = sample_sharp_edges(box(), 49, generator=seeded())
    check(samples, 49)
    assert (samples.num_edges, samples.num_vertices, samples.num_fallback) == (12, 8, 0)
    assert {tuple(p) for p in samples.points[:8].tolist()} == {tuple(p) for p in CORNERS.tolist()}
    torch.testing.assert_close(samples.normals[:8], samples.points[:8] / 3**0.5)
    inner = samples.points[8:44]
    along = inner.abs().amin(1)
    assert sorted(along.tolist()) == [0.0] * 12 + [0.5] * 24
    signs = torch.where(inner.abs() == 1, inner, 0.0)
    torch.testing.assert_close(samples.normals[8:44], signs / 2**0.5)
    rest = samples.points[44:]
    assert float(box_edge_offset(rest).max()) == 0
    edges = {tuple(torch.where(p.abs() == 1, p, 0.0).tolist()) for p in rest}
    assert len(edges) == 5  # different ones


def test_dora_with_more_vertices_than_points() -> None:
    mesh = shapes.gear()
    samples = sample_sharp_edges(mesh, 100, generator=seeded())
    check(samples, 100)
    assert samples.num_vertices == 100
    known = mesh.vertices[salient_edges(mesh).vertices.unique()]
    assert len(samples.points.unique(dim=0)) == 100
    assert {tuple(p) for p in samples.points.tolist()} <= {tuple(p) for p in known.tolist()}
    # Fewer new points than edges: only random places.
    some = sample_sharp_edges(box(), 15, generator=seeded())
    assert some.num_vertices == 8
    assert float(box_edge_offset(some.points).max()) == 0


@pytest.mark.parametrize("weighting", ["dora", "length", "angle", "area"])
def test_points_lie_on_sharp_edges(weighting: str) -> None:
    mesh = shapes.gear().transform(torch.diag(torch.tensor([0.5, 0.8, 1.0, 1.0])))
    edges = salient_edges(mesh)
    samples = sample_sharp_edges(mesh, 2000, weighting=weighting, generator=seeded(1))
    check(samples, 2000)
    assert samples.num_edges == len(edges.dihedral) > 0
    assert samples.num_fallback == 0
    a, b = mesh.vertices.double()[edges.vertices].unbind(1)
    offset = samples.points.double()[:, None] - a
    t = ((offset * (b - a)).sum(2) / ((b - a) ** 2).sum(1)).clamp(0, 1)
    assert float((offset - t[:, :, None] * (b - a)).norm(dim=2).amin(1).max()) < 1e-6
    loose = sample_sharp_edges(soup(mesh), 2000, weighting=weighting, generator=seeded(1))
    check(loose, 2000)
    assert loose.num_vertices == samples.num_vertices


def test_length_spaces_points_evenly_and_dora_does_not() -> None:
    """A box whose edges along x are cut into many: by length each side has its share, by Dora's rule the cut
    edges have nearly all."""
    steps = torch.linspace(-1, 1, 41)
    ring = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    vertices = torch.cat([torch.cat([x.expand(4, 1), ring], 1) for x in steps])
    faces = [[0, 2, 1], [0, 3, 2], [160, 161, 162], [160, 162, 163]]
    for i in range(40):
        for j in range(4):
            a, b = 4 * i + j, 4 * i + (j + 1) % 4
            faces += [[a, b, b + 4], [a, b + 4, a + 4]]
    mesh = Mesh(vertices, torch.tensor(faces))
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(8)
    assert count_salient_edges(mesh) == 4 * 40 + 8

    def share(weighting: str) -> float:
        points = sample_sharp_edges(mesh, 6000, weighting=weighting, generator=seeded()).points
        return float((points[:, 1:].abs() == 1).all(1).double().mean())

    assert share("length") == pytest.approx(4 / 12, abs=0.002)
    assert share("angle") == pytest.approx(4 / 12, abs=0.002)
    assert share("dora") > 0.95
    points = sample_sharp_edges(mesh, 2400, weighting="length", generator=seeded()).points
    along = points[(points[:, 1] == 1) & (points[:, 2] == 1), 0].sort().values
    assert len(along) == 200
    torch.testing.assert_close(along.diff(), torch.full((199,), 0.01), atol=1e-5, rtol=0)


def test_angle_and_area_weights() -> None:
    """A roof: its ridge bends by 90 degrees, its eaves by 45 on one side."""
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, -1], [1, 1, -1]])
    vertices = torch.cat([vertices, torch.tensor([[0.0, -1, 1], [1, -1, 1]])])
    faces = torch.tensor([[0, 1, 3], [0, 3, 2], [2, 3, 5], [2, 5, 4], [0, 7, 1], [0, 6, 7]])
    mesh = Mesh(vertices, faces)
    edges = salient_edges(mesh)
    assert sorted(round(float(d), 3) for d in edges.dihedral) == [45, 90]

    def share(weighting: str) -> float:
        points = sample_sharp_edges(mesh, 3000, weighting=weighting, generator=seeded()).points
        return float((points[:, 1] == 1).double().mean())

    assert share("length") == pytest.approx(1 / 2, abs=0.001)
    assert share("angle") == pytest.approx(2 / 3, abs=0.001)
    assert share("area") == pytest.approx(1 / (1 + (1 + 2**0.5) / 2), abs=0.001)


def test_a_sphere_gives_all_points() -> None:
    sphere = Mesh(*icosphere(4))
    samples = sample_sharp_edges(sphere, 20_000, generator=seeded())
    check(samples, 20_000)
    assert (samples.num_edges, samples.num_vertices, samples.num_fallback) == (0, 0, 20_000)
    # Mean curvature is the same everywhere: uniform over the sphere.
    torch.testing.assert_close(samples.points.mean(0), torch.zeros(3), atol=0.025, rtol=0)
    octant = (samples.points > 0).long() @ torch.tensor([1, 2, 4])
    seen = octant.bincount(minlength=8).double()
    assert float(((seen - 2500) ** 2 / 2500).sum()) < 45
    with pytest.raises(ValueError, match="no edge of the mesh is sharper than 15"):
        sample_sharp_edges(sphere, 10, fallback="error")
    assert sample_sharp_edges(box(), 10, fallback="error").num_fallback == 0
    sample_sharp_edges(sphere, 10, fallback="uniform")


def test_the_fallback_goes_where_the_surface_bends() -> None:
    """A slab with a half-cylinder for each of two sides, smooth everywhere: flat faces get nothing."""
    sides = 64
    angle = torch.linspace(-math.pi / 2, math.pi / 2, sides)
    right = torch.stack([3 + angle.cos(), angle.sin()], 1)
    ring = torch.cat([right, -right])
    count = len(ring)
    low, high = (torch.cat([ring, torch.full((count, 1), z)], 1) for z in (0.0, 1.0))
    a = torch.arange(count)
    b = (a + 1) % count
    faces = torch.cat([torch.stack([a, b, b + count], 1), torch.stack([a, b + count, a + count], 1)])
    mesh = Mesh(torch.cat([low, high]), faces)
    bent = sample_sharp_edges(mesh, 5000, generator=seeded())
    assert bent.num_fallback == 5000
    assert float((bent.points[:, 0].abs() > 2.99).double().mean()) > 0.95
    flat = sample_sharp_edges(mesh, 5000, fallback="uniform", generator=seeded())
    expected = 2 * math.pi / (2 * math.pi + 12)
    assert float((flat.points[:, 0].abs() > 3).double().mean()) == pytest.approx(expected, abs=0.04)
    plane = Mesh(CORNERS[:4].clone(), torch.tensor([[0, 1, 3], [0, 3, 2]]))
    check(sample_sharp_edges(plane, 100, generator=seeded()), 100)


def test_spacing_limits_what_goes_on_edges() -> None:
    samples = sample_sharp_edges(box(), 1000, weighting="length", spacing=0.1, generator=seeded())
    check(samples, 1000)
    assert samples.num_fallback == 1000 - 241  # 24 of length
    assert int((box_edge_offset(samples.points) == 0).sum()) >= 241
    assert sample_sharp_edges(box(), 100, spacing=0.1).num_fallback == 0


def test_normals_that_cancel_and_neighbors_that_disagree() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 1, 0]])
    folded = Mesh(vertices, torch.tensor([[0, 1, 2], [1, 0, 4]]))
    samples = sample_sharp_edges(folded, 50, generator=seeded())
    check(samples, 50)
    assert samples.num_edges == 1
    mesh = box()
    faces = mesh.faces.clone()
    faces[10:] = faces[10:].flip(1)
    samples = sample_sharp_edges(Mesh(mesh.vertices, faces), 80, generator=seeded())
    check(samples, 80)
    inner = samples.points[8:]
    signs = torch.where(inner.abs() == 1, inner, 0.0) / 2**0.5
    assert bool(((samples.normals[8:] * signs).sum(1).abs() > 0.99).all())


def test_the_generator_decides_the_sharp_samples() -> None:
    mesh = shapes.plate()
    for weighting in ("dora", "length"):
        first, again, other = (
            sample_sharp_edges(mesh, 777, weighting=weighting, generator=seeded(seed)) for seed in (0, 0, 1)
        )
        assert torch.equal(first.points, again.points)
        assert torch.equal(first.normals, again.normals)
        assert not torch.equal(first.points, other.points)
    check(sample_sharp_edges(mesh, 0), 0)


def test_wrong_arguments_of_sharp_samples() -> None:
    mesh = box()
    with pytest.raises(ValueError, match="at least 0, got -1"):
        sample_sharp_edges(mesh, -1)
    with pytest.raises(ValueError, match="`weighting` must be"):
        sample_sharp_edges(mesh, 1, weighting="none")
    with pytest.raises(ValueError, match="`fallback` must be"):
        sample_sharp_edges(mesh, 1, fallback="none")
    with pytest.raises(ValueError, match="`spacing` must be positive"):
        sample_sharp_edges(mesh, 1, spacing=0)
    with pytest.raises(ValueError, match="no surface area"):
        sample_sharp_edges(Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])), 1)
    with pytest.raises(ValueError, match="no surface area"):
        sample_sharp_edges(Mesh(mesh.vertices, mesh.faces[:0]), 1)
