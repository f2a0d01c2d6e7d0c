"""Depth carving: random scenes against the reference, and scenes whose answer is known."""

import math

import pytest
import torch

from fastshape import _C, _library, ops, testing
from fastshape.geometry import Mesh, sample_surface, shapes
from fastshape.ops import carving
from fastshape.reference import carving as reference

INF = math.inf


# ---- Cameras and scenes ------------------------------------------------------------------------------------


def look(eye, target=(0.0, 0.0, 0.0), dtype=torch.float32):
    """World to camera (4, 4), looking along -z."""
    eye, target = torch.tensor(eye, dtype=torch.float64), torch.tensor(target, dtype=torch.float64)
    forward = torch.nn.functional.normalize(target - eye, dim=0)
    axis = torch.eye(3, dtype=torch.float64)[forward.abs().argmin()]
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, axis), dim=0)
    view = torch.eye(4, dtype=torch.float64)
    view[:3, :3] = torch.stack([right, torch.linalg.cross(right, forward), -forward])
    view[:3, 3] = -view[:3, :3] @ eye
    return view.to(dtype)


def perspective(degrees=40.0, dtype=torch.float32):
    k = 1 / math.tan(math.radians(degrees) / 2)
    return torch.tensor([[k, 0, 0, 0], [0, k, 0, 0], [0, 0, -1.2, -0.2], [0, 0, -1, 0]], dtype=dtype)


def orthographic(half=0.8, dtype=torch.float32):
    return torch.diag(torch.tensor([1 / half, 1 / half, -0.5, 1], dtype=dtype))


def depth_of(mesh, view, projection, size=96):
    """Linear depth (H, W) of a mesh by rays through the pixels' centers; inf beside it."""
    inverse = torch.linalg.inv(projection.double() @ view.double())
    x = (torch.arange(size, dtype=torch.float64) + 0.5) * 2 / size - 1
    row, column = torch.meshgrid(-x, x, indexing="ij")
    ends = []
    for z in (-1.0, 1.0):
        clip = torch.stack([column, row, torch.full_like(row, z), torch.ones_like(row)], -1).reshape(-1, 4)
        world = clip @ inverse.T
        ends.append(world[:, :3] / world[:, 3:])
    direction = torch.nn.functional.normalize(ends[1] - ends[0], dim=1)
    start = (
        ends[0] - 2 * direction
        if projection[3, 3] == 1
        else view.double().inverse()[:3, 3].expand_as(ends[0])
    )
    with _library.use_backend(_C):  # the scene is none of the back end's business
        bvh = ops.build_bvh(mesh.vertices, mesh.faces)
        hits = ops.cast_rays(start.float().contiguous(), direction.float(), bvh)
    hit = start + hits.t[:, None].double() * direction
    depth = -(hit @ view[2, :3].double() + view[2, 3].double())
    return torch.where(hits.face >= 0, depth, torch.tensor(INF, dtype=torch.float64)).float().view(size, size)


def surface_voxels(mesh, resolution):
    """Voxels (N, 3) of [-0.5, 0.5]^3 that hold one of many points of the surface."""
    with _library.use_backend(_C):
        points = sample_surface(mesh, 50 * resolution**2, generator=testing.generator(0)).points
    return ((points + 0.5) * resolution).floor().int().clamp(0, resolution - 1).unique(dim=0)


def halved(mesh):
    """A shape of [-1, 1]^3 in the cube of the voxels, with room."""
    return type(mesh)(mesh.vertices * 0.45, mesh.faces)


def ball(radius=0.4):
    vertices, faces = testing.icosphere(4, radius)
    return Mesh(vertices.float(), faces)


def centers(coords, resolution):
    return (coords.double() + 0.5) / resolution - 0.5


EYE = (0.3, 0.5, 2.0)
VIEW, PROJECTION = look(EYE), perspective()


def carve(backend, coords, depth, matrices, **options):
    if depth.ndim == 2:
        depth, matrices = depth[None], matrices[None]
    mask, indices = ops.depth_carve(*backend.put(coords, depth, matrices), **options)
    assert torch.equal(indices, mask.nonzero()[:, 0])
    return mask.cpu()


# ---- Worked out by hand ------------------------------------------------------------------------------------


def by_hand(**options):
    """A camera at the origin that looks along -z at four voxels, w = -z; 2 x 2 pixels."""
    matrix = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, -1, 0]])
    return {"matrices": matrix[None], "bounds": (-4.0, 4.0), "resolution": 8, "neighborhood": 0, **options}


HAND_COORDS = torch.tensor(
    [[4, 4, 1], [3, 4, 1], [3, 3, 1], [4, 3, 0], [4, 4, 4], [0, 4, 1]], dtype=torch.int32
)  # centers (.5, .5, -2.5) (-.5, .5, -2.5) (-.5, -.5, -2.5) (.5, -.5, -3.5) (.5, .5, .5) (-3.5, .5, -2.5)


def test_by_hand(backend):
    depth = torch.tensor([[[2.0, 2.5], [INF, 3.25]]])  # upper left, upper right; lower left, lower right
    options = by_hand()
    run = lambda **more: carve(backend, HAND_COORDS, depth, **{**options, **more}).tolist()  # noqa: E731
    # Upper right at its depth, upper left .5 behind, background, .25 behind; behind the camera, beside it.
    assert run(threshold=0.0) == [True, False, True, False, False, False]
    assert run(threshold=0.25) == [True, False, True, True, False, False]
    assert run(threshold=0.5) == [True, True, True, True, False, False]
    assert run(threshold=0.0, background="drop") == [True, False, False, False, False, False]
    assert run(threshold=0.0, outside="keep") == [True, False, True, False, True, True]
    assert run(threshold=9.0, near=2.6) == [False, False, False, True, False, False]
    assert run(threshold=9.0, far=2.6) == [True, True, True, False, False, False]
    assert run(threshold=0.0, origin="bottom") == [True, True, False, False, False, False]
    assert run(threshold=0.0, neighborhood=1) == [True, True, True, True, False, False]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, -INF])
def test_depth_that_is_none(backend, value):
    depth = torch.tensor([[[2.0, value], [INF, 3.25]]])
    run = lambda **more: carve(backend, HAND_COORDS, depth, **by_hand(threshold=0.0, **more)).tolist()  # noqa: E731
    assert run()[:4] == [True, False, True, False]  # as background
    assert run(background="drop")[:4] == [False, False, False, False]
    assert run(invalid="drop")[:4] == [False, False, True, False]
    assert run(background="drop", invalid="keep")[:4] == [True, False, False, False]


def test_the_reference_by_hand():
    options = by_hand(threshold=0.25)
    depth = torch.tensor([[[2.0, 2.5], [INF, 3.25]]])
    mask, indices = reference.depth_carve(HAND_COORDS, depth, **options)
    assert mask.tolist() == [True, False, True, True, False, False]
    assert indices.tolist() == [0, 2, 3]


def test_thresholds():
    assert ops.carve_threshold(128) == 2 / 128
    assert ops.carve_threshold(128, upsampling=4) == 2 / 512
    assert ops.carve_threshold(64, bounds=(-1, 1)) == 2 / 32


# ---- Against the reference ---------------------------------------------------------------------------------


def random_scene(seed=0, num=700, views=3, size=(13, 17), resolution=24, dtype=torch.float32, batch=None):
    random = testing.generator(seed)
    coords = torch.randint(0, resolution, (num, 3), generator=random, dtype=torch.int32)
    shapes_ = batch or 1
    eyes = torch.randn(shapes_ * views, 3, generator=random, dtype=torch.float64)
    eyes = 1.3 * torch.nn.functional.normalize(eyes, dim=1)  # some voxels are beside the picture
    matrices = torch.stack([perspective(45, dtype) @ look(eye.tolist(), dtype=dtype) for eye in eyes])
    depth = 0.9 + torch.rand(shapes_ * views, *size, generator=random, dtype=dtype)
    kind = torch.rand(depth.shape, generator=random)
    for low, value in ((0.1, INF), (0.05, 0.0), (0.03, math.nan), (0.01, -1.0)):
        depth[kind < low] = value
    if batch is None:
        return coords, depth, matrices
    number = torch.randint(0, batch, (num, 1), generator=random, dtype=torch.int32)
    coords = torch.cat([number, coords], 1)
    return coords, depth.view(batch, views, *size), matrices.view(batch, views, 4, 4)


OPTIONS = [
    {},
    {"combine": "any"},
    {"outside": "drop", "threshold": 0.2},
    {"outside": "keep", "combine": "any", "background": "drop"},
    {"background": "drop", "invalid": "keep", "neighborhood": 2},
    {"invalid": "drop", "near": 1.0, "far": 1.5, "origin": "bottom", "neighborhood": 0},
    {"bounds": (-0.4, 0.6), "threshold": 0.0, "neighborhood": 0},
]


def expected(coords, depth, matrices, resolution, depth_rows=None, **options):
    several = options.get("combine", "all") == "all" and depth.shape[-3] > 1
    background = options.get("background", "keep")
    threshold = options.get("threshold")
    if threshold is None:
        threshold = ops.carve_threshold(resolution, bounds=options.get("bounds", (-0.5, 0.5)))
    return reference.depth_carve(
        coords,
        depth,
        matrices,
        resolution=resolution,
        depth_rows=depth_rows,
        threshold=threshold,
        any_view=options.get("combine") == "any",
        keep_outside=options.get("outside", "keep" if several else "drop") == "keep",
        keep_background=background == "keep",
        keep_invalid=options.get("invalid", background) == "keep",
        bottom_up=options.get("origin") == "bottom",
        **{k: options[k] for k in ("bounds", "near", "far", "neighborhood") if k in options},
    )[0]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [None, 3])
def test_against_the_reference(backend, options, dtype, batch):
    scene = random_scene(dtype=dtype, batch=batch)
    for views in (1, 3):
        coords, depth, matrices = scene
        depth, matrices = depth[..., :views, :, :].contiguous(), matrices[..., :views, :, :].contiguous()
        mask = carve(backend, coords, depth, matrices, resolution=24, **options)
        assert torch.equal(mask, expected(coords, depth, matrices, 24, **options))
        assert 0 < mask.sum() < len(coords)


@pytest.mark.parametrize("batch", [None, 3])
def test_depth_rows(backend, batch):
    """Orthographic: the clip vector's last component is 1, and depth comes from the camera."""
    coords, depth, matrices = random_scene(views=2, batch=batch, dtype=torch.float64)
    views = torch.stack([look(e, dtype=torch.float64) for e in ((0, 0.2, 1.3), (1, 0.8, 0.1))])
    matrices = (orthographic(0.4, torch.float64) @ views).expand_as(matrices).contiguous()
    rows = (-views[:, 2]).expand(*matrices.shape[:-2], 4).contiguous()
    moved = backend.put(coords, depth, matrices, rows)
    mask = ops.depth_carve(*moved[:3], depth_rows=moved[3], resolution=24)[0].cpu()
    assert torch.equal(mask, expected(coords, depth, matrices, 24, depth_rows=rows))
    assert 0 < mask.sum() < len(coords)


def test_instruction_sets_and_threads(instruction_set):
    """Also where runs of one shape of the batch end within a block, and are ordered."""
    for batch, num in ((None, 10_000), (2, 3001), (40, 5000)):
        coords, depth, matrices = random_scene(num=num, batch=batch, views=4)
        order = coords[:, 0].argsort(stable=True)
        for c in (coords, coords[order].contiguous()):
            for options in OPTIONS:
                results = []
                for threads in (1, 2, 5):
                    with testing.num_threads(threads):
                        results.append(ops.depth_carve(c, depth, matrices, resolution=24, **options)[0])
                want = expected(c, depth, matrices, 24, **options)
                assert all(torch.equal(result, want) for result in results)


# ---- Shapes ------------------------------------------------------------------------------------------------


def small(backend):
    return 16 if backend.name == "emulated" else 32


def test_half_of_a_ball_and_its_rim(backend):
    resolution, mesh = small(backend), ball()
    coords = surface_voxels(mesh, resolution)
    mask = carve(backend, coords, depth_of(mesh, VIEW, PROJECTION), PROJECTION @ VIEW, resolution=resolution)
    position = centers(coords, resolution)
    eye = torch.tensor(EYE, dtype=torch.float64)
    facing = ((eye - position) * position).sum(1) / (eye - position).norm(dim=1) / position.norm(dim=1)
    assert mask[facing > 0.1].all()
    assert not mask[facing < -0.75].any()
    assert 0.5 < mask.double().mean() < 0.75
    bare = carve(
        backend,
        coords,
        depth_of(mesh, VIEW, PROJECTION),
        PROJECTION @ VIEW,
        resolution=resolution,
        neighborhood=0,
    )
    assert (mask | ~bare).all()
    assert 0.4 < bare.double().mean() < mask.double().mean()


def test_the_inner_shell_is_carved_where_it_is_hidden(backend):
    """Closed shells: no view shows the inner ones; with the outer one away they are seen."""
    resolution = small(backend)
    outer, inner = ball(0.42), ball(0.2)
    both = Mesh(
        torch.cat([outer.vertices, inner.vertices]),
        torch.cat([outer.faces, inner.faces + len(outer.vertices)]),
    )
    coords = surface_voxels(both, resolution)
    is_inner = centers(coords, resolution).norm(dim=1) < 0.3
    eyes = [EYE, (-2.0, 0.1, 0.2), (0.2, -2.0, 0.3), (0.1, 0.2, -2.0), (2.0, 0.2, 0.1), (0.2, 2.0, 0.1)]
    matrices = torch.stack([PROJECTION @ look(eye) for eye in eyes])
    depth = torch.stack([depth_of(both, look(eye), PROJECTION) for eye in eyes])
    mask = carve(backend, coords, depth, matrices, resolution=resolution, combine="any")
    assert mask[~is_inner].all()
    assert not mask[is_inner].any()
    depth = torch.stack([depth_of(inner, look(eye), PROJECTION) for eye in eyes])
    mask = carve(backend, coords, depth, matrices, resolution=resolution, combine="any")
    assert mask[is_inner].all()


def test_the_inside_of_an_open_half_pipe_is_kept_where_it_is_seen(backend):
    resolution, mesh = small(backend), halved(shapes.half_pipe())
    coords = surface_voxels(mesh, resolution)

    def share(eye):
        view = look(eye)
        depth = depth_of(mesh, view, PROJECTION)
        return carve(backend, coords, depth, PROJECTION @ view, resolution=resolution).double().mean()

    assert share((0.0, 0.0, -2.0)) > 0.95  # into it
    assert share((0.0, 0.0, 2.0)) > 0.95  # onto its back: it is one sheet
    assert share((2.0, 0.0, 0.0)) < 0.8  # the near flank hides the far one


def test_a_thin_plate_keeps_what_the_threshold_reaches(backend):
    """Two faces, a quarter of a voxel apart, in two layers of voxels: with the paper's half voxel the hidden
    layer goes."""
    resolution = small(backend)
    half = 0.125 / resolution
    corners = torch.tensor([[-0.4, -0.4], [0.4, -0.4], [0.4, 0.4], [-0.4, 0.4]])
    vertices = torch.cat([torch.nn.functional.pad(corners, (0, 1), value=z) for z in (half, -half)])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 6, 5], [4, 7, 6]])
    mesh = Mesh(vertices, faces)
    coords = surface_voxels(mesh, resolution)
    layers = coords[:, 2].unique()
    assert layers.tolist() == [resolution // 2 - 1, resolution // 2]
    view = look((0.0, 0.0, 2.0))
    depth = depth_of(mesh, view, PROJECTION)
    options = {"resolution": resolution, "neighborhood": 0}
    assert carve(backend, coords, depth, PROJECTION @ view, **options).all()
    paper = ops.carve_threshold(resolution, upsampling=4)
    mask = carve(backend, coords, depth, PROJECTION @ view, threshold=paper, **options)
    on_plate = centers(coords, resolution)[:, :2].abs().amax(1) < 0.38  # beside it is background
    assert torch.equal(mask[on_plate], coords[on_plate, 2] == resolution // 2)
    options["neighborhood"] = 1
    assert carve(backend, coords, depth, PROJECTION @ view, threshold=paper, **options).all()


def test_a_view_from_inside(backend):
    """From the middle of a ball: the part in the picture is kept, nothing behind the camera."""
    resolution, mesh = small(backend), ball()
    coords = surface_voxels(mesh, resolution)
    view = look((0.0, 0.0, 0.0), target=(0.0, 0.0, -1.0))
    mask = carve(
        backend,
        coords,
        depth_of(mesh, view, PROJECTION),
        PROJECTION @ view,
        resolution=resolution,
        neighborhood=0,
    )
    p = centers(coords, resolution)
    in_picture = (p[:, 2] < 0) & (p[:, :2].abs().amax(1) < -p[:, 2] * math.tan(math.radians(20)))
    assert torch.equal(mask, in_picture)
    assert mask.any()


def test_the_threshold_only_adds(backend):
    resolution, mesh = small(backend), halved(shapes.make("csg-2"))
    coords = surface_voxels(mesh, resolution)
    depth, matrix = depth_of(mesh, VIEW, PROJECTION), PROJECTION @ VIEW
    former = torch.zeros(len(coords), dtype=torch.bool)
    shares = []
    for voxels in (0, 0.5, 1, 2, 4, 100):
        mask = carve(
            backend,
            coords,
            depth,
            matrix,
            resolution=resolution,
            threshold=voxels / resolution,
            neighborhood=0,
        )
        assert (mask | ~former).all()
        former = mask
        shares.append(float(mask.double().mean()))
    assert shares[0] < shares[3] < 0.9
    assert shares[-1] == 1


def test_neighbors_are_of_the_same_shape_and_of_the_list(backend):
    """One voxel of each shape is seen; only existing voxels around it, in its own shape, come with it."""
    depth = torch.full((2, 1, 1, 1), 1.0)
    matrix = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, -1, 1.5]])  # w = 1.5 - z
    matrices = matrix.expand(2, 1, 4, 4).contiguous()
    coords = torch.tensor(
        [
            [0, 4, 4, 7],  # depth 1.0625: kept
            [0, 5, 5, 6],  # touches it by a corner
            [0, 4, 4, 5],
            [1, 4, 4, 6],  # touches only a voxel of another shape
            [1, 4, 4, 5],
        ],
        dtype=torch.int32,
    )
    options = {"resolution": 8, "threshold": 0.1}
    mask = carve(backend, coords, depth, matrices, **options)
    assert mask.tolist() == [True, True, False, False, False]
    mask = carve(backend, coords, depth, matrices, neighborhood=2, **options)
    assert mask.tolist() == [True, True, True, False, False]
    mask = carve(backend, coords, depth, matrices, neighborhood=0, **options)
    assert mask.tolist() == [True, False, False, False, False]


# ---- Sizes and wrong inputs --------------------------------------------------------------------------------


def test_no_voxels(backend):
    _, depth, matrices = random_scene()
    for neighborhood in (0, 1):
        mask, indices = ops.depth_carve(
            *backend.put(torch.empty(0, 3, dtype=torch.int32), depth, matrices),
            resolution=24,
            neighborhood=neighborhood,
        )
        assert mask.shape == (0,)
        assert indices.shape == (0,)
        assert indices.dtype == torch.int64


def test_matrices_that_are_not_finite_see_nothing(backend):
    coords, depth, matrices = random_scene(views=1)
    for value in (math.nan, INF):
        mask = carve(backend, coords, depth, torch.full_like(matrices, value), resolution=24)
        assert not mask.any()


def test_operator(backend):
    coords, depth, matrices = backend.put(*random_scene(num=50, views=2, batch=2))
    numbers = (24, -0.5, 1 / 24, 0.1, 0.0, INF, False, True, True, True, False, 1)
    testing.check_operator(carving._depth_carve_op, coords, depth, matrices, None, *numbers)
    rows = matrices[:, :, 3].contiguous()
    testing.check_operator(carving._depth_carve_op, coords, depth, matrices, rows, *numbers)


def test_compiles():
    testing.check_compiles(
        lambda c, d, m: ops.depth_carve(c, d, m, resolution=24), *random_scene(num=100, views=2)
    )


def test_wrong_inputs(backend):
    coords, depth, matrices = backend.put(*random_scene(num=20, views=2))
    run = lambda c=coords, d=depth, m=matrices, **o: ops.depth_carve(c, d, m, **{"resolution": 24, **o})  # noqa: E731
    with pytest.raises(TypeError, match="`coords` must be int32, got int64"):
        run(coords.long())
    with pytest.raises(TypeError, match=r"`coords` must be a torch\.Tensor, got list"):
        run([[0, 0, 0]])
    with pytest.raises(ValueError, match=r"`coords` must have shape \(N, 3\), or \(N, 4\).*got \(20, 2\)"):
        run(coords[:, :2].contiguous())
    with pytest.raises(TypeError, match="`depth` must be float32 or float64, got float16"):
        run(d=depth.half())
    with pytest.raises(ValueError, match=r"`depth` must have shape \(V, H, W\), got \(13, 17\)"):
        run(d=depth[0])
    with pytest.raises(
        ValueError, match=r"`depth` must have shape \(B, V, H, W\) with `coords`.*got \(2, 13"
    ):
        run(torch.nn.functional.pad(coords, (1, 0)))
    with pytest.raises(ValueError, match=r"`depth` must have at least one view"):
        run(d=depth[:0], m=matrices[:0])
    with pytest.raises(ValueError, match=r"at least one pixel"):
        run(d=depth[:, :0].contiguous())
    with pytest.raises(ValueError, match=r"`matrices` must have shape \(B, V, 4, 4\)"):
        run(m=matrices[:1])
    with pytest.raises(TypeError, match="`matrices` must be float32 as `depth`, got float64"):
        run(m=matrices.double())
    with pytest.raises(ValueError, match=r"`depth_rows` must have shape \(B, V, 4\)"):
        run(depth_rows=matrices[0])
    with pytest.raises(ValueError, match="`depth` must be contiguous"):
        run(d=depth.transpose(1, 2))
    with pytest.raises(ValueError, match="`resolution` must be positive, got 0"):
        run(resolution=0)
    with pytest.raises(ValueError, match=r"`bounds` must ascend, got \(1, 1\)"):
        run(bounds=(1, 1))
    with pytest.raises(ValueError, match="`threshold` must be at least 0, got -1"):
        run(threshold=-1.0)
    with pytest.raises(ValueError, match="`near` must be at most `far`, got 2 and 1"):
        run(near=2, far=1)
    with pytest.raises(ValueError, match="`combine` must be 'all' or 'any', got 'or'"):
        run(combine="or")
    with pytest.raises(ValueError, match="`outside` must be 'keep' or 'drop', got True"):
        run(outside=True)
    with pytest.raises(ValueError, match="`invalid` must be 'keep' or 'drop', got 'x'"):
        run(invalid="x")
    with pytest.raises(ValueError, match="`origin` must be 'top' or 'bottom', got 'left'"):
        run(origin="left")
    with pytest.raises(ValueError, match="`neighborhood` must be at least 0, got -1"):
        run(neighborhood=-1)


@pytest.mark.parametrize("neighborhood", [0, 1])
def test_coordinates_out_of_range(backend, neighborhood):
    coords, depth, matrices = random_scene(num=200, views=2, batch=2)
    for column, wrong in ((0, 2), (0, -1), (1, 24), (3, -1), (2, 2**31 - 1)):
        spoiled = coords.clone()
        spoiled[70, column] = wrong
        spoiled[150, column] = wrong
        with pytest.raises(
            ValueError,
            match=rf"`coords` must lie in .*\(24, 24, 24\) and a batch of 2, got .*{wrong}.* in row 70",
        ):
            ops.depth_carve(*backend.put(spoiled, depth, matrices), resolution=24, neighborhood=neighborhood)
