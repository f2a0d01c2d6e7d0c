import math

import pytest
import torch

from fastshape.geometry import (
    Mesh,
    SharpSamples,
    count_salient_edges,
    salient_edges,
    sample_sharp_edges,
    sample_sharp_points,
    sample_surface,
    shapes,
)
from fastshape.geometry.neighbors import nearest_neighbors
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


def smooth_slab() -> Mesh:
    """Two flat walls |x| < 3 joined by half-cylinders, without lids, smooth everywhere."""
    angle = torch.linspace(-math.pi / 2, math.pi / 2, 64)
    right = torch.stack([3 + angle.cos(), angle.sin()], 1)
    ring = torch.cat([right, -right])
    count = len(ring)
    low, high = (torch.cat([ring, torch.full((count, 1), z)], 1) for z in (0.0, 1.0))
    a = torch.arange(count)
    b = (a + 1) % count
    faces = torch.cat([torch.stack([a, b, b + count], 1), torch.stack([a, b + count, a + count], 1)])
    return Mesh(torch.cat([low, high]), faces)


def test_the_fallback_goes_where_the_surface_bends() -> None:
    mesh = smooth_slab()
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


# ---- Point clouds ------------------------------------------------------------------------------------------


def test_sharp_points_of_a_cube_lie_along_its_edges() -> None:
    cloud = sample_surface(box(), 4000, seeded())
    samples = sample_sharp_points(cloud.points, 3 * cloud.normals, 500, generator=seeded())
    assert torch.equal(samples.points, cloud.points[samples.rows])
    assert torch.equal(samples.normals, cloud.normals[samples.rows])
    assert len(samples.rows.unique()) == 500
    assert samples.num_fallback == 0
    reach = nearest_neighbors(cloud.points, 16).distances.max()
    assert float(box_edge_offset(samples.points).max()) < float(reach)
    # All of them: those that see another side, and nearly all that are closest to an edge.
    close = box_edge_offset(cloud.points) < 0.03
    everything = sample_sharp_points(cloud.points, cloud.normals, samples.num_sharp, generator=seeded())
    found = torch.zeros(4000, dtype=torch.bool).index_fill(0, everything.rows, True)
    assert float(found[close].double().mean()) > 0.99
    assert samples.num_sharp < 3500
    # Those drawn are the ones closest to the edges.
    drawn, all_of_them = (float(box_edge_offset(s.points).mean()) for s in (samples, everything))
    assert drawn < 0.75 * all_of_them


def test_sharp_points_of_a_sphere_come_from_the_fallback() -> None:
    cloud = sample_surface(Mesh(*icosphere(4)), 4000, seeded())
    samples = sample_sharp_points(cloud.points, cloud.normals, 500, generator=seeded())
    assert (samples.num_sharp, samples.num_fallback) == (0, 500)
    assert len(samples.rows.unique()) == 500
    again = sample_sharp_points(cloud.points, cloud.normals, 500, generator=seeded())
    assert torch.equal(samples.rows, again.rows)
    other = sample_sharp_points(cloud.points, cloud.normals, 500, generator=seeded(1))
    assert not torch.equal(samples.rows, other.rows)
    flat = sample_sharp_points(cloud.points, torch.zeros(4000, 3), 4000, generator=seeded())
    assert torch.equal(flat.rows.sort().values, torch.arange(4000))


def test_the_fallback_of_a_cloud_follows_curvature() -> None:
    cloud = sample_surface(smooth_slab(), 6000, seeded())
    samples = sample_sharp_points(cloud.points, cloud.normals, 1000, angle=45, generator=seeded())
    assert samples.num_fallback == 1000
    assert float((samples.points[:, 0].abs() > 2.9).double().mean()) > 0.98


def test_clouds_without_orientation() -> None:
    cloud = sample_surface(Mesh(*icosphere(4)), 3000, seeded())
    signs = torch.where(torch.rand(3000, 1, generator=seeded()) < 0.5, 1.0, -1.0)
    flipped = cloud.normals * signs
    assert sample_sharp_points(cloud.points, flipped, 10).num_sharp > 2900
    assert sample_sharp_points(cloud.points, flipped, 10, oriented=False).num_sharp == 0


def test_wrong_clouds() -> None:
    points = torch.rand(10, 3)
    assert sample_sharp_points(points, points, 10).rows.shape == (10,)
    assert sample_sharp_points(points[:1], points[:1], 1).rows.tolist() == [0]
    assert sample_sharp_points(points[:0], points[:0], 0).points.shape == (0, 3)
    with pytest.raises(ValueError, match=r"same shape \(P, 3\), got \(10, 3\) and \(9, 3\)"):
        sample_sharp_points(points, points[:9], 1)
    with pytest.raises(ValueError, match="number of points, got 11"):
        sample_sharp_points(points, points, 11)
    with pytest.raises(ValueError, match="`normals` must be finite"):
        sample_sharp_points(points, points / 0, 1)
    with pytest.raises(ValueError, match="`points` must be finite"):
        sample_sharp_points(points / 0, points, 1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sample_sharp_points(points, points, 1, num_neighbors=0)


@pytest.mark.parametrize("kind", ["surface", "volume", "clusters", "line", "copies", "few"])
def test_nearest_neighbors_are_exact(kind: str) -> None:
    generator = seeded()

    def rand(count: int) -> torch.Tensor:
        return torch.rand(count, 3, generator=generator)

    points = {
        "surface": lambda: sample_surface(shapes.torus(), 2000, generator).points,
        "volume": lambda: rand(2000).double(),
        "clusters": lambda: torch.cat([rand(1000), rand(600) * 1e-3, rand(400) * 1e-5 + 1]),
        "line": lambda: torch.linspace(-3, 5, 1500)[:, None].repeat(1, 3),
        "copies": lambda: rand(100).repeat(20, 1),
        "few": lambda: rand(12),
    }[kind]()
    k = 11
    found = nearest_neighbors(points, k)
    full = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    full.fill_diagonal_(torch.inf)
    expected = full.topk(k, largest=False).values
    torch.testing.assert_close(found.distances, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(full.gather(1, found.rows), found.distances, rtol=1e-9, atol=1e-12)
    assert all(len(set(row)) == k for row in found.rows.tolist())


def test_neighbors_in_one_place_and_wrong_input() -> None:
    same = nearest_neighbors(torch.ones(5, 3), 3)
    assert float(same.distances.max()) == 0
    assert not bool((same.rows == torch.arange(5)[:, None]).any())
    assert nearest_neighbors(torch.ones(5, 3), 0).rows.shape == (5, 0)
    with pytest.raises(ValueError, match=r"`k` must lie in 0\.\.4, got 5"):
        nearest_neighbors(torch.ones(5, 3), 5)
    with pytest.raises(ValueError, match="shape"):
        nearest_neighbors(torch.ones(5, 2), 1)
