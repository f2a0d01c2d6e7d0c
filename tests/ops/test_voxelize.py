"""`voxelize_mesh` and `voxelize_points`: the voxels that something touches, no others."""

from __future__ import annotations

import pytest
import torch

from fastshape import ops, testing
from fastshape.reference import mesh as reference
from fastshape.testing import generator, random_points


def soup(count: int, size: float, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Triangles of about that size anywhere, some of them beyond the border."""
    middles = 1.2 * random_points(count, seed=seed, dtype=dtype)
    corners = middles[:, None] + size * random_points(count, 3, seed=seed + 1, dtype=dtype)
    return corners.reshape(-1, 3), torch.arange(3 * count).view(-1, 3)


def run(backend, vertices, faces, resolution, box=(-1.0, 1.0)):
    return ops.voxelize_mesh(*backend.put(vertices, faces), resolution, box).cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.02, 0.3, 2.0])
def test_against_the_reference(backend, size, dtype):
    vertices, faces = soup(40, size, dtype=dtype)
    for resolution, box in ((1, (-1.0, 1.0)), (7, (-0.75, 1.0)), (12, (-1.0, 1.0))):
        expected = reference.voxelize_mesh(vertices, faces, resolution, box)
        assert torch.equal(run(backend, vertices, faces, resolution, box), expected)


@pytest.mark.parametrize("kind", ["segments", "points", "slivers", "lattice"])
def test_degenerate_faces_and_ties(backend, kind):
    draw = generator(3)
    if kind == "lattice":  # corners and edges that lie on the voxels' own, exactly
        vertices = torch.randint(-4, 5, (90, 3), generator=draw).double() / 4
        faces = torch.arange(90).view(-1, 3)
    else:
        vertices, faces = soup(30, 1.0, seed=5)
        triangles = vertices.view(-1, 3, 3)
        if kind == "points":
            triangles[:, 1:] = triangles[:, :1]
        else:
            t = torch.rand(30, 1, generator=draw, dtype=torch.float64)
            triangles[:, 2] = triangles[:, 0] + t * (triangles[:, 1] - triangles[:, 0])
            if kind == "slivers":
                triangles[:, 2] += 1e-9 * random_points(30, seed=9, dtype=torch.float64)
            else:
                triangles[:15, 2] = triangles[:15, 1]
    expected = reference.voxelize_mesh(vertices, faces, 8)
    assert len(expected) > 10
    assert torch.equal(run(backend, vertices, faces, 8), expected)


def test_a_hand_made_case(backend):
    # In the plane between two layers, up to the middle of the last voxel: both layers, seven voxels wide.
    vertices = torch.tensor([[-1.0, -1.0, 0.0], [0.6, -1.0, 0.0], [0.6, 0.6, 0.0], [-1.0, 0.6, 0.0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    voxels = run(backend, vertices, faces, 8)
    side = torch.arange(7)
    assert torch.equal(voxels, torch.cartesian_prod(side, side, torch.tensor([3, 4])).int())


def test_every_sample_has_its_voxel_and_every_voxel_its_face(backend):
    """An open surface with another one inside, at a resolution where voxels are smaller than faces."""
    outer, faces = testing.icosphere(2, 0.9)
    inner, more = testing.icosphere(1, 0.3)
    vertices = torch.cat([outer, inner]).float()
    faces = torch.cat([faces[: len(faces) // 2], more + len(outer)])
    resolution = 40
    voxels = run(backend, vertices, faces, resolution)
    weights = torch.rand(200_000, 3, generator=generator(1), dtype=torch.float64)
    weights = -weights.clamp_min(1e-12).log()
    weights /= weights.sum(1, keepdim=True)
    chosen = torch.randint(len(faces), (200_000,), generator=generator(2))
    samples = (vertices.double()[faces[chosen]] * weights[..., None]).sum(1)
    touched = torch.zeros(resolution, resolution, resolution, dtype=torch.bool)
    x, y, z = voxels.long().unbind(1)
    touched[x, y, z] = True
    a, b, c = ((samples + 1) * (resolution / 2)).floor().long().unbind(1)
    assert touched[a, b, c].all()
    # The nearest point of the mesh to a voxel's center, in the largest norm, is within half a voxel: by
    # distances, no farther than half a diagonal; and most voxels hold a sample.
    centers = (voxels.double() + 0.5) * (2 / resolution) - 1
    found = ops.closest_point(centers, ops.build_bvh(vertices.double(), faces))
    assert found.distance.max() <= 3**0.5 / resolution + 1e-12
    sampled = torch.zeros_like(touched)
    sampled[a, b, c] = True
    assert sampled[x, y, z].double().mean() > 0.9
    assert not touched[resolution // 2, resolution // 2, resolution // 2]


def test_order_threads_and_permutations(backend):
    vertices, faces = soup(300, 0.4, dtype=torch.float32)
    expected = run(backend, vertices, faces, 24)
    keys = (expected[:, 0].long() * 24 + expected[:, 1]) * 24 + expected[:, 2]
    assert (keys.diff() > 0).all()
    order = torch.randperm(len(faces), generator=generator(0))
    assert torch.equal(run(backend, vertices, faces[order].roll(1, 1), 24), expected)
    for threads in (1, 3):
        with testing.num_threads(threads):
            assert torch.equal(run(backend, vertices, faces, 24), expected)


def test_a_large_grid(backend):
    """Columns are far longer than what a triangle has in them; keys go beyond 32 bits."""
    vertices = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 0.999], [-1.0, -1.0, -0.9]])
    voxels = run(backend, vertices, torch.tensor([[0, 1, 0]]), 2048)
    assert 2048 <= len(voxels) <= 4 * 2048
    assert voxels.max() == 2047
    assert (voxels[:, 0] - voxels[:, 1]).abs().max() <= 1
    thin = run(backend, vertices, torch.tensor([[0, 1, 2]]), 512)
    samples = vertices[0] + torch.rand(5000, 1, generator=generator(0)) * (vertices[1] - vertices[0])
    mine = {tuple(row) for row in thin.tolist()}
    assert {tuple(row) for row in ((samples.double() + 1) * 256).floor().long().tolist()} <= mine


def test_what_touches_nothing(backend):
    vertices, faces = soup(2, 0.1)
    assert run(backend, vertices, faces[:0], 8).shape == (0, 3)
    assert run(backend, vertices[:0], faces[:0], 8).shape == (0, 3)
    assert run(backend, vertices + 9, faces, 8).shape == (0, 3)
    assert run(backend, vertices, faces, 8).dtype == torch.int32
    for bad in (float("nan"), float("inf")):
        broken = vertices.clone()
        broken[1, 2] = bad
        expected = run(backend, vertices, faces[1:], 8)
        assert torch.equal(run(backend, broken, faces, 8), expected)
    gone = faces.clone()
    gone[0, 0] = 6
    assert torch.equal(run(backend, vertices, gone, 8), run(backend, vertices, faces[1:], 8))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vertices": torch.zeros(4, 2)}, ValueError, r"`vertices` must have shape \(V, 3\), got \(4, 2\)"),
        ({"vertices": torch.zeros(4, 3).half()}, TypeError, "`vertices` must be float32 or float64"),
        ({"vertices": torch.zeros(3, 4).T}, ValueError, "`vertices` must be contiguous"),
        ({"faces": torch.zeros(2, 3).int()}, TypeError, "`faces` must be int64, got int32"),
        ({"faces": torch.zeros(2, 4).long()}, ValueError, r"`faces` must have shape \(F, 3\)"),
        ({"resolution": 0}, ValueError, r"`resolution` must lie in \[1, 1048576\], got 0"),
        ({"resolution": 2**20 + 1}, ValueError, r"`resolution` must lie in"),
        ({"box": (1.0, 1.0)}, ValueError, r"`box` must be two finite numbers, .* got \(1, 1\)"),
        ({"box": (0.0, float("inf"))}, ValueError, "`box` must be two finite numbers"),
    ],
)
def test_wrong_arguments(backend, change, error, message):
    values = {"vertices": torch.zeros(4, 3), "faces": torch.zeros(2, 3).long(), "resolution": 4}
    with pytest.raises(error, match=message):
        ops.voxelize_mesh(**{**values, **change})


def test_operator(backend):
    vertices, faces = soup(5, 0.5)
    testing.check_operator(
        torch.ops.fastshape.voxelize_mesh.default, *backend.put(vertices, faces), 6, -1.0, 1.0
    )
    testing.check_compiles(lambda v, f: ops.voxelize_mesh(v, f, 6) * 2, *backend.put(vertices, faces))


# ---- voxelize_points ---------------------------------------------------------------------------------------


def test_points_by_hand():
    points = torch.tensor(
        [[0.1, 0.6, -1.0], [1.0, 1.0, 1.0], [0.1, 0.6, -0.9], [1.01, 0, 0], [float("nan"), 0, 0]]
    )
    assert ops.voxelize_points(points, 4).tolist() == [[2, 3, 0], [3, 3, 3]]
    assert ops.voxelize_points(points[:1], 4, reach=0.15).tolist() == [
        [1, 2, 0],
        [1, 3, 0],
        [2, 2, 0],
        [2, 3, 0],
    ]
    assert ops.voxelize_points(points[:0], 4).shape == (0, 3)


def test_the_reach_is_the_27_offsets():
    points = random_points(500, dtype=torch.float64) / 2
    resolution = 16
    reach = 1 / (4 * resolution - 1)
    expected = set()
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            for dz in (-1, 0, 1):
                moved = points + reach * torch.tensor([dx, dy, dz])
                moved = moved[(moved.abs() <= 0.5).all(1)]
                expected |= {
                    tuple(v) for v in ((moved + 0.5) * resolution).floor().clamp_max(15).int().tolist()
                }
    found = ops.voxelize_points(points, resolution, (-0.5, 0.5), reach=reach)
    assert found.tolist() == sorted(map(list, expected))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"points": [1.0]}, TypeError, "`points` must be a tensor, got list"),
        ({"points": torch.zeros(2, 3).long()}, TypeError, "`points` must be floating"),
        ({"points": torch.zeros(3)}, ValueError, r"`points` must have shape \(N, 3\)"),
        ({"resolution": 0}, ValueError, "`resolution` must lie in"),
        ({"box": (1.0, 0.0)}, ValueError, "`box` must be two finite numbers"),
        ({"reach": -1.0}, ValueError, "`reach` must be finite and at least 0"),
    ],
)
def test_wrong_points(change, error, message):
    with pytest.raises(error, match=message):
        ops.voxelize_points(**{"points": torch.zeros(4, 3), "resolution": 4, **change})


# ---- project_features --------------------------------------------------------------------------------------


def orthographic(*rows: list[float]) -> torch.Tensor:
    return torch.tensor([*rows, [0.0, 0.0, 0.0, 1.0]])


FRONT = orthographic([1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0])  # x to the right, y up
SIDE = orthographic([0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0])  # z to the right


def ramps(height: int = 8, width: int = 16) -> torch.Tensor:
    """(1, 2, h, w): x and y of each cell's middle, the first row on top."""
    x = (torch.arange(width) + 0.5) * 2 / width - 1
    y = 1 - (torch.arange(height) + 0.5) * 2 / height
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])[None]


def test_features_are_where_their_picture_has_them(backend):
    points = 0.7 * random_points(200)
    maps = torch.cat([ramps(), ramps()])
    arguments = backend.put(maps, torch.stack([FRONT, SIDE]), points)
    result = ops.project_features(*arguments, chunk=64).cpu()
    expected = torch.stack([(points[:, 0] + points[:, 2]) / 2, points[:, 1]], 1)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    visible = torch.zeros(2, 200, dtype=torch.bool)
    visible[0, :100] = visible[1, 50:150] = True
    seen = ops.project_features(*arguments, visible=backend.put(visible)).cpu()
    torch.testing.assert_close(seen[:50, 0], points[:50, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[50:100], expected[50:100], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[100:150, 0], points[100:150, 2], rtol=1e-4, atol=1e-5)
    assert torch.equal(seen[150:], torch.zeros(50, 2))


def test_perspective_and_what_no_picture_shows():
    matrix = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, -1.0, 0]])  # looks along -z
    points = torch.tensor([[0.5, 0.25, -1.0], [0.5, 0.25, -2.0], [0.5, 0.25, 1.0], [3.0, 0.0, -1.0]])
    result = ops.project_features(ramps(), matrix[None], points)
    expected = torch.tensor([[0.5, 0.25], [0.25, 0.125], [0, 0], [0, 0]])
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert ops.project_features(ramps(), matrix[None], points[:0]).shape == (0, 2)


def test_gradient_of_the_maps():
    points = 0.9 * random_points(6, dtype=torch.float64)
    maps = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=generator(0), requires_grad=True)
    matrices = torch.stack([FRONT, SIDE]).double()
    assert torch.autograd.gradcheck(lambda m: ops.project_features(m, matrices, points), maps)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"maps": [1]}, TypeError, "`maps` must be a tensor, got list"),
        ({"points": torch.zeros(2, 3).int()}, TypeError, "`points` must be floating"),
        ({"points": torch.zeros(2, 4)}, ValueError, r"`points` must have shape \(N, 3\)"),
        ({"matrices": torch.zeros(2, 4, 4)}, ValueError, r"`matrices` must have shape \(1, 4, 4\)"),
        ({"maps": torch.zeros(2, 4, 4)}, ValueError, r"`maps` must have shape \(V, C, h, w\)"),
        ({"visible": torch.ones(1, 3).bool()}, ValueError, r"`visible` must have shape \(1, 2\)"),
        ({"chunk": 0}, ValueError, "`chunk` must be at least 1, got 0"),
    ],
)
def test_wrong_projections(change, error, message):
    values = {"maps": ramps(), "matrices": FRONT[None], "points": torch.zeros(2, 3)}
    with pytest.raises(error, match=message):
        ops.project_features(**{**values, **change})
