import pytest
import torch

from fastshape.geometry import Mesh, SurfaceSamples, farthest_subset, sample_surface, shapes


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_points_lie_on_their_faces_and_follow_the_area() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 5], [3, 0, 5], [0, 2, 5]])
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2], [0, 0, 1], [3, 4, 5]]))
    samples = sample_surface(mesh, 20_000, seeded())
    assert samples.points.dtype == samples.normals.dtype == torch.float32
    share = samples.faces.bincount(minlength=3) / 20_000
    assert share[1] == 0
    assert float(share[2]) == pytest.approx(6 / 7, abs=0.01)
    assert torch.equal(samples.points[:, 2], torch.where(samples.faces == 0, 0.0, 5.0))
    small = samples.points[samples.faces == 0]
    assert float(small[:, :2].sum(1).max()) <= 1 + 1e-6
    torch.testing.assert_close(small.mean(0), torch.tensor([1 / 3, 1 / 3, 0.0]), atol=0.02, rtol=0)
    assert torch.equal(samples.normals, torch.tensor([[0.0, 0, 1]]).expand(20_000, 3))


def test_the_generator_decides() -> None:
    mesh = shapes.torus()
    first, second = sample_surface(mesh, 100, seeded(1)), sample_surface(mesh, 100, seeded(1))
    assert torch.equal(first.points, second.points)
    assert not torch.equal(first.points, sample_surface(mesh, 100, seeded(2)).points)
    assert sample_surface(mesh, 0, seeded()).points.shape == (0, 3)


def test_no_area_is_refused() -> None:
    with pytest.raises(ValueError, match="no surface area"):
        sample_surface(Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])), 10)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        sample_surface(shapes.torus(), -1)


def test_faces_are_drawn_by_their_area() -> None:
    """Chi-square over the 1104 very different faces of the gear, and over the four parts of each of them."""
    mesh = shapes.gear()
    count = 400_000
    samples = sample_surface(mesh, count, seeded(3))
    expected = mesh.face_areas / mesh.area * count
    seen = samples.faces.bincount(minlength=mesh.num_faces).double()
    big = expected >= 10
    square = float(((seen - expected)[big] ** 2 / expected[big]).sum())
    freedom = int(big.sum())
    assert abs(square - freedom) < 5 * (2 * freedom) ** 0.5
    # The midpoints of the sides cut a triangle into four of the same area.
    share = barycentric(mesh, samples)
    part = torch.where(share.amax(1) > 0.5, share.argmax(1), 3).bincount(minlength=4).double()
    assert float(((part - count / 4) ** 2 / (count / 4)).sum()) < 25  # chi-square of 3: 1.5e-5


def barycentric(mesh: Mesh, samples: SurfaceSamples) -> torch.Tensor:
    """(N, 3) float64, from areas, whether the point lies in the face or not."""
    corners, points = mesh.triangles[samples.faces].double(), samples.points.double()
    whole = mesh.face_normals[samples.faces].double() * (2 * mesh.face_areas[samples.faces])[:, None]
    parts = [
        torch.linalg.cross(corners[:, (i + 1) % 3] - points, corners[:, (i + 2) % 3] - points)
        for i in range(3)
    ]
    return torch.stack([(part * whole).sum(1) for part in parts], 1) / (whole * whole).sum(1, keepdim=True)


@pytest.mark.parametrize("name", ["gear", "knot", "half_pipe"])
def test_points_lie_in_their_faces_and_carry_their_normals(name: str) -> None:
    mesh = shapes.make(name)
    samples = sample_surface(mesh, 5000, seeded())
    offset = samples.points.double() - mesh.triangles[samples.faces, 0].double()
    assert float((offset * mesh.face_normals[samples.faces].double()).sum(1).abs().max()) < 1e-6
    area = mesh.face_areas[samples.faces]
    share = barycentric(mesh, samples)
    assert float((share.amin(1) * area.sqrt()).min()) > -1e-6
    assert torch.equal(samples.normals, mesh.face_normals[samples.faces])


def test_faces_without_area_are_never_drawn() -> None:
    """Wherever they stand: first, last, between."""
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0]])
    nothing = [[0, 0, 1], [0, 1, 3]]  # a point twice; three in a line
    faces = torch.tensor([*nothing, [0, 1, 2], *nothing, [1, 3, 2], *nothing])
    samples = sample_surface(Mesh(vertices, faces), 20_000, seeded())
    assert samples.faces.unique().tolist() == [2, 5]
    assert abs(int((samples.faces == 2).sum()) - 10_000) < 500


def test_thinned_points_lie_far_apart() -> None:
    mesh = shapes.torus()
    thin = sample_surface(mesh, 500, seeded(), oversample=5000)
    dense = sample_surface(mesh, 5000, seeded())
    assert torch.equal(thin.points[0], dense.points[0])
    assert torch.equal(thin.normals, mesh.face_normals[thin.faces])
    rows = farthest_subset(dense.points, 500)
    assert torch.equal(thin.points, dense.points[rows])
    assert len(rows.unique()) == 500

    def smallest_gap(points: torch.Tensor) -> float:
        return float((torch.cdist(points, points) + 9 * torch.eye(len(points))).min())

    assert smallest_gap(thin.points) > 5 * smallest_gap(dense.points[:500])
    with pytest.raises(ValueError, match="at least `num_samples` = 10, got 9"):
        sample_surface(mesh, 10, oversample=9)
    with pytest.raises(ValueError, match="number of points, got 5001"):
        farthest_subset(dense.points, 5001)
    assert farthest_subset(dense.points, 0).tolist() == []
    assert sample_surface(mesh, 20, seeded(), oversample=20).points.shape == (20, 3)
