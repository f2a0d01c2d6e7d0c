import pytest
import torch
from mesh_cases import DAMAGES, cube, damage, join, query_points, torus, torus_distance

from fastshape import ops, testing
from fastshape.ops import mesh as mesh_ops
from fastshape.reference import mesh as reference


def cast(backend, origins, directions, vertices, faces, dtype=torch.float32):
    tensors = backend.put(origins.to(dtype), directions.to(dtype), vertices.to(dtype), faces)
    return ops.cast_rays(tensors[0], tensors[1], ops.build_bvh(*tensors[2:]))


def votes(backend, points, vertices, faces, dtype=torch.float32, **options):
    points, vertices, faces = backend.put(points.to(dtype), vertices.to(dtype), faces)
    return ops.ray_parity(points, ops.build_bvh(vertices, faces), **options).cpu()


# ---- cast_rays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", DAMAGES)
def test_against_the_reference(backend, kind, dtype):
    vertices, faces = damage(kind, torus(20, 12))
    vertices = vertices.to(dtype).double()
    origins = testing.random_points(500, dtype=torch.float64).to(dtype).double()
    directions = testing.random_points(500, seed=1, dtype=torch.float64).to(dtype).double()
    expected, face, _ = reference.cast_rays(origins, directions, vertices, faces)
    result = cast(backend, origins, directions, vertices, faces, dtype)
    t = result.t.double().cpu()
    assert torch.equal(t.isinf(), expected.isinf())
    assert torch.equal(result.face.cpu() < 0, face < 0)
    met = ~t.isinf()
    assert met.double().mean() > 0.2
    torch.testing.assert_close(
        t[met], expected[met], rtol=0, atol=2e-5 if dtype == torch.float32 else 1e-12
    )  # rays that graze a face
    point = (vertices[faces[result.face.cpu()[met]]] * result.barycentric.double().cpu()[met][..., None]).sum(
        1
    )
    along = origins[met] + t[met][:, None] * directions[met]
    torch.testing.assert_close(point, along, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-11)
    assert (result.barycentric.cpu()[met] >= 0).all()
    assert (result.face.cpu() == face).double().mean() > (0.6 if kind == "duplicate" else 0.98)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_cracks(backend, dtype):
    """From inside a closed mesh every ray meets it, also through its edges and vertices."""
    vertices, faces = testing.icosphere(3, radius=0.9)
    vertices = vertices.to(dtype)
    middles = vertices[faces].mean(1)
    edges = 0.5 * (vertices[faces] + vertices[faces.roll(1, 1)]).reshape(-1, 3)
    targets = torch.cat([vertices, middles, edges, torch.eye(3, dtype=dtype), -torch.eye(3, dtype=dtype)])
    for origin in (torch.zeros(3), torch.tensor([0.25, -0.125, 0.5])):
        origins = origin.to(dtype).expand_as(targets).contiguous()
        result = cast(backend, origins, targets - origins, vertices, faces, dtype)
        assert (result.face >= 0).all()
        assert (result.t > 0.1).all()


def test_rays_along_the_axes_of_a_cube(backend):
    """Through edges, vertices and face planes, exactly: closed on one side of each, open on the other."""
    vertices, faces = cube()
    grid = torch.linspace(-1, 1, 17)
    x, y = torch.meshgrid(grid, grid, indexing="ij")
    origins = torch.stack([x.flatten(), y.flatten(), torch.full((289,), -2.0)], -1)
    directions = torch.tensor([[0.0, 0.0, 1.0]]).expand_as(origins).contiguous()
    result = cast(backend, origins, directions, vertices, faces)
    inside = (origins[:, :2].abs() < 0.5).all(1)
    outside = (origins[:, :2].abs() > 0.5).any(1)
    assert (result.t.cpu()[inside] == 1.5).all()
    assert (result.face.cpu()[outside] == -1).all()
    # What enters also leaves: the rim is met by both sides of the cube or by neither.
    back = cast(backend, origins * torch.tensor([1.0, 1, -1]), -directions, vertices, faces)
    assert (back.t.cpu()[inside] == 1.5).all()
    assert (votes(backend, origins, vertices, faces, directions=backend.put(directions[:1])) == 0).all()


def test_ties_go_to_the_lowest_face(backend):
    vertices, faces = join(cube(), cube(), cube())
    origins = testing.random_points(200) * 0.4
    directions = testing.random_points(200, seed=3)
    result = cast(backend, origins, directions, vertices, faces)
    assert (result.face < 12).all()


@pytest.mark.parametrize("kind", ["clean", "soup", "degenerate"])
def test_the_hierarchy_does_not_matter(backend, kind):
    shape = damage(kind, torus(60, 30))
    origins, directions, vertices, faces = backend.put(
        testing.random_points(1000), testing.random_points(1000, seed=1), shape[0].float(), shape[1]
    )
    expected = ops.cast_rays(origins, directions, ops.build_bvh(vertices, faces))
    got = ops.cast_rays(origins, directions, mesh_ops._make_bvh(vertices, faces, True))
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backends_instruction_sets_and_threads_agree(backend, dtype):
    shape = torus(60, 30)
    inputs = [
        testing.random_points(1000, dtype=dtype),
        testing.random_points(1000, seed=1, dtype=dtype),
        shape[0].to(dtype),
        shape[1],
    ]
    with testing.instruction_set("portable"), testing.num_threads(1):
        expected = ops.cast_rays(*inputs[:2], ops.build_bvh(*inputs[2:]))
        parity = ops.ray_parity(inputs[0], ops.build_bvh(*inputs[2:]))
    for name in testing.instruction_sets() if backend.name == "cpu" else ["portable"]:
        with testing.instruction_set(name), testing.num_threads(3):
            for got, want in zip(cast(backend, *inputs, dtype), expected, strict=True):
                assert torch.equal(got.cpu().nan_to_num(7), want.nan_to_num(7))
            assert torch.equal(votes(backend, inputs[0], *inputs[2:], dtype), parity)


def test_rays_that_are_none(backend):
    origins = torch.tensor([[torch.nan, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 2]])
    directions = torch.tensor([[0, 0, 1.0], [0, torch.inf, 0], [0, 0, 0], [0, 0, 1e-30], [0, 0, 1]])
    result = cast(backend, origins, directions, *cube())
    assert result.t[:3].isnan().all()
    assert result.face.tolist()[:3] == [-1, -1, -1]
    assert abs(float(result.t[3]) / 0.5e30 - 1) < 1e-5
    assert result.t[4] == torch.inf
    assert result.face[4] == -1
    assert result.barycentric[[0, 1, 2, 4]].isnan().all()
    assert tuple(cast(backend, torch.zeros(0, 3), torch.zeros(0, 3), *cube()).barycentric.shape) == (0, 3)


# ---- ray_parity --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clean", "degenerate", "soup", "flipped", "all_flipped"])
def test_inside_of_a_torus(backend, kind):
    points = query_points(torus(), 1000)
    points = points[torus_distance(points).abs() > 3e-3]
    result = votes(backend, points, *damage(kind, torus(100, 50)), num_rays=5)
    inside = torus_distance(points) < 0
    assert torch.equal(result, 5 * inside.int())


def test_counts_against_the_reference(backend):
    vertices, faces = damage("hole", torus(20, 12))
    points = testing.random_points(200, dtype=torch.float64)
    directions = testing.random_points(4, seed=2, dtype=torch.float64)
    expected = sum(
        reference.cast_rays(points, d.expand_as(points), vertices, faces)[2] % 2 for d in directions
    )
    result = votes(backend, points, vertices, faces, torch.float64, directions=backend.put(directions))
    assert torch.equal(result.long(), expected)


def test_parity_of_rays_through_vertices(backend):
    """Towards the mesh's own vertices: an even number of crossings from outside, an odd one from inside."""
    vertices, faces = testing.icosphere(2, radius=0.75)
    vertices = vertices.float()
    outside = torch.tensor([[2.0, 0.5, 0.25]])
    inside = torch.tensor([[0.25, 0.125, 0.0]])
    for origin, expected in ((outside, 0), (inside, 1)):
        directions = backend.put(vertices - origin)
        result = votes(backend, origin, vertices, faces, directions=directions)
        assert int(result) == expected * len(vertices)


def test_parity_of_special_points(backend):
    points = torch.tensor([[torch.nan, 0, 0], [0, 0, 0], [5, 0, 0]])
    assert votes(backend, points, *cube()).tolist() == [0, 3, 0]
    assert votes(backend, points[:0], *cube()).shape == (0,)


# ---- ray_crossings -----------------------------------------------------------------------------------------


def crossings(backend, points, vertices, faces, **options):
    points, vertices, faces = backend.put(points, vertices.to(points.dtype), faces)
    return ops.ray_crossings(points, ops.build_bvh(vertices, faces), **options).cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_crossings_are_the_winding_number_of_closed_meshes(backend, dtype):
    """Overlapping, nested and turned parts, degenerate and doubled faces: where nothing is open."""
    ball, small = testing.icosphere(2, radius=0.6), testing.icosphere(1, radius=0.3)
    vertices, faces = join(join(ball, (ball[0] + 0.4, ball[1])), (small[0], small[1].flip(1)))
    points = testing.random_points(500, dtype=torch.float64).to(dtype)
    for doubled in (faces, torch.cat([faces, faces]), torch.cat([faces, faces[:5, [0, 1, 1]]])):
        expected = reference.winding_number(points.double(), vertices.double(), doubled)
        away = (expected - expected.round()).abs() < 1e-3
        assert away.all()
        result = crossings(backend, points, vertices, doubled)
        assert result.dtype == torch.int32
        assert torch.equal(result, expected.round().int())
        assert result.unique().numel() >= 3
    direction = backend.put(torch.tensor([0.1, -1.0, 0.2], dtype=dtype))
    turned = crossings(backend, points, vertices, faces, direction=direction)
    assert torch.equal(turned, crossings(backend, points, vertices, faces))


def test_crossings_through_vertices_and_of_special_points(backend):
    vertices, faces = testing.icosphere(2, radius=0.75)
    for origin, expected in (((2.0, 0.5, 0.25), 0), ((0.25, 0.125, 0.0), 1)):
        point = torch.tensor([origin])
        for target in vertices.float()[::9]:
            direction = backend.put(target - point[0])
            assert crossings(backend, point, vertices, faces, direction=direction).tolist() == [expected]
    points = torch.tensor([[torch.nan, 0, 0], [0, 0, 0], [5, 0, 0]])
    assert crossings(backend, points, *cube()).tolist() == [0, 1, 0]
    assert crossings(backend, points[:0], *cube()).shape == (0,)
    with pytest.raises(ValueError, match=r"`direction` must have shape \(3,\), got \(2, 3\)"):
        crossings(backend, points, *cube(), direction=backend.put(points[1:]))


# ---- The operators -----------------------------------------------------------------------------------------


def test_operator(backend):
    points, directions, vertices, faces = backend.put(
        testing.random_points(20) * 0.4, testing.random_points(20, seed=1), cube()[0].float(), cube()[1]
    )
    bvh = ops.build_bvh(vertices, faces)
    testing.check_operator(mesh_ops._cast_rays_op, points, directions, *bvh.arrays)
    testing.check_operator(mesh_ops._ray_parity_op, points, directions[:3].contiguous(), *bvh.arrays)
    testing.check_operator(mesh_ops._ray_crossings_op, points, directions[:1].contiguous(), *bvh.arrays)


def test_compiles():
    bvh = ops.build_bvh(cube()[0].float(), cube()[1])

    def both(points, directions):
        return *ops.cast_rays(points, directions, bvh), ops.ray_parity(points, bvh)

    testing.check_compiles(both, testing.random_points(20), testing.random_points(20, seed=1))


def test_wrong_inputs():
    bvh = ops.build_bvh(cube()[0].float(), cube()[1])
    points = testing.random_points(5)
    with pytest.raises(ValueError, match=r"`directions` must have shape \(Q, 3\), got \(4, 3\)"):
        ops.cast_rays(points, points[:4].contiguous(), bvh)
    with pytest.raises(TypeError, match="`directions` must be float32 as `origins`, got float64"):
        ops.cast_rays(points, points.double(), bvh)
    with pytest.raises(ValueError, match="`num_rays` must be at least 1, got 0"):
        ops.ray_parity(points, bvh, num_rays=0)
