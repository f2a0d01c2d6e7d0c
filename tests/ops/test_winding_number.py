import pytest
import torch
from mesh_cases import DAMAGES, cube, damage, query_points, torus, torus_distance

from fastshape import ops, testing
from fastshape.ops import mesh as mesh_ops
from fastshape.reference import mesh as reference

igl = pytest.importorskip("igl")

# The far field's largest error for a beta, over all cases below.
FAR_FIELD = {2.0: 1.2e-2, 2.5: 5e-3, 3.0: 2.5e-3}


def winding(backend, points, vertices, faces, dtype=torch.float32, **options):
    points, vertices, faces = backend.put(points.to(dtype), vertices.to(dtype), faces)
    return ops.winding_number(points, ops.build_bvh(vertices, faces), **options).double().cpu()


def igl_winding(points, vertices, faces):
    return torch.from_numpy(
        igl.winding_number(vertices.double().numpy(), faces.numpy(), points.double().numpy())
    )


def points_off(shape):
    """Not on the surface, where the winding number jumps."""
    return query_points(shape, 1000)[:-10].float().double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", DAMAGES)
def test_exact_against_libigl(backend, kind, dtype):
    vertices, faces = damage(kind, torus(20, 12))
    vertices, points = vertices.float().double(), points_off(torus(20, 12))[::2].contiguous()
    expected = igl_winding(points, vertices, faces)
    result = winding(backend, points, vertices, faces, dtype, exact=True)
    same_precision = reference.winding_number(points.to(dtype), vertices.to(dtype), faces).double()
    error = float((result - expected).abs().max())
    assert error <= 2 * float((same_precision - expected).abs().max()) + (
        1e-6 if dtype == torch.float32 else 1e-12
    )


@pytest.mark.parametrize("beta", [2.0, 2.5, 3.0])
@pytest.mark.parametrize("kind", DAMAGES)
def test_far_field(backend, kind, beta):
    vertices, faces = damage(kind, torus(60, 30))
    points = points_off(torus(60, 30))
    error = winding(backend, points, vertices, faces, beta=beta) - igl_winding(
        points, vertices.float(), faces
    )
    assert float(error.abs().max()) <= FAR_FIELD[beta]
    assert float(error.square().mean().sqrt()) <= FAR_FIELD[beta] / 4


def test_signs(backend):
    points = points_off(torus())
    sure = torus_distance(points).abs() > 3e-3  # the facets
    result = winding(backend, points, *torus(100, 50))
    assert torch.equal(result[sure] > 0.5, torus_distance(points)[sure] < 0)
    assert float((result[sure] - result[sure].round()).abs().max()) < FAR_FIELD[2.5]


def test_the_hierarchy_matters_by_the_far_field_only(backend):
    shape = torus(60, 30)
    points, vertices, faces = backend.put(points_off(shape).float(), shape[0].float(), shape[1])
    split = ops.winding_number(points, ops.build_bvh(vertices, faces))
    curve = ops.winding_number(points, mesh_ops._make_bvh(vertices, faces, True))
    assert float((split - curve).abs().max()) <= 2 * FAR_FIELD[2.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backends_agree_on_one_hierarchy(backend, dtype):
    """To the bit, far field included: the moments too."""
    shape = damage("degenerate", torus(60, 30))
    points, vertices = points_off(shape).to(dtype), shape[0].to(dtype)
    expected_bvh = mesh_ops._make_bvh(vertices, shape[1], True)
    expected = mesh_ops._winding_number_op(points, *expected_bvh.arrays, expected_bvh.moments, 2.5)
    points, vertices, faces = backend.put(points, vertices, shape[1])
    bvh = mesh_ops._make_bvh(vertices, faces, True)
    for got, want in zip(
        (*bvh.arrays, bvh.moments), (*expected_bvh.arrays, expected_bvh.moments), strict=True
    ):
        assert torch.equal(got.cpu(), want)
    assert torch.equal(ops.winding_number(points, bvh).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_instruction_sets_threads_and_neighbors(dtype):
    shape = torus(100, 50)
    points, vertices = points_off(shape).to(dtype), shape[0].to(dtype)
    expected = ops.winding_number(points, ops.build_bvh(vertices, shape[1]))
    for name in testing.instruction_sets():
        for threads in (1, 3):
            with testing.instruction_set(name), testing.num_threads(threads):
                bvh = ops.build_bvh(vertices, shape[1])
                assert torch.equal(ops.winding_number(points, bvh), expected)
                assert torch.equal(ops.winding_number(points[5:9].contiguous(), bvh), expected[5:9])


def test_a_scaled_mesh_has_the_same_winding(backend):
    shape = torus(60, 30)
    points = points_off(shape)
    expected = winding(backend, points, *shape)
    for scale in (2.0**-20, 2.0**20):  # exact in float
        assert torch.equal(winding(backend, points * scale, shape[0] * scale, shape[1]), expected)


def test_special_points(backend):
    vertices, faces = cube()
    points = torch.tensor([[torch.nan, 0, 0], [torch.inf, 0, 0], [0, 0, 0], [1e15, 0, 0], [0.5, 0.5, 0.5]])
    result = winding(backend, points, vertices, faces)
    assert result[:2].isnan().all()
    assert abs(float(result[2]) - 1) < 1e-6
    assert abs(float(result[3])) < 1e-6
    assert result[4].isfinite()  # on a vertex: some number
    assert tuple(winding(backend, torch.zeros(0, 3), vertices, faces).shape) == (0,)
    nothing = winding(backend, points, torch.full_like(vertices, torch.nan), faces)
    assert (nothing[2:] == 0).all()


def test_operator(backend):
    points, vertices, faces = backend.put(testing.random_points(20), cube()[0].float(), cube()[1])
    bvh = ops.build_bvh(vertices, faces)
    testing.check_operator(mesh_ops._bvh_moments_op, *bvh.arrays)
    testing.check_operator(mesh_ops._winding_number_op, points, *bvh.arrays, bvh.moments, 2.5)


def test_compiles():
    bvh = ops.build_bvh(cube()[0].float(), cube()[1])
    testing.check_compiles(lambda points: ops.winding_number(points, bvh), testing.random_points(20))


def test_wrong_inputs():
    bvh = ops.build_bvh(cube()[0].float(), cube()[1])
    points = testing.random_points(5)
    with pytest.raises(ValueError, match=r"`beta` must be at least 1, got 0\.5"):
        ops.winding_number(points, bvh, beta=0.5)
    with pytest.raises(ValueError, match="`beta` must be at least 1, got nan"):
        ops.winding_number(points, bvh, beta=float("nan"))
    with pytest.raises(ValueError, match=r"`points` must have shape \(Q, 3\), got \(15,\)"):
        ops.winding_number(points.flatten(), bvh)
