import math

import pytest
import torch

from fastshape import geometry, ops, testing
from fastshape.geometry import zoom

RESOLUTION = 64


def camera(distance=2.0, degrees=40.0, dtype=torch.float32):
    """Along -z from (0.2, -0.1, distance)."""
    k = 1 / math.tan(math.radians(degrees) / 2)
    rows = [[k, 0, 0, -0.2 * k], [0, k, 0, 0.1 * k], [0, 0, -1.2, 1.2 * distance - 0.2], [0, 0, -1, distance]]
    return torch.tensor(rows, dtype=dtype)


def ball_voxels(resolution=RESOLUTION):
    axis = (torch.arange(resolution) + 0.5) / resolution - 0.5
    radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    return ((radius - 0.4).abs() < 0.7 / resolution).nonzero().int()


def project(coords, matrix, resolution=RESOLUTION):
    centers = (coords.double() + 0.5) / resolution - 0.5
    clip = torch.cat([centers, torch.ones(len(coords), 1, dtype=torch.float64)], 1) @ matrix.double().T
    return clip[:, :2] / clip[:, 3:], clip[:, 3]


COORDS = ball_voxels()
MATRIX = camera()


def crop(**options):
    options = {
        "resolution": RESOLUTION,
        "num_range": (100, 2000),
        "generator": testing.generator(0),
        **options,
    }
    return geometry.adaptive_zoom(COORDS, MATRIX, **options)


# ---- The matrix --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1.1, 0.7])
def test_the_box_becomes_the_picture_times_the_scale(scale):
    box = torch.tensor([0.1, 0.3, -0.5, -0.1])
    corners = torch.tensor([[0.1, -0.5], [0.3, -0.1]], dtype=torch.float64)
    new = geometry.zoom_matrix(torch.eye(4, dtype=torch.float64), box, scale=scale)
    moved = torch.nn.functional.pad(corners, (0, 2), value=1.0) @ new.T
    assert torch.allclose(moved[:, :2], torch.tensor([[-scale, -scale], [scale, scale]]).double(), atol=1e-6)
    assert torch.equal(moved[:, 2:], torch.ones(2, 2, dtype=torch.float64))


def test_the_printed_formula():
    """Without s in the offset the middle of the box lands beside the middle of the picture."""
    box, scale = torch.tensor([0.1, 0.3, -0.5, -0.1], dtype=torch.float64), 1.1
    new = geometry.zoom_matrix(torch.eye(4, dtype=torch.float64), box, scale=scale, paper_eq4=True)
    middle = new @ torch.tensor([0.2, -0.3, 0.0, 1.0], dtype=torch.float64)
    assert middle[0].item() == pytest.approx(2 * (scale - 1) * 0.2 / 0.2)
    assert middle[1].item() == pytest.approx(2 * (scale - 1) * -0.3 / 0.4)
    assert torch.allclose(
        new, torch.tensor([[11, 0, 0, -2], [0, 5.5, 0, 1.5], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    )
    same = geometry.zoom_matrix(torch.eye(4), box.float(), scale=1.0, paper_eq4=True)
    assert torch.equal(same, geometry.zoom_matrix(torch.eye(4), box.float(), scale=1.0))


def test_keep_aspect():
    box = torch.tensor([0.1, 0.3, -0.5, -0.1], dtype=torch.float64)
    new = geometry.zoom_matrix(torch.eye(4, dtype=torch.float64), box, scale=1.0, keep_aspect=True)
    assert new[0, 0] == new[1, 1] == pytest.approx(5.0)
    ends = torch.tensor([[0.1, -0.5, 0, 1], [0.3, -0.1, 0, 1]], dtype=torch.float64) @ new.T
    assert torch.allclose(ends[:, :2], torch.tensor([[-0.5, -1], [0.5, 1]], dtype=torch.float64))


def test_a_box_without_a_side_is_not_infinite():
    new = geometry.zoom_matrix(torch.eye(4), torch.tensor([0.2, 0.2, 0.1, 0.1]), scale=1.0)
    assert new[0, 0] == new[1, 1] == pytest.approx(2000.0)
    assert (new @ torch.tensor([0.2, 0.1, 0.0, 1.0]))[:2].abs().max() < 1e-4


# ---- The crop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "num_range", "number"),
    [
        (0.1, (1, 10**6), math.floor(0.1 * len(COORDS))),
        (0.1, (5000, 10**6), 5000),
        (0.3, (1, 700), 700),
        (1.0, (1, 10**6), len(COORDS)),
        (0.01, (10**6, 10**7), len(COORDS)),  # fewer than the least
        (1e-9, (1, 10), 1),
    ],
)
def test_how_many(alpha, num_range, number):
    result = crop(alpha=alpha, num_range=num_range)
    assert len(result.indices) == number
    assert (result.indices.diff() > 0).all()


def test_a_drawn_share_stays_in_its_range():
    sizes = [
        len(crop(alpha=(0.1, 0.3), num_range=(1, 10**6), generator=testing.generator(s)).indices)
        for s in range(20)
    ]
    assert 0.1 * len(COORDS) - 1 <= min(sizes) < max(sizes) <= 0.3 * len(COORDS)


def test_the_nearest_in_the_picture():
    result = crop(query=1234, alpha=0.1, num_range=(1, 10**6))
    place, _ = project(COORDS, MATRIX)
    distance = (place - place[1234]).norm(dim=1)
    inside = torch.zeros(len(COORDS), dtype=torch.bool)
    inside[result.indices] = True
    assert inside[1234]
    assert distance[inside].max() <= distance[~inside].min() + 1e-6
    assert torch.allclose(result.box[0::2].double(), place[inside].amin(0), atol=1e-6)
    assert torch.allclose(result.box[1::2].double(), place[inside].amax(0), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keep_aspect", [False, True])
def test_the_crop_fills_the_new_picture(dtype, keep_aspect):
    matrix = camera(dtype=dtype)
    result = geometry.adaptive_zoom(
        COORDS, matrix, resolution=RESOLUTION, query=50, num_range=(1, 900), keep_aspect=keep_aspect
    )
    assert result.matrix.dtype == dtype
    place, depth = project(COORDS[result.indices], result.matrix)
    sides = torch.stack([-place.amin(0), place.amax(0)])
    assert sides.amax().item() == pytest.approx(1.1, abs=1e-4)
    if not keep_aspect:
        assert torch.allclose(sides, torch.full_like(sides, 1.1), atol=1e-4)
    assert torch.allclose(depth, project(COORDS[result.indices], matrix)[1])  # linear depth is what it was


def test_ties_go_to_the_lowest_row():
    """A plane that faces the camera, with every voxel four times."""
    axis = torch.arange(24, 41)
    plane = torch.cartesian_prod(axis, axis, torch.tensor([32])).int()
    coords = plane.repeat(4, 1)
    matrix = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    distance = (plane[:, :2] - 32).square().sum(1).repeat(4)
    query = 8 * 17 + 8
    for number in (1, 2, 5, 11, 30, 400):
        result = geometry.adaptive_zoom(
            coords, matrix, resolution=RESOLUTION, query=query, num_range=(number, number)
        )
        order = distance.argsort(stable=True)[:number]
        assert torch.equal(result.indices, order.sort().values)


def test_behind_the_camera():
    """From within the ball: what is behind is no part of the crop, and cannot be asked for."""
    matrix = camera(distance=0.0)
    _, depth = project(COORDS, matrix)
    result = geometry.adaptive_zoom(
        COORDS, matrix, resolution=RESOLUTION, alpha=1.0, num_range=(1, 10**6), generator=testing.generator(1)
    )
    assert torch.equal(result.indices, (depth > 0).nonzero()[:, 0])
    behind = int((depth < 0).nonzero()[0])
    with pytest.raises(
        ValueError, match=f"`query` must be the row of a voxel before the camera, got {behind}"
    ):
        geometry.adaptive_zoom(COORDS, matrix, resolution=RESOLUTION, query=behind)
    with pytest.raises(ValueError, match=r"none of .* voxels is before the camera"):
        geometry.adaptive_zoom(COORDS, camera(distance=-2.0), resolution=RESOLUTION)
    with pytest.raises(ValueError, match="none of the `candidates` is before the camera"):
        geometry.adaptive_zoom(COORDS, matrix, resolution=RESOLUTION, candidates=torch.tensor([behind]))


def test_draws():
    first, again, other = (crop(generator=testing.generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.indices, again.indices)
    assert torch.equal(first.matrix, again.matrix)
    assert not torch.equal(first.indices, other.indices)
    candidates = torch.tensor([7, 4000])
    found = set()
    for seed in range(8):
        result = crop(candidates=candidates, num_range=(1, 1), generator=testing.generator(seed))
        found.add(int(result.indices))
    assert found == {7, 4000}


def test_threads_agree():
    results = []
    for threads in (1, 2):
        with testing.num_threads(threads):
            results.append(crop(query=9, num_range=(3000, 3000)))
    assert torch.equal(results[0].indices, results[1].indices)
    assert torch.equal(results[0].matrix, results[1].matrix)


def test_carve_then_zoom():
    """The way it is trained: carve, crop, and every kept voxel is in the new picture times the scale."""
    depth = torch.full((1, 32, 32), 1.9)
    kept = ops.depth_carve(COORDS.contiguous(), depth, MATRIX[None], resolution=RESOLUTION)[1]
    seen = COORDS[kept]
    result = geometry.adaptive_zoom(
        seen, MATRIX, resolution=RESOLUTION, num_range=(50, 500), generator=testing.generator(0)
    )
    place, _ = project(seen[result.indices], result.matrix)
    assert place.abs().max() <= 1.1 + 1e-4


def test_selection_of_equal_distances_is_the_stable_sort():
    distance = torch.randint(0, 50, (3000,), generator=testing.generator(2)).float()
    for number in (1, 59, 60, 1500, 3000):
        assert torch.equal(
            zoom._nearest(distance, number), distance.argsort(stable=True)[:number].sort().values
        )


def test_wrong_inputs():
    with pytest.raises(TypeError, match="`coords` must be int32, got int64"):
        geometry.adaptive_zoom(COORDS.long(), MATRIX, resolution=RESOLUTION)
    with pytest.raises(ValueError, match=r"`coords` must have shape \(N, 3\), got"):
        geometry.adaptive_zoom(COORDS[:, :2], MATRIX, resolution=RESOLUTION)
    with pytest.raises(ValueError, match="none of 0 voxels is before the camera"):
        geometry.adaptive_zoom(COORDS[:0], MATRIX, resolution=RESOLUTION)
    with pytest.raises(ValueError, match=r"`matrix` must be floating point of shape \(4, 4\)"):
        geometry.adaptive_zoom(COORDS, MATRIX[:3], resolution=RESOLUTION)
    with pytest.raises(ValueError, match=r"`alpha` must lie in \(0, 1\]"):
        crop(alpha=0.0)
    with pytest.raises(ValueError, match=r"`alpha` must lie in \(0, 1\]"):
        crop(alpha=(0.3, 0.1))
    with pytest.raises(ValueError, match="`num_range` must ascend from at least 1, got"):
        crop(num_range=(10, 5))
    with pytest.raises(ValueError, match="`query` must be the row of a voxel"):
        crop(query=len(COORDS))
    with pytest.raises(ValueError, match="`scale` must be positive, got 0"):
        crop(scale=0)
    with pytest.raises(ValueError, match=r"`box` must have shape \(4,\)"):
        geometry.zoom_matrix(MATRIX, torch.zeros(3))
    with pytest.raises(ValueError, match=r"`matrix` must be floating point"):
        geometry.zoom_matrix(torch.eye(4).int(), torch.zeros(4))
