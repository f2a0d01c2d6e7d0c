import pytest
import torch

from fastshape.geometry import DistanceField, Mesh, shapes, views_occupancy
from fastshape.geometry.views import sphere_directions
from fastshape.testing import icosphere


def cube_points(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def ball(radius: float = 1.0) -> Mesh:
    vertices, faces = icosphere(4)
    return Mesh(vertices * radius, faces)


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_directions_are_spread() -> None:
    directions = sphere_directions(24)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(24))
    torch.testing.assert_close(directions.mean(0), torch.zeros(3), atol=0.02, rtol=0)
    nearest = (directions @ directions.T - 2 * torch.eye(24)).amax(1)
    assert 0.7 < float(nearest.min()) <= float(nearest.max()) < 0.88


def test_a_ball() -> None:
    points = cube_points(20_000)
    inside = views_occupancy(ball(), points, num_views=12, size=96, epsilon=0)
    radius = points.norm(dim=1)
    assert bool(inside[radius < 0.995].all())
    assert not bool(inside[radius > 1.02].any())
    # Any unit and place, any precision.
    moved = ball(1e-3).to(torch.float64)
    moved = Mesh(moved.vertices + 1e3, moved.faces)
    again = views_occupancy(moved, points.double() * 1e-3 + 1e3, num_views=12, size=96, epsilon=0)
    assert float((again == inside).double().mean()) > 0.999


def test_inner_structure_vanishes_and_winding_does_not_matter() -> None:
    inner = ball(0.5)
    mesh = Mesh.join([ball(), inner.flip(), ball(0.2).flip()])
    points = cube_points(4000)
    inside = views_occupancy(mesh, points, num_views=12, size=64, epsilon=0)
    assert bool(inside[points.norm(dim=1) < 0.99].all())
    turned = mesh.faces.clone()
    turned[::3] = turned[::3].flip(1)
    same = views_occupancy(Mesh(mesh.vertices, turned), points, num_views=12, size=64, epsilon=0)
    assert torch.equal(inside, same)


def test_epsilon_makes_sheets_solid() -> None:
    mesh = shapes.half_pipe()
    points = cube_points(20_000)
    distance = DistanceField(mesh).unsigned(points)
    open_surface = views_occupancy(mesh, points, num_views=12, size=64, epsilon=0)
    assert float(open_surface.double().mean()) < 0.01
    slab = views_occupancy(mesh, points, num_views=12, size=64, epsilon=0.05)
    assert bool(slab[distance < 0.05].all())
    assert overlap(slab, distance < 0.05) > 0.9
    by_pixel = views_occupancy(mesh, points, num_views=12, size=64)  # the side of a pixel
    radius = float((mesh.vertices - mesh.bounds.mean(0)).norm(dim=1).max())
    assert bool(by_pixel[distance < 0.999 * radius / 32].all())


def test_wrong_input() -> None:
    points = cube_points(3)
    with pytest.raises(ValueError, match="without faces"):
        views_occupancy(Mesh(points, torch.zeros(0, 3, dtype=torch.int64)), points)
    with pytest.raises(ValueError, match="all points of the mesh are equal"):
        views_occupancy(Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])), points)
    with pytest.raises(ValueError, match=r"shape \(Q, 3\), got \(3,\)"):
        views_occupancy(ball(), points[0])
    with pytest.raises(ValueError, match="at least 1, got 0 and 512"):
        views_occupancy(ball(), points, num_views=0)
    with pytest.raises(ValueError, match="`epsilon` must be at least 0"):
        views_occupancy(ball(), points, epsilon=-1)
    assert views_occupancy(ball(), points[:0], num_views=2, size=8).shape == (0,)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("ball", 0.995, 1.0),
        ("torus", 0.99, 1.0),
        ("gear", 0.985, 1.0),
        ("knot", 0.985, 1.0),
        ("plate", 0.96, 1.0),
        ("thin plate", 0.85, 0.97),
        ("half_pipe", 0.0, 0.02),
    ],
)
def test_overlap_with_the_winding_number_as_documented(name: str, least: float, most: float) -> None:
    if name == "ball":
        mesh = ball().to(torch.float32)
    else:
        mesh = shapes.plate(0.01) if name == "thin plate" else shapes.make(name)
    points = cube_points(100_000)
    field = DistanceField(mesh)
    truth = field.inside(points)
    inside = views_occupancy(mesh, points, epsilon=0)
    assert least <= overlap(inside, truth) <= most
    # With epsilon: what is that near the surface counts as inside of both.
    epsilon = 0.02
    truth = truth | (field.unsigned(points) < epsilon)
    inside = views_occupancy(mesh, points, epsilon=epsilon)
    if name != "half_pipe":
        assert overlap(inside, truth) > 0.999
    else:
        assert overlap(inside, truth) < 0.2
