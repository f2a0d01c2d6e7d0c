import json

import pytest
import torch

from fastshape.geometry import Mesh, SurfaceSamples, evaluate, shapes
from fastshape.geometry.metrics import _nearest, compare_samples


def test_scores_by_hand() -> None:
    up = torch.tensor([[0.0, 0, 1]])
    target = SurfaceSamples(
        torch.tensor([[0.0, 0, 0], [1, 0, 0]]), up.expand(2, 3), torch.zeros(2, dtype=torch.long)
    )
    prediction = SurfaceSamples(torch.tensor([[0.0, 0, 0.1]]), -up, torch.zeros(1, dtype=torch.long))
    scores = compare_samples(prediction, target, (0.05, 0.2))
    backward = (0.1 + 1.01**0.5) / 2
    assert scores.chamfer_l1_sum == pytest.approx(0.1 + backward)
    assert scores.chamfer_l1 == pytest.approx((0.1 + backward) / 2)
    assert scores.chamfer_l2_sum == pytest.approx(0.01 + (0.01 + 1.01) / 2)
    assert scores.fscore == pytest.approx({0.05: 0.0, 0.2: 2 * 1 * 0.5 / 1.5})
    assert scores.normal_consistency == pytest.approx(1)
    assert scores.signed_normal_consistency == pytest.approx(-1)


def test_nearest_points_are_those_of_a_table() -> None:
    generator = torch.Generator().manual_seed(0)
    points, targets = (torch.rand(300, 3, generator=generator) for _ in range(2))
    targets[200] = targets[3]
    distance, index = _nearest(points, targets)
    table = torch.cdist(points.double(), targets.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(distance, table.amin(1))
    assert torch.equal(index, table.argmin(1))
    assert 200 not in index


def test_a_perfect_prediction_scores_the_floor() -> None:
    mesh = shapes.torus()
    result = evaluate(mesh, mesh, num_samples=20_000)
    assert result.scores.chamfer_l1 == pytest.approx(result.floor.chamfer_l1, rel=0.02)
    assert result.scores.fscore[0.02] == pytest.approx(result.floor.fscore[0.02], abs=0.01)
    assert result.scores.fscore[0.02] > 0.95
    assert result.scores.fscore[0.001] < 0.5
    assert result.scores.normal_consistency > 0.99
    # The distance to the surface has no floor but float32's.
    assert result.prediction_to_surface < 1e-7
    assert result.target_to_surface < 1e-7
    # Of N points spread over the area A, the nearest lies within sqrt(A / N) / 2 on average.
    assert result.floor.chamfer_l1 == pytest.approx(0.5 * (mesh.area / 20_000) ** 0.5, rel=0.05)


def test_a_shifted_prediction_scores_its_shift() -> None:
    mesh = shapes.torus()
    moved = Mesh(mesh.vertices + torch.tensor([0.0, 0, 0.1]), mesh.faces)
    result = evaluate(moved, mesh, num_samples=10_000)
    assert 0.03 < result.scores.chamfer_l1 < 0.1
    assert 0.03 < result.prediction_to_surface < 0.1
    assert result.target_to_surface == pytest.approx(result.prediction_to_surface, rel=0.05)
    assert result.scores.fscore[0.02] < 0.5


def test_volume_iou_is_that_of_the_solids() -> None:
    corners = torch.tensor([[x, y, z] for x in (0.0, 1) for y in (0.0, 1) for z in (0.0, 1)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    cube = Mesh(corners, faces)
    half = Mesh(corners * torch.tensor([0.5, 1, 1]), faces)
    result = evaluate(half, cube, num_samples=100, num_volume_samples=20_000)
    assert result.volume_iou == pytest.approx(0.5, abs=0.02)
    assert evaluate(cube, cube, num_samples=100, num_volume_samples=1000).volume_iou == 1
    assert evaluate(cube, cube, num_samples=100).volume_iou is None


def test_the_box_is_the_targets() -> None:
    mesh = shapes.torus()
    far = Mesh(mesh.vertices.double() * 1e-3 + 50, mesh.faces)
    result = evaluate(far, far, num_samples=5000)
    assert result.to_dict() == evaluate(far, far, num_samples=5000).to_dict()
    assert result.scores.chamfer_l1 == pytest.approx(
        evaluate(mesh, mesh, num_samples=5000).scores.chamfer_l1, rel=1e-3
    )
    assert set(json.loads(json.dumps(result.to_dict()))["scores"]["fscore"]) == {
        "0.001",
        "0.005",
        "0.01",
        "0.02",
    }
