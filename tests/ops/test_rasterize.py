import math

import pytest
import torch
from raster_cases import cpu_kernels, flat_grid, perspective, soup, to_clip

from fastshape import ops, testing
from fastshape.ops import raster
from fastshape.reference import raster as reference


def draw(backend, vertices, faces, size, **options):
    return ops.Rasterized(*(t.cpu() for t in ops.rasterize(*backend.put(vertices, faces), size, **options)))


def check(result, vertices, faces, size):
    """Ids equal, numbers accurate."""
    expected = reference.rasterize(vertices, faces, size)
    assert torch.equal(result.triangle_id, expected[0])
    same = vertices.dtype == torch.float32
    for got, want in zip(result[1:], expected[1:], strict=True):
        testing.assert_accurate(got, want, want.float() if same else None, floor=None if same else 1e-12)
    return expected


def triangle(*rows, dtype=torch.float32):
    return torch.tensor(rows, dtype=dtype), torch.tensor([[0, 1, 2]])


# ---- By hand -----------------------------------------------------------------------------------------------


def test_a_triangle_by_hand():
    """Centers on the diagonal belong to the triangle to its right."""
    vertices, faces = triangle([-1, -1, 0, 1], [1, -1, 0, 1], [-1, 1, 0, 1])
    ids, weights, depth, w = reference.rasterize(vertices, faces, (4, 4))
    assert (ids >= 0).int().tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    other = torch.tensor([[1.0, 1, 0, 1], [1, -1, 0, 1], [-1, 1, 0, 1]])
    ids = reference.rasterize(other, faces, (4, 4))[0]
    assert (ids >= 0).int().tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
    assert weights[3, 0].tolist() == [0.75, 0.125, 0.125]
    assert depth[3, 0] == 0
    assert w[3, 0] == 1


def test_the_first_row_is_the_top_and_x_points_right(backend):
    vertices, faces = triangle([0, 0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1])
    shown = draw(backend, vertices, faces, (6, 8)).triangle_id >= 0
    assert shown[:3, 4:].any()
    assert not shown[3:].any()
    assert not shown[:, :4].any()


# ---- Against the reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(4))
def test_against_the_reference(backend, dtype, seed):
    """Triangles through each other, before and behind the camera."""
    vertices, faces = soup(60, seed=seed, dtype=dtype)
    for size in ((23, 37), (8, 8), (1, 5)):
        result = draw(backend, vertices, faces, size)
        expected = check(result, vertices, faces, size)
        assert len(expected[0].unique()) > 2


def test_large_and_small_triangles(backend):
    """Boxes of one thread, of a warp and of all blocks; narrow and wide spans."""
    size = (150, 170)
    vertices, faces = soup(5, seed=9, spread=0.8)
    vertices[:, 3] = vertices[:, 3].abs() + 0.5
    middle, more = soup(30, seed=3)
    middle = torch.cat([middle[:, :2] * 0.2, middle[:, 2:3] * 0.1, middle[:, 3:].abs() + 1], 1)
    small = torch.cat(
        [middle[:, :2] * 5 + 0.02 * torch.randn(90, 2, generator=testing.generator(0)), middle[:, 2:]], 1
    )
    vertices = torch.cat([vertices, middle, small])
    faces = torch.cat([faces, more + 15, more + 105])
    check(draw(backend, vertices, faces, size), vertices, faces, size)


def test_backends_instruction_sets_and_threads_agree(backend):
    sphere, faces = testing.icosphere(3)
    vertices = to_clip(sphere, dtype=torch.float32)
    size = (70, 90)
    with cpu_kernels(), testing.instruction_set("portable"), testing.num_threads(1):
        expected = ops.rasterize(vertices, faces, size)
    for name in testing.instruction_sets() if backend.name == "cpu" else ["portable"]:
        for threads in (1, 2, 5):
            with testing.instruction_set(name), testing.num_threads(threads):
                for got, want in zip(draw(backend, vertices, faces, size), expected, strict=True):
                    assert torch.equal(got, want)


# ---- Analytic ----------------------------------------------------------------------------------------------


def test_a_sphere(backend):
    subdivisions, side = (3, 48) if backend.name == "emulated" else (6, 512)
    sphere, faces = testing.icosphere(subdivisions)
    result = draw(backend, to_clip(sphere), faces, side)
    x, y = reference.pixel_positions(side, side)
    slope = math.tan(math.radians(22.5))
    direction = torch.stack([x * slope, y * slope, -torch.ones_like(x)], -1)
    along, square = 3 * direction[..., 2], (direction**2).sum(-1)
    root = along**2 - square * 8
    inside = root > 0.02
    shown = result.triangle_id >= 0
    assert shown[inside].all()
    assert not shown[root < 0].any()
    w = (-along - root.clamp(min=0).sqrt()) / square  # the directions have z = -1
    deepest = 2 * 4.0**-subdivisions  # how far a face lies below the sphere, seen at a slant
    assert (result.w.double() - w)[inside].abs().max() < 6 * deepest
    z, near, far = -w, 0.5, 20.0
    depth = (far + near) / (far - near) + 2 * far * near / (far - near) / z
    assert (result.depth.double() - depth)[inside].abs().max() < 3 * deepest


def test_a_plane_in_perspective(backend):
    """The weights follow the plane, not the picture."""
    vertices = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, -1, -6], [-1, -1, -6]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    clip = to_clip(vertices, distance=1.0)
    result = draw(backend, clip, faces, (40, 40))
    places = ops.interpolate(*backend.put(vertices, faces, result.triangle_id, result.barycentrics)).cpu()
    shown = result.triangle_id >= 0
    x, y = reference.pixel_positions(40, 40)
    slope = math.tan(math.radians(22.5))
    distance = -1 / (slope * y)  # where the ray through the pixel meets y = -1
    torch.testing.assert_close(result.w[shown].double(), distance[shown], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(places[shown][:, 2].double(), 1 - distance[shown], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        places[shown][:, 0].double(), (slope * x * distance)[shown], rtol=1e-5, atol=1e-5
    )


def test_it_is_what_the_rays_meet(backend):
    """Ids equal but where a ray passes within 1/256 of a pixel of an edge; there t agrees."""
    side = 40 if backend.name == "emulated" else 200
    sphere, faces = testing.icosphere(3)
    bumpy = sphere * (1 + 0.2 * (5 * sphere).sin().sum(1, keepdim=True))
    result = draw(backend, to_clip(bumpy, dtype=torch.float64), faces, (side, side))
    x, y = reference.pixel_positions(side, side)
    slope = math.tan(math.radians(22.5))
    directions = torch.stack([x * slope, y * slope, -torch.ones_like(x)], -1).view(-1, 3)
    origins = torch.tensor([0.0, 0, 3], dtype=torch.float64).expand_as(directions).contiguous()
    hits = ops.cast_rays(*backend.put(origins, directions), ops.build_bvh(*backend.put(bumpy, faces)))
    same = hits.face.cpu().view(side, side) == result.triangle_id
    assert same.float().mean() > 0.98
    both = (hits.face.cpu().view(side, side) >= 0) & (result.triangle_id >= 0)
    torch.testing.assert_close(
        result.barycentrics[same & both],
        hits.barycentric.cpu().view(side, side, 3)[same & both],
        rtol=0,
        atol=1e-9,
    )
    # A pixel of 1/256 is this long in weights of the smallest face.
    edges = hits.barycentric.cpu().view(side, side, 3).amin(-1)
    assert (edges[~same & both] < 0.06).all()
    assert (~same & ~both).float().mean() < 2e-3


# ---- No cracks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_triangulated_square_covers_every_pixel_once(backend, seed):
    vertices, faces = flat_grid(6, 5, seed=seed)
    size = (41, 67)
    # Vertices on pixel centers too: 41 and 67 rows and columns have one in the middle.
    vertices[20, :2] = 0
    single = torch.arange(len(faces) + 1)
    alone = draw(backend, vertices, faces, size, face_offsets=backend.put(single))
    assert ((alone.triangle_id >= 0).sum(0) == 1).all()
    assert (draw(backend, vertices, faces, size).triangle_id == alone.triangle_id.amax(0)).all()


def test_lattice_edges_through_every_center(backend):
    """All vertices on pixel centers, all edges through some."""
    y, x = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    points = torch.stack([(2 * x + 1) / 9 - 1, (2 * y + 1) / 9 - 1], -1).view(-1, 2)
    vertices = torch.cat([points, torch.zeros(81, 1), torch.ones(81, 1)], 1)
    corner = (torch.arange(8)[:, None] * 9 + torch.arange(8)).flatten()
    faces = torch.cat(
        [torch.stack([corner, corner + 1, corner + 10], 1), torch.stack([corner, corner + 10, corner + 9], 1)]
    )
    alone = draw(backend, vertices, faces, 9, face_offsets=backend.put(torch.arange(129)))
    count = (alone.triangle_id >= 0).sum(0)
    # The square from center to center is open on the right and at the bottom.
    assert (count[:-1, :-1] == 1).all()
    assert (count[-1] == 0).all()
    assert (count[:, -1] == 0).all()


def test_a_floor_that_passes_below_the_camera_has_no_cracks(backend):
    """Triangles with one, two and three vertices behind the camera, beside others that are before it."""
    flat, faces = flat_grid(7, 6, seed=5)
    floor = torch.stack([flat[:, 0] * 40, torch.full((len(flat),), -0.9), flat[:, 1] * 30], 1)
    clip = to_clip(floor, distance=0.3, far=200.0)
    behind = (clip[faces][..., 3] <= 0).sum(1)
    assert {0, 1, 2, 3} <= set(behind.tolist())
    alone = draw(backend, clip, faces, (50, 60), face_offsets=backend.put(torch.arange(len(faces) + 1)))
    count = (alone.triangle_id >= 0).sum(0)
    _, y = reference.pixel_positions(50, 60)
    slope = math.tan(math.radians(22.5))
    distance = -0.9 / (slope * y)
    assert (count <= 1).all()
    assert (count[(distance > 0.6) & (distance < 25)] == 1).all()
    assert (count[(distance < 0) | (distance > 31)] == 0).all()
    result = draw(backend, clip, faces, (50, 60))
    shown = result.triangle_id >= 0
    torch.testing.assert_close(result.w[shown].double(), distance[shown], rtol=1e-4, atol=1e-4)


def test_the_camera_inside_a_box(backend):
    corners = torch.tensor([[x, y, z] for x in (-2.0, 2) for y in (-2.0, 2) for z in (-2.0, 2)])
    faces = torch.tensor(
        [
            *([0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]),
            *([2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]),
        ]
    )
    clip = to_clip(corners, distance=0.2, near=0.01, field_of_view=100.0)
    result = draw(backend, clip, faces, (31, 44))
    assert (result.triangle_id >= 0).all()
    x, y = reference.pixel_positions(31, 44)
    slope = math.tan(math.radians(50))
    reach = torch.stack([2 / (slope * x.abs()), 2 / (slope * y.abs()), torch.full_like(x, 2.2)]).amin(0)
    torch.testing.assert_close(result.w.double(), reach, rtol=1e-5, atol=1e-5)


def test_very_large_triangles(backend):
    """Vertices before the camera whose place overflows."""
    vertices, faces = triangle([-1e9, -1e9, 0, 1], [1e9, -1e9, 0, 1], [0, 1e9, 0, 1])
    assert (draw(backend, vertices, faces, 16).triangle_id == 0).all()
    half = torch.tensor([[0, 0, 0, 1.0], [1e9, 1e9, 0, 1], [1e9, -1e9, 0, 1]])
    shown = draw(backend, half, faces, 16).triangle_id == 0
    x, y = reference.pixel_positions(16, 16)
    assert torch.equal(shown[x != y.abs()], (x > y.abs())[x != y.abs()])


# ---- The near and the far plane, ties ----------------------------------------------------------------------


def test_beyond_the_near_and_the_far_plane(backend):
    vertices, faces = triangle([-1, -1, -3, 1], [3, -1, 5, 1], [-1, 3, -3, 1])  # z = -3 .. 5 over x = -1 .. 3
    result = draw(backend, vertices, faces, 20)
    x, _ = reference.pixel_positions(20, 20)
    z = -3 + 2 * (x + 1)
    seen = (z >= -1) & (z <= 1)
    assert torch.equal(
        result.triangle_id == 0, seen & (reference.rasterize(vertices, faces, (20, 20))[0] == 0)
    )
    torch.testing.assert_close(
        result.depth[seen & (result.triangle_id == 0)], z.float()[seen & (result.triangle_id == 0)]
    )
    for z_all in (-1.0, 1.0):  # on the planes: in view
        vertices[:, 2] = z_all
        assert (draw(backend, vertices, faces, 20).triangle_id == 0).any()
        vertices[:, 2] = z_all * 1.0001
        assert not (draw(backend, vertices, faces, 20).triangle_id == 0).any()


def test_ties_go_to_the_lowest_face(backend):
    vertices, faces = flat_grid(3, 3)
    twice = torch.cat([faces, faces, faces])
    assert (draw(backend, vertices, twice, 30).triangle_id < len(faces)).all()


def test_the_nearest_is_seen_from_both_sides(backend):
    vertices = torch.tensor([[-1.0, -1, z, 1] for z in (0.5, -0.5)])
    vertices = torch.cat(
        [vertices, vertices * torch.tensor([-3, 1, 1, 1]), vertices * torch.tensor([1, -3, 1, 1])]
    )
    for faces in ([[0, 2, 4], [1, 3, 5]], [[0, 4, 2], [1, 5, 3]]):
        result = draw(backend, vertices, torch.tensor(faces), 8)
        assert (result.triangle_id == 1).all()
        assert (result.depth == -0.5).all()


# ---- Triangles that are none -------------------------------------------------------------------------------


def test_triangles_that_are_not_drawn(backend):
    nan, inf = torch.nan, torch.inf
    good = [[-1.0, -1, 0, 1], [1, -1, 0, 1], [-1, 1, 0, 1]]
    rows = [*good, [nan, 0, 0, 1], [0, inf, 0, 1], [0, 0, 0, nan], [0, 0, nan, 1]]
    rows += [[0, 0, 0, 0], [0, 0, 0, -1]]
    vertices = torch.tensor(rows)
    bad = [[0, 1, i] for i in (3, 4, 5, 6)]
    bad += [[0, 0, 1], [0, 1, 1], [2, 2, 2], [7, 7, 7], [8, 8, 8], [0, 1, -1], [0, 1, 9], [0, 2**40, 1]]
    result = draw(backend, vertices, torch.tensor(bad), 12)
    assert (result.triangle_id == -1).all()
    assert (result.barycentrics == 0).all()
    assert (result.depth == 1).all()
    assert (result.w == 0).all()
    result = draw(backend, vertices, torch.tensor([*bad, [0, 1, 2]]), 12)
    assert set(result.triangle_id.unique().tolist()) == {-1, len(bad)}


def test_slivers(backend):
    """Thinner than a sub-pixel: some are drawn by rounding, and their weights are still weights."""
    g = testing.generator(1)
    ends = torch.rand(200, 2, 2, generator=g) * 2 - 1
    third = ends.mean(1) + torch.randn(200, 2, generator=g) * 2e-4
    points = torch.cat([ends, third[:, None]], 1).view(-1, 2)
    vertices = torch.cat([points, torch.rand(600, 1, generator=g), torch.ones(600, 1)], 1)
    faces = torch.arange(600).view(-1, 3)
    result = draw(backend, vertices, faces, 96)
    shown = result.triangle_id >= 0
    assert shown.any()
    weights = result.barycentrics[shown]
    assert (weights >= 0).all()
    assert (weights <= 1).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    z = vertices[faces[result.triangle_id[shown]]][:, :, 2]
    assert (result.depth[shown] >= z.amin(1) - 1e-6).all()
    assert (result.depth[shown] <= z.amax(1) + 1e-6).all()


def test_empty(backend):
    vertices, faces = triangle([-1, -1, 0, 1], [1, -1, 0, 1], [-1, 1, 0, 1])
    for v, f in ((vertices, faces[:0]), (vertices[:0], faces[:0])):
        result = draw(backend, v, f, (3, 4))
        assert (result.triangle_id == -1).all()
    batched = draw(backend, vertices[None][:0], faces, (3, 4))
    assert batched.barycentrics.shape == (0, 3, 4, 3)
    none = draw(backend, vertices, faces, 5, face_offsets=backend.put(torch.tensor([0])))
    assert none.triangle_id.shape == (0, 5, 5)


# ---- Many images -------------------------------------------------------------------------------------------


def test_views_are_what_they_are_alone(backend):
    sphere, faces = testing.icosphere(1)
    sphere = sphere * torch.tensor([1, 0.6, 0.8])
    views = torch.stack([to_clip(sphere, turn=t, aspect=1.5) for t in (0.0, 0.7, 2.0, 3.0, 4.0)])
    for threads in (1, 2):
        with testing.num_threads(threads):
            together = draw(backend, views, faces, (20, 30))
            for b, view in enumerate(views):
                for got, want in zip(together, draw(backend, view, faces, (20, 30)), strict=True):
                    assert torch.equal(got[b], want)


def test_each_image_its_mesh(backend):
    meshes = [testing.icosphere(s) for s in (1, 0, 2)]
    clips = [to_clip(v, turn=t) for t, (v, _) in enumerate(meshes)]
    starts = torch.tensor([0, *(len(c) for c in clips)]).cumsum(0)
    faces = torch.cat([f + s for (_, f), s in zip(meshes, starts.tolist(), strict=False)])
    # An image in between has no faces.
    counts = torch.tensor([0, len(meshes[0][1]), len(meshes[1][1]), 0, len(meshes[2][1])])
    offsets = counts.cumsum(0)
    result = draw(backend, torch.cat(clips), faces, (17, 21), face_offsets=backend.put(offsets))
    assert (result.triangle_id[2] == -1).all()
    for image, mesh in ((0, 0), (1, 1), (3, 2)):
        alone = draw(backend, clips[mesh], meshes[mesh][1], (17, 21))
        shown = alone.triangle_id >= 0
        assert torch.equal(
            result.triangle_id[image] - offsets[image], alone.triangle_id.where(shown, -1 - offsets[image])
        )
        for got, want in zip(result[1:], alone[1:], strict=True):
            assert torch.equal(got[image], want)


def test_a_large_image(backend):
    if backend.name == "emulated":
        pytest.skip("17 million pixels, one by one")
    sphere, faces = testing.icosphere(4)
    result = draw(backend, to_clip(sphere), faces, (4099, 4097))
    small = draw(backend, to_clip(sphere), faces, 256)
    share = [(r.triangle_id >= 0).double().mean() for r in (result, small)]
    assert abs(share[0] - share[1]) < 2e-3


# ---- Gradients ---------------------------------------------------------------------------------------------


def test_gradients(backend):
    vertices, faces = soup(12, seed=2, dtype=torch.float64)
    vertices[:, 3] = vertices[:, 3].abs() + 0.8
    size = (6, 7)
    ids = draw(backend, vertices, faces, size).triangle_id
    assert len(ids.unique()) > 4

    def function(clip):
        result = ops.rasterize(clip, faces, size)
        assert torch.equal(result.triangle_id.cpu(), ids)
        values = ops.interpolate(clip[:, :3].contiguous(), faces, result.triangle_id, result.barycentrics)
        return result.barycentrics, result.depth, result.w, values

    if backend.name == "cuda":
        faces = backend.put(faces)
    testing.check_gradients(function, backend.put(vertices))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_the_references(backend, dtype):
    sphere, faces = testing.icosphere(2)  # turned, so that no edge runs through centers
    vertices = to_clip(sphere * torch.tensor([1, 0.9, 1.1]) + 0.0123, turn=0.3, dtype=dtype)
    size = (33, 29)
    g = testing.generator(0)
    weights = [torch.randn(*size, 3, generator=g, dtype=torch.float64)]
    weights += [torch.randn(*size, generator=g, dtype=torch.float64) for _ in range(2)]
    ids, shares, *_ = reference.rasterize(vertices, faces, size)
    held = (ids >= 0) & (shares == 0).any(-1)  # there the gradient is that of the point on the edge
    assert 0 < held.sum() < 20
    for w in weights:
        w[held] = 0
    grads = []
    for function, like in (
        (lambda c: ops.rasterize(c, backend.put(faces), size), dtype),
        (lambda c: reference.rasterize(c, faces, size), torch.float64),
    ):
        clip = vertices.to(like)
        clip = (backend.put(clip) if like == dtype and not grads else clip).requires_grad_()
        result = function(clip)
        loss = sum((w.to(r) * r).sum() for w, r in zip(weights, result[1:], strict=True))
        grads.append(torch.autograd.grad(loss, clip)[0].cpu())
    testing.assert_gradients_match(*grads, tolerance=1e-5 if dtype == torch.float32 else 1e-10)


def test_gradients_are_deterministic(backend):
    sphere, faces = testing.icosphere(2)
    views = torch.stack([to_clip(sphere, turn=t) for t in (0.0, 1.0, 2.0)])
    grads = []
    for threads in (1, 2, 5, 1):
        with testing.num_threads(threads):
            for clip in (views, views[:1]):
                clip = backend.put(clip).requires_grad_()
                result = ops.rasterize(clip, backend.put(faces), (24, 31))
                (grad,) = torch.autograd.grad(result.depth.square().sum() + result.w.sum(), clip)
                grads.append(grad)
    for grad in grads[2:]:
        assert torch.equal(grad, grads[0] if grad.shape == grads[0].shape else grads[1])
    assert torch.equal(grads[0][:1], grads[1])


def test_a_part_of_the_outputs(backend):
    vertices, faces = soup(5, dtype=torch.float64)
    clip = backend.put(vertices).requires_grad_()
    result = ops.rasterize(clip, backend.put(faces), 9)
    assert not result.triangle_id.requires_grad
    (grad,) = torch.autograd.grad(result.w.sum(), clip)
    assert grad.isfinite().all()
    assert grad.abs().sum() > 0
    nothing = ops.rasterize(clip, backend.put(faces[:0]), 9)
    assert (torch.autograd.grad(nothing.depth.sum(), clip)[0] == 0).all()


# ---- The operators -----------------------------------------------------------------------------------------


def test_operators(backend):
    sphere, faces = testing.icosphere(0)
    vertices, faces = backend.put(to_clip(sphere)[None], faces)
    testing.check_operator(raster._rasterize_op, vertices, faces, None, 6, 7)
    offsets = backend.put(torch.tensor([0, 5, 20]))
    testing.check_operator(raster._rasterize_op, vertices, faces, offsets, 6, 7)
    ids, weights, depth, w = raster._rasterize_op(vertices, faces, None, 6, 7)
    testing.check_operator(raster._rasterize_backward_op, vertices, faces, ids, weights, None, w)
    values = torch.stack([depth, w], -1)
    testing.check_operator(raster._vertex_sums_op, values, weights, faces, ids, 1, 12)


def test_compiles():
    sphere, faces = testing.icosphere(1)
    testing.check_compiles(lambda c: tuple(ops.rasterize(c, faces, (9, 8))), to_clip(sphere))


def test_wrong_inputs():
    vertices, faces = triangle([-1, -1, 0, 1], [1, -1, 0, 1], [-1, 1, 0, 1])
    with pytest.raises(
        ValueError, match=r"`vertices_clip` must have shape \(V, 4\) or \(B, V, 4\), got \(4,\)"
    ):
        ops.rasterize(vertices[0], faces, 4)
    with pytest.raises(
        ValueError, match=r"`vertices_clip` must have shape \(V, 4\) or \(B, V, 4\), got \(1, 3, 3\)"
    ):
        ops.rasterize(vertices[:, :3].contiguous(), faces, 4)
    with pytest.raises(ValueError, match=r"`faces` must have shape \(F, 3\), got \(1, 2\)"):
        ops.rasterize(vertices, faces[:, :2].contiguous(), 4)
    with pytest.raises(TypeError, match="`faces` must be int64, got int32"):
        ops.rasterize(vertices, faces.int(), 4)
    with pytest.raises(TypeError, match="`vertices_clip` must be float32 or float64, got float16"):
        ops.rasterize(vertices.half(), faces, 4)
    with pytest.raises(ValueError, match="`vertices_clip` must be contiguous"):
        ops.rasterize(vertices.T.contiguous().T, faces, 4)
    with pytest.raises(ValueError, match=r"`size` must be two numbers between 1 and 32768, got \(0, 4\)"):
        ops.rasterize(vertices, faces, (0, 4))
    with pytest.raises(ValueError, match=r"`size` must be two numbers between 1 and 32768, got \(1, 32769\)"):
        ops.rasterize(vertices, faces, (1, 32769))
    with pytest.raises(ValueError, match=r"`face_offsets` must have shape \(B \+ 1,\), got \(1, 2\)"):
        ops.rasterize(vertices, faces, 4, face_offsets=torch.tensor([[0, 1]]))
    with pytest.raises(
        ValueError, match="`vertices_clip` must be of one set or of 3, one for each image, got 2"
    ):
        ops.rasterize(
            vertices.expand(2, 3, 4).contiguous(), faces, 4, face_offsets=torch.tensor([0, 0, 1, 1])
        )
    with pytest.raises(TypeError, match="`face_offsets` must be int64, got int32"):
        ops.rasterize(vertices, faces, 4, face_offsets=torch.tensor([0, 1]).int())


def test_perspective_is_the_usual_matrix():
    near = perspective(90.0, 1.0, 3.0) @ torch.tensor([0, 0, -1.0, 1], dtype=torch.float64)
    far = perspective(90.0, 1.0, 3.0) @ torch.tensor([3, 3, -3.0, 1], dtype=torch.float64)
    assert (near / near[3])[2] == pytest.approx(-1)
    assert (far / far[3]).tolist() == pytest.approx([1, 1, 1, 1])
