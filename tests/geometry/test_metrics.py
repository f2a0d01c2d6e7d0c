"""Every score against a case that can be computed by hand."""

import json
import math

import pytest
import torch
from known_meshes import ball, box, square

from fastshape.geometry import Mesh, SurfaceSamples, detail_level, evaluate, shapes
from fastshape.geometry.levels import LEVEL_BOUNDS
from fastshape.geometry.metrics import (
    compare_occupancy,
    compare_samples,
    near_points,
    sample_visible,
    surface_distance,
)
from fastshape.geometry.nearest import nearest_points


def points_only(prediction: Mesh, **options):
    """Without what the case is not about."""
    return evaluate(prediction, **{"num_volume_samples": 0, "num_near_samples": 0, **options})


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
    assert scores.precision == {0.05: 0, 0.2: 1}
    assert scores.recall == {0.05: 0, 0.2: 0.5}
    assert scores.fscore == pytest.approx({0.05: 0.0, 0.2: 2 * 1 * 0.5 / 1.5})
    assert scores.normal_consistency == pytest.approx(1)
    assert scores.signed_normal_consistency == pytest.approx(-1)
    assert scores.values()["recall@0.2"] == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_points_are_those_of_a_table(dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    points, targets = (torch.rand(300, 3, generator=generator, dtype=dtype) for _ in range(2))
    targets[200] = targets[3]
    distance, index = nearest_points(points, targets)
    table = torch.cdist(points.double(), targets.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(distance, table.amin(1))
    assert torch.equal(index, table.argmin(1))
    assert 200 not in index


def test_surface_distance_by_hand() -> None:
    points = torch.tensor([[0.0, 0, 0.1]] * 18 + [[0.0, 0, -0.3], [0.5 + 0.4, 0, 0]])
    found = surface_distance(points, square())
    assert found.mean == pytest.approx((18 * 0.1 + 0.3 + 0.4) / 20)
    assert found.rms == pytest.approx(((18 * 0.01 + 0.09 + 0.16) / 20) ** 0.5)
    assert found.p95 == pytest.approx(0.3)
    assert found.max == pytest.approx(0.4)


def test_a_perfect_prediction_scores_the_floor() -> None:
    mesh = shapes.torus()
    result = points_only(mesh, target=mesh, num_samples=20_000)
    assert result.scores.chamfer_l1 == pytest.approx(result.floor.chamfer_l1, rel=0.02)
    assert result.scores.fscore[0.02] == pytest.approx(result.floor.fscore[0.02], abs=0.01)
    assert result.scores.normal_consistency > 0.99
    # The distance to the surface has no floor but float32's.
    assert result.hausdorff < 1e-6
    assert result.prediction_to_surface.mean < 1e-7


def test_the_floor_is_what_theory_says() -> None:
    """N points on the area A: a Poisson process of density N / A, nearly flat at its own scale."""
    mesh, count = shapes.torus(), 50_000
    floor = points_only(mesh, target=mesh, num_samples=count).floor
    spread = mesh.area / (math.pi * count)
    assert floor.chamfer_l2_sum == pytest.approx(2 * spread, rel=0.02)
    assert floor.chamfer_l1_sum == pytest.approx((mesh.area / count) ** 0.5, rel=0.01)
    for threshold, value in floor.fscore.items():
        assert value == pytest.approx(1 - math.exp(-(threshold**2) / spread), abs=0.01)


def test_a_shifted_plane_scores_its_shift() -> None:
    """Every number in closed form: distances are the shift, and the sampling adds an exponential."""
    height, count, seed = 0.006, 40_000, 3
    moved = square(2.0, height)
    result = points_only(moved, target=square(2.0), num_samples=count, seed=seed, normalized=True)
    for side in (result.prediction_to_surface, result.target_to_surface):
        assert [side.mean, side.rms, side.p95, side.max] == pytest.approx([height] * 4, rel=1e-5)
    density = math.pi * count / 4  # of the squared distance within the plane, which is exponential
    root = math.sqrt(density) * height
    lone = math.sqrt(math.pi / density) / 2 * math.exp(root**2) * math.erfc(root)
    scores = result.scores
    assert scores.chamfer_l2_sum == pytest.approx(2 * (height**2 + 1 / density), rel=0.02)
    assert scores.chamfer_l1 == pytest.approx(height + lone, rel=0.01)
    for threshold, value in scores.fscore.items():
        within = threshold**2 - height**2
        assert value == pytest.approx(1 - math.exp(-density * within) if within > 0 else 0, abs=0.01)
    assert scores.normal_consistency == pytest.approx(1)
    assert scores.signed_normal_consistency == pytest.approx(1)


def test_a_sphere_against_an_ellipsoid() -> None:
    """A sphere in an ellipsoid that is longer in one direction: distances by quadrature, volumes exactly."""
    longer = 0.3
    result = evaluate(
        ball(5),
        ball(5, (1, 1, 1 + longer)),
        num_samples=50_000,
        num_volume_samples=100_000,
        thresholds=[0.1],
        normalized=True,
    )
    # Points of the spheroid at the parameter t: area element and distance from the unit sphere.
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * math.pi
    area = t.sin() * ((1 + longer) ** 2 * t.sin() ** 2 + t.cos() ** 2).sqrt()
    distance = (t.sin() ** 2 + ((1 + longer) * t.cos()) ** 2).sqrt() - 1
    side = result.target_to_surface
    assert side.mean == pytest.approx(float((area * distance).sum() / area.sum()), rel=0.01)
    assert side.rms == pytest.approx(float((area * distance**2).sum() / area.sum()) ** 0.5, rel=0.01)
    assert side.max == pytest.approx(longer, abs=2e-3)
    assert result.hausdorff == side.max
    # The sphere's points: nearest on the spheroid is never farther than radially.
    assert result.prediction_to_surface.mean < side.mean
    assert result.prediction_to_surface.max == pytest.approx(longer, abs=0.02)
    assert result.scores.recall[0.1] == pytest.approx(
        float(area[distance < 0.1].sum() / area.sum()), abs=0.01
    )
    assert result.occupancy is not None
    assert result.volume_iou == pytest.approx(1 / (1 + longer), abs=0.01)
    assert result.occupancy.clear


def test_faces_turned_over() -> None:
    mesh = shapes.torus()
    result = evaluate(mesh.flip(), mesh, num_samples=5000)
    assert result.scores.normal_consistency == pytest.approx(result.floor.normal_consistency, abs=0.01)
    assert result.scores.signed_normal_consistency == pytest.approx(
        -result.floor.signed_normal_consistency, abs=0.01
    )
    assert result.scores.signed_normal_consistency < -0.98
    assert result.volume_iou == 1  # inside does not depend on the winding


def test_iou_of_overlapping_boxes() -> None:
    """[0, 1] and [0.5, 1.5] along x share one third; at the centers of a lattice that is exact."""
    a, b = box((0, 0, 0), (1, 1, 1)), box((0.5, 0, 0), (1.5, 1, 1))
    steps = (torch.arange(24) + 0.5) / 12 - 0.25
    lattice = torch.cartesian_prod(steps, steps, steps)
    found = compare_occupancy(a, b, lattice, lattice[:0])
    assert found.volume_iou == pytest.approx(1 / 3)
    assert found.volume_accuracy == pytest.approx(1 - 2 * 6 * 12 * 12 / 24**3)
    assert (found.near_iou, found.near_accuracy) == (None, None)
    assert (found.prediction_doubt, found.target_doubt) == (0, 0)
    # Near the faces of b inside [0.5, 1]: the two agree wherever both are asked.
    near = torch.tensor([[0.6, 0.5, 0.9], [1.4, 0.5, 0.9], [0.4, 0.5, 0.9], [0.9, 0.5, 1.1]])
    found = compare_occupancy(a, b, lattice[:0], near, 2)
    assert found.near_iou == pytest.approx(1 / 3)
    assert found.near_accuracy == 0.5  # of the first two


def test_volume_iou_is_that_of_the_solids() -> None:
    cube, half = box((0, 0, 0), (1, 1, 1)), box((0, 0, 0), (0.5, 1, 1))
    result = evaluate(half, cube, num_samples=100, num_volume_samples=20_000)
    assert result.volume_iou == pytest.approx(0.5, abs=0.02)
    assert evaluate(cube, cube, num_samples=100, num_volume_samples=1000).volume_iou == 1
    nothing = evaluate(cube, cube, num_samples=100, num_volume_samples=0, num_near_samples=0)
    assert nothing.occupancy is None
    assert nothing.volume_iou is None
    assert nothing.values()["volume_iou"] is None


def test_no_inside_is_no_iou() -> None:
    result = evaluate(square(1, 0.01), square(), num_samples=100)
    assert result.volume_iou is None
    assert result.group == "raw"


def test_an_unclear_inside_is_said() -> None:
    sheet = shapes.half_pipe()
    result = evaluate(sheet, sheet, num_samples=100)
    assert result.occupancy is not None
    assert result.occupancy.target_doubt > 0.01
    assert not result.occupancy.clear
    assert result.to_dict()["inside_is_clear"] is False


def test_near_points_are_near() -> None:
    mesh = shapes.torus()
    points = near_points(mesh, 5000, 0.05, torch.Generator().manual_seed(0))
    found = surface_distance(points, mesh)
    assert found.max <= 0.05 + 1e-6
    assert found.mean == pytest.approx(0.375 * 0.05, rel=0.1)  # mean |z| in a ball is 3/8 of its radius


def test_visible_points_leave_out_the_inside() -> None:
    both = Mesh.join([ball(3), ball(3, (0.5, 0.5, 0.5))])
    points = sample_visible(both, 2000, torch.Generator().manual_seed(0)).points
    assert points.shape == (2000, 3)
    assert float(points.norm(dim=1).min()) > 0.9
    # A lidless box shows its inside: nothing is left out.
    cup = box((0, 0, 0), (1, 1, 1))
    cup = Mesh(cup.vertices, cup.faces[(cup.vertices[cup.faces][:, :, 2] < 1).any(1)])
    inner = sample_visible(cup, 2000, torch.Generator().manual_seed(0))
    assert float((inner.points[:, 2] < 1e-6).double().mean()) == pytest.approx(1 / 5, abs=0.03)
    visible = evaluate(ball(3), both, num_samples=2000, group="visible", normalized=True)
    raw = evaluate(ball(3), both, num_samples=2000, group="raw", normalized=True)
    assert visible.target_to_surface.max < 1e-6
    assert raw.target_to_surface.max == pytest.approx(0.5, abs=0.03)


def test_the_box_is_the_targets() -> None:
    mesh = shapes.torus()
    far = Mesh(mesh.vertices.double() * 1e-3 + 50, mesh.faces)
    few = {"num_samples": 3000, "num_volume_samples": 500, "num_near_samples": 500}
    result = evaluate(far, far, **few)
    assert result.to_dict() == evaluate(far, far, **few).to_dict()
    assert result.to_dict() != evaluate(far, far, **few, seed=1).to_dict()
    assert result.scores.chamfer_l1 == pytest.approx(evaluate(mesh, mesh, **few).scores.chamfer_l1, rel=1e-3)
    plain = json.loads(json.dumps(result.to_dict()))
    assert {"fscore@0.001", "fscore@0.005", "fscore@0.01", "fscore@0.02"} <= set(plain["floor"])
    assert plain["protocol"]["num_samples"] == 3000
    assert plain["group"] == "watertight"


def test_levels() -> None:
    cube = detail_level(box((0, 0, 0), (1, 1, 1)))
    assert (cube.level, cube.salient_edges, cube.counted_on) == (1, 12, "as given")
    assert detail_level(ball(3)).salient_edges == 0
    sheet = detail_level(square(), resolution=32)  # remeshed, it is a slab, with the edges of its lattice
    assert sheet.salient_edges > 100
    assert sheet.counted_on == "watertight remesh of 32"
    assert evaluate(square(), square(), num_samples=10, level_resolution=32).level == sheet
    # A roof for every row: rows of a folded strip are salient edges.
    for bound, level in zip((*LEVEL_BOUNDS, None), (1, 2, 3, 4), strict=True):
        count = 50_001 if bound is None else bound
        x = torch.arange(count + 2, dtype=torch.float64)
        line = torch.stack([x, torch.zeros_like(x), x % 2], 1)
        vertices = torch.cat([line, line + torch.tensor([0.0, 1, 0])])
        a = torch.arange(count + 1)
        b = a + count + 2
        faces = torch.cat([torch.stack([a, a + 1, b], 1), torch.stack([b, a + 1, b + 1], 1)])
        found = detail_level(Mesh(vertices, faces))
        assert (found.salient_edges, found.level) == (count, level)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "best"}, "`preset` must be one of fastshape, vecset"),
        ({"group": "nice"}, "`group` must be one of"),
        ({"num_samples": 0}, "`num_samples` must be at least 1"),
        ({"num_volume_samples": -1}, "`num_volume_samples` must be at least 0"),
        ({"thresholds": [0.0]}, "`thresholds` must be positive"),
    ],
)
def test_wrong_options(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(square(), square(), **options)


def test_meshes_without_surface() -> None:
    point = Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))
    with pytest.raises(ValueError, match="the prediction has no surface area"):
        evaluate(point, square())
    with pytest.raises(ValueError, match="the target has no surface area"):
        evaluate(square(), point)


def test_a_distance_equal_to_the_threshold_does_not_count() -> None:
    points, normals = torch.zeros(1, 3), torch.tensor([[0.0, 0, 1]])
    ours = SurfaceSamples(points, normals, torch.zeros(1, dtype=torch.int64))
    theirs = ours._replace(points=points + torch.tensor([0.5, 0, 0]))
    scores = compare_samples(ours, theirs, (0.5, 0.51))
    for found in (scores.precision, scores.recall, scores.fscore):
        assert found == {0.5: 0.0, 0.51: 1.0}
