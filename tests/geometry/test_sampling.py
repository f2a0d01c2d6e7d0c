import pytest
import torch

from fastshape.geometry import Mesh, sample_queries, sample_surface, shapes


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


def test_queries_follow_their_preset() -> None:
    mesh = shapes.torus()
    queries = sample_queries(mesh, 5000, 4000, preset="vecset", generator=seeded())
    assert float(queries.volume.abs().max()) <= 1
    torch.testing.assert_close(queries.volume.mean(0), torch.zeros(3), atol=0.03, rtol=0)
    major, minor = 0.7 / 0.95, 0.25 / 0.95
    ring = queries.near[:, :2].norm(dim=1) - major
    distance = (torch.stack([ring, queries.near[:, 2]], 1).norm(dim=1) - minor).abs()
    assert 0.003 < float(distance[:2000].mean()) < 0.006
    assert 0.03 < float(distance[2000:].mean()) < 0.06
    with pytest.raises(ValueError, match="must be one of"):
        sample_queries(mesh, 1, 1, preset="none")
    with pytest.raises(ValueError, match="one or more numbers"):
        sample_queries(mesh, 1, 1, sigmas=[])
