import pytest
import torch
from raster_cases import cpu_kernels, soup, to_clip

from fastshape import ops, testing
from fastshape.ops import raster
from fastshape.reference import raster as reference


def flat(points, faces, z=0.0, w=1.0):
    points = torch.as_tensor(points, dtype=torch.float64)
    clip = torch.cat([points, torch.full((len(points), 1), z), torch.ones(len(points), 1)], 1) * w
    return clip, torch.tensor(faces)


def square(left, right, bottom, top, **options):
    corners = [[left, bottom], [right, bottom], [right, top], [left, top]]
    return flat(corners, [[0, 1, 2], [0, 2, 3]], **options)


def mask_of(backend, clip, faces, size):
    clip, faces = backend.put(clip, faces)
    seen = ops.rasterize(clip, faces, size)
    mask = (seen.triangle_id >= 0).to(clip.dtype)[..., None]
    return ops.antialias(mask, seen.triangle_id, seen.depth, clip, faces)


# ---- By hand -----------------------------------------------------------------------------------------------


def test_twins_by_hand():
    faces = torch.tensor([[0, 1, 2], [2, 1, 3], [3, 1, 2], [4, 5, 6], [6, 5, 4], [7, 8, 9], [7, 8, 10]])
    expected = reference.edge_twins(faces)
    # 1-2 has three faces, 2-3 and 1-3 two of them.
    assert expected[:3].tolist() == [[-1, -1, -1], [-1, 6, 8], [4, -1, 5]]
    assert expected[3:5].tolist() == [[13, 12, 14], [10, 9, 11]]
    assert expected[5:].tolist() == [[18, -1, -1], [15, -1, -1]]
    assert torch.equal(ops.edge_twins(faces), expected)
    sphere = testing.icosphere(2)[1]
    twins = ops.edge_twins(sphere)
    assert torch.equal(twins, reference.edge_twins(sphere))
    assert torch.equal(twins.view(-1)[twins.view(-1)], torch.arange(3 * len(sphere)))
    assert ops.edge_twins(sphere[:0]).shape == (0, 3)
    with pytest.raises(ValueError, match=r"`faces` must have shape \(F, K\), K at least 3, got \(3,\)"):
        ops.edge_twins(sphere[0])
    # Two quads side by side: edge 1 of the first is edge 3 of the second.
    assert ops.edge_twins(torch.tensor([[0, 1, 2, 3], [1, 4, 5, 2]])).tolist() == [
        [-1, 7, -1, -1],
        [-1, -1, -1, 1],
    ]


def test_a_square_by_hand(backend):
    """Pixels take their share of a square from 1.75 to 5.5 across, from 2.25 to 6.75 down."""
    clip, faces = square(1.75 / 4 - 1, 5.5 / 4 - 1, 1 - 6.75 / 4, 1 - 2.25 / 4)
    mask = mask_of(backend, clip, faces, 8)[..., 0].cpu()
    across = torch.tensor([0, 0.25, 1, 1, 1, 0.5, 0, 0], dtype=torch.float64)
    down = torch.tensor([0, 0, 0.75, 1, 1, 1, 0.75, 0], dtype=torch.float64)
    torch.testing.assert_close(mask[3:6], across.expand(3, 8))
    torch.testing.assert_close(mask[:, 2:5], down[:, None].expand(8, 3))


# ---- Against the reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["soup", "sphere", "fine sphere"])
def test_against_the_reference(backend, kind, dtype):
    if kind == "soup":
        clip, faces = soup(25, seed=3, dtype=dtype)
    else:
        vertices, faces = testing.icosphere(1 if kind == "sphere" else 3)
        vertices = vertices * torch.tensor([1, 0.7, 0.9]) + 0.013
        clip = to_clip(vertices, turn=0.4, dtype=dtype)
    size = (15, 18)
    ids, _, depth, _ = reference.rasterize(clip, faces, size)
    g = testing.generator(0)
    image = torch.rand(*size, 2, generator=g, dtype=dtype)
    weight = torch.randn(*size, 2, generator=g, dtype=torch.float64)

    def grads(function, image, clip):
        image, clip = image.clone().requires_grad_(), clip.clone().requires_grad_()
        result = function(image, clip)
        return result.detach(), *torch.autograd.grad((result * weight.to(result)).sum(), (image, clip))

    faces_here, ids_here, depth_here = backend.put(faces, ids, depth.to(dtype))
    got = grads(lambda i, c: ops.antialias(i, ids_here, depth_here, c, faces_here), *backend.put(image, clip))
    want = grads(lambda i, c: reference.antialias(i, ids, depth, c, faces), image.double(), clip.double())
    assert (want[0] != image).any()
    testing.assert_accurate(got[0].cpu(), want[0])
    testing.assert_accurate(got[1].cpu(), want[1])
    testing.assert_gradients_match(got[2], want[2], tolerance=1e-5 if dtype == torch.float32 else 1e-10)


def test_backends_and_threads_agree(backend):
    vertices, faces = testing.icosphere(3)
    views = torch.stack([to_clip(vertices * 0.8, turn=t) for t in (0.1, 0.9, 2.5)])
    image = torch.rand(3, 30, 25, 4, generator=testing.generator(0))
    with cpu_kernels(), testing.num_threads(1):
        seen = ops.rasterize(views, faces, (30, 25))
        expected = ops.antialias(image, seen.triangle_id, seen.depth, views, faces)
    results = []
    for threads in (1, 2, 5):
        with testing.num_threads(threads):
            i, ids, depth, c, f = backend.put(image, seen.triangle_id, seen.depth, views, faces)
            i, c = i.requires_grad_(), c.requires_grad_()
            result = ops.antialias(i, ids, depth, c, f)
            assert torch.equal(result.cpu(), expected)
            results.append((result, *torch.autograd.grad(result.square().sum(), (i, c))))
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert torch.equal(a, b)
    # Images are what they are alone.
    for b in range(3):
        alone = ops.antialias(*backend.put(image[b], seen.triangle_id[b], seen.depth[b], views[b], faces))
        assert torch.equal(alone, results[0][0][b])


# ---- Silhouettes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("w", [1.0, 2.5])
def test_the_derivative_of_a_moving_square(backend, w):
    """The mask's sum is the area, and its derivative by an edge the edge's length."""
    size = (20, 30)
    for step in range(5):
        box = torch.tensor([-0.53, 0.61, -0.47, 0.72], dtype=torch.float64) + 0.017 * step
        box = box.requires_grad_()
        left, right, bottom, top = box
        rows = [[left, bottom], [right, bottom], [right, top], [left, top]]
        corner = torch.stack([torch.stack(r) for r in rows])
        clip = torch.cat([corner, torch.zeros(4, 1), torch.ones(4, 1)], 1) * w
        # Rows and columns that the square crosses in full: between the ends of its other edges.
        mask = mask_of_differentiable(backend, clip, torch.tensor([[0, 1, 2], [0, 2, 3]]), size)
        area = mask.sum()
        grads = torch.autograd.grad(area, box)[0]
        y = reference.pixel_positions(*size)[1][:, 0]
        x = reference.pixel_positions(*size)[0][0]
        rows_crossed = ((y > bottom) & (y < top)).sum().double()
        columns_crossed = ((x > left) & (x < right)).sum().double()
        expected = torch.stack(
            [-15 * rows_crossed, 15 * rows_crossed, -10 * columns_crossed, 10 * columns_crossed]
        )
        torch.testing.assert_close(grads, expected, rtol=1e-9, atol=1e-9)
        # A whole row more or less is half a pixel at each end.
        length = torch.stack([top - bottom, top - bottom, right - left, right - left]).detach()
        exact = torch.tensor([-150, 150, -150, 150], dtype=torch.float64) * length
        torch.testing.assert_close(grads, exact, rtol=0.06, atol=0)


def mask_of_differentiable(backend, clip, faces, size):
    clip = clip.to(backend.device)
    faces = backend.put(faces)
    seen = ops.rasterize(clip.detach(), faces, size)
    mask = (seen.triangle_id >= 0).to(clip.dtype)[..., None]
    return ops.antialias(mask, seen.triangle_id, seen.depth, clip, faces).cpu()


@pytest.mark.parametrize("turn", [0.0, 0.3, 0.785, 1.1])
def test_the_derivative_of_a_growing_shape(backend, turn):
    """Silhouettes of any slope, of triangles of any size: d area / d radius is the perimeter's."""
    size = (64, 64) if backend.name == "emulated" else (200, 200)
    for subdivisions in (0, 2, 4):
        if backend.name == "emulated" and subdivisions > 2:
            continue
        vertices, faces = testing.icosphere(subdivisions)
        c, s = torch.tensor(turn).cos(), torch.tensor(turn).sin()
        vertices = vertices @ torch.tensor([[c, s, 0], [-s, c, 0], [0, 0, 1.0]], dtype=torch.float64)
        radius = torch.tensor(0.61, dtype=torch.float64, requires_grad=True)
        shape = torch.cat([vertices * radius, torch.ones(len(vertices), 1, dtype=torch.float64)], 1)
        mask = mask_of_differentiable(backend, shape, faces, size)
        (grad,) = torch.autograd.grad(mask.sum(), radius)
        # The area in pixels goes with the square of the radius, whatever the shape.
        area = mask.sum().item()
        assert abs(float(grad) / (2 * area / 0.61) - 1) < (0.05 if backend.name == "emulated" else 0.01)


def test_a_sphere_has_smooth_borders(backend):
    vertices, faces = testing.icosphere(3)
    side = 32
    mask = mask_of(backend, torch.cat([vertices * 0.7, torch.ones(len(vertices), 1)], 1), faces, side)
    area = torch.pi * (0.7 * side / 2) ** 2
    hard = ops.rasterize(
        *backend.put(torch.cat([vertices * 0.7, torch.ones(len(vertices), 1)], 1), faces), side
    ).triangle_id
    assert abs(float(mask.sum()) / area - 1) < 0.01
    soft = (mask > 0) & (mask < 1)
    assert soft.sum() > 0.8 * torch.pi * 0.7 * side
    changed = mask[..., 0] != (hard >= 0)
    assert torch.equal(changed, soft[..., 0])


def test_inner_edges_change_nothing(backend):
    """Neighboring triangles of one surface, and crossings where no surface ends."""
    clip, faces = square(-3, 3, -3, 3)
    image = torch.rand(9, 9, 3, generator=testing.generator(0), dtype=torch.float64)
    seen = ops.rasterize(*backend.put(clip, faces), 9)
    assert len(seen.triangle_id.unique()) == 2
    result = ops.antialias(backend.put(image), seen.triangle_id, seen.depth, *backend.put(clip, faces))
    assert torch.equal(result.cpu(), image)


def test_a_surface_before_another(backend):
    """The nearer one's silhouette mixes both colors."""
    near, faces = square(-0.5, 0.3, -2, 2, z=-0.5)
    far, _ = square(-2, 2, -2, 2, z=0.5)
    clip, faces = torch.cat([far, near]), torch.cat([faces, faces + 4])
    seen = ops.rasterize(*backend.put(clip, faces), (4, 10))
    color = torch.tensor([2.0, 2, 1, 1], dtype=torch.float64).to(backend.device)
    image = color[seen.triangle_id][..., None]
    result = ops.antialias(image, seen.triangle_id, seen.depth, *backend.put(clip, faces)).cpu()
    # From 2.5 to 6.5 of 10 pixels: both borders are centers.
    row = torch.tensor([2, 2, 1.5, 1, 1, 1, 1.5, 2, 2, 2], dtype=torch.float64)
    torch.testing.assert_close(result[..., 0], row.expand(4, 10))


def test_gradients(backend):
    """Of the image and of vertices, with triangles that reach behind the camera."""
    clip, faces = soup(8, seed=5, dtype=torch.float64)
    faces = backend.put(faces)
    clip = backend.put(clip)
    seen = ops.rasterize(clip, faces, (7, 6))
    image = torch.rand(7, 6, 2, generator=testing.generator(0), dtype=torch.float64).to(backend.device)

    def function(image, clip):
        return ops.antialias(image, seen.triangle_id, seen.depth, clip, faces)

    assert (function(image, clip) != image).any()
    testing.check_gradients(function, image, clip)


def test_empty(backend):
    clip, faces = square(-0.5, 0.5, -0.5, 0.5)
    for images, channels in ((0, 3), (2, 0)):
        image = torch.zeros(images, 4, 4, channels, dtype=torch.float64)
        ids, depth = (
            torch.zeros(images, 4, 4, dtype=torch.int64),
            torch.zeros(images, 4, 4, dtype=torch.float64),
        )
        image, ids, depth, c, f = backend.put(image, ids, depth, clip, faces)
        c = c.requires_grad_()
        result = ops.antialias(image, ids, depth, c, f)
        assert result.shape == image.shape
        assert (torch.autograd.grad(result.sum(), c)[0] == 0).all()


# ---- The operators -----------------------------------------------------------------------------------------


def operands(dtype=torch.float64):
    clip, faces = square(-0.5, 0.5, -0.5, 0.5)
    clip = clip.to(dtype)
    seen = ops.rasterize(clip, faces, 6)
    image = (seen.triangle_id >= 0).to(dtype)[..., None]
    return image, seen.triangle_id, seen.depth, clip, faces


def test_operators(backend):
    image, ids, depth, clip, faces = operands()
    sets = backend.put(image[None], ids[None], depth[None], clip[None], faces, ops.edge_twins(faces))
    testing.check_operator(raster._antialias_op, *sets)
    testing.check_operator(raster._antialias_backward_op, sets[0], *sets)


def test_compiles():
    image, *others = operands()
    testing.check_compiles(lambda i: ops.antialias(i, *others), image)


def test_wrong_inputs():
    image, ids, depth, clip, faces = operands()
    with pytest.raises(ValueError, match=r"`triangle_id` must have shape \(B, H, W\), got \(1, 5, 6\)"):
        ops.antialias(image, ids[1:].contiguous(), depth, clip, faces)
    with pytest.raises(TypeError, match="`depth` must be float64 as `image`, got float32"):
        ops.antialias(image, ids, depth.float(), clip, faces)
    with pytest.raises(
        ValueError, match=r"`vertices_clip` must have shape \(V, 4\) or \(B, V, 4\), got \(4,\)"
    ):
        ops.antialias(image, ids, depth, clip[0], faces)
    with pytest.raises(ValueError, match=r"`twins` must have shape \(F, 3\), got \(1, 3\)"):
        ops.antialias(image, ids, depth, clip, faces, twins=torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="`twins` must be int64, got int32"):
        ops.antialias(image, ids, depth, clip, faces, twins=torch.zeros(2, 3, dtype=torch.int32))
