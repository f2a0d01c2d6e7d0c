import subprocess
import sys

import numpy as np
import pytest
import torch
from mesh_cases import DAMAGES, cube, damage, join, query_points, torus, torus_distance

from fastshape import ops, testing
from fastshape.ops import mesh as mesh_ops
from fastshape.reference import mesh as reference

igl = pytest.importorskip("igl")


def query(backend, points, vertices, faces, dtype=torch.float32):
    points, vertices, faces = backend.put(points.to(dtype), vertices.to(dtype), faces)
    return ops.closest_point(points, ops.build_bvh(vertices, faces))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", DAMAGES)
def test_against_libigl(backend, kind, dtype):
    vertices, faces = damage(kind, torus())
    points = query_points(torus()).to(dtype).double()
    vertices = vertices.to(dtype).double()
    result = query(backend, points, vertices, faces, dtype)
    squared, _, closest = igl.point_mesh_squared_distance(points.numpy(), vertices.numpy(), faces.numpy())
    expected = torch.from_numpy(np.sqrt(squared))
    testing.assert_accurate(result.distance, expected)
    # The closest point may be another one where two are equally near; it must lie that far, on that face.
    point = result.point.double().cpu()
    floor = 4e-7 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close((point - points).norm(dim=1), expected, rtol=0, atol=floor)
    corners = vertices[faces[result.face.cpu()]]
    on_face = (corners * result.barycentric.double().cpu()[..., None]).sum(1)
    torch.testing.assert_close(on_face, point, rtol=0, atol=floor)
    assert (result.barycentric >= 0).all()
    same = (point - torch.from_numpy(closest)).norm(dim=1) < 1e-5
    assert same.double().mean() > 0.99


def test_error_against_the_torch_reference():
    shape = torus(20, 10)
    vertices, faces = shape
    points = query_points(shape, 600).float()
    expected = reference.closest_point(points.double(), vertices.float().double(), faces)[0]
    same_precision = reference.closest_point(points, vertices.float(), faces)[0]
    result = ops.closest_point(points, ops.build_bvh(vertices.float(), faces)).distance
    testing.assert_accurate(result, expected, same_precision, floor=0)


def test_torus(backend):
    points = query_points(torus(), 1000)
    result = query(backend, points, *torus(100, 50))
    torch.testing.assert_close(
        result.distance.double().cpu(), torus_distance(points).abs(), rtol=0, atol=2.5e-3
    )  # the facets


@pytest.mark.parametrize("shape", [cube(), join(cube(), cube()), torus(5, 4), damage("degenerate", cube())])
def test_every_face_was_considered(backend, shape):
    """Face by face, with the same arithmetic: the minimum to the bit, ties to the lowest index."""
    vertices, faces = shape[0].float(), shape[1]
    points = torch.cat([testing.lattice_points(300, steps=4), testing.random_points(200), vertices])
    result = query(backend, points, vertices, faces)
    alone = [query(backend, points, vertices, faces[i : i + 1]).distance for i in range(len(faces))]
    alone = torch.stack(alone)
    smallest = alone.amin(0)
    assert torch.equal(result.distance, smallest)
    assert torch.equal(alone.gather(0, result.face[None])[0], smallest)
    if shape[0].frac().abs().unique().tolist() == [0.5]:
        # Cubes and lattice points: squared distances that differ have different roots.
        first = (alone == smallest).int().argmax(0)
        assert torch.equal(result.face[:300], first[:300])


def test_ties_go_to_the_lowest_face(backend):
    vertices, faces = cube()
    doubled = torch.cat([faces, faces])
    result = query(backend, vertices * 2, vertices, doubled)  # every corner of the cube: a vertex is nearest
    for corner, face in enumerate(result.face.tolist()):
        assert face == int((doubled == corner).any(1).int().argmax())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_hierarchy_does_not_matter(backend, dtype):
    shape = torus(60, 30)
    vertices, faces, points = backend.put(shape[0].to(dtype), shape[1], query_points(shape).to(dtype))
    expected = ops.closest_point(points, ops.build_bvh(vertices, faces))
    for got, want in zip(
        ops.closest_point(points, mesh_ops._make_bvh(vertices, faces, True)), expected, strict=True
    ):
        assert torch.equal(got, want)
    order = torch.randperm(len(points), generator=testing.generator(1)).to(points.device)
    for got, want in zip(
        ops.closest_point(points[order], mesh_ops._make_bvh(vertices, faces, True)), expected, strict=True
    ):
        assert torch.equal(got, want[order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["clean", "degenerate", "soup"])
def test_instruction_sets_and_threads_agree(kind, dtype):
    vertices, faces = damage(kind, torus(100, 50))
    vertices, points = vertices.to(dtype), query_points(torus(), 20000).to(dtype)
    results = []
    for name in testing.instruction_sets():
        for threads in (1, 3):
            with testing.instruction_set(name), testing.num_threads(threads):
                results.append(ops.closest_point(points, ops.build_bvh(vertices, faces)))
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_faces_without_a_size_are_points(instruction_set, dtype):
    """Blocks of points take a short way; others, and those that hold both kinds, must agree with it."""
    generator = torch.Generator().manual_seed(0)
    cloud = torch.rand(203, 3, generator=generator, dtype=dtype)
    points = torch.rand(500, 3, generator=generator, dtype=dtype) * 1.4 - 0.2
    alone = torch.arange(203)[:, None].expand(-1, 3).contiguous()
    for faces in (alone, torch.cat([alone, torch.tensor([[0, 1, 2]])])):
        found = ops.closest_point(points.to(dtype), ops.build_bvh(cloud, faces))
        offset = cloud[None] - points[:, None]
        squared = offset[..., 0] ** 2 + offset[..., 1] ** 2 + offset[..., 2] ** 2
        is_point = found.face < 203
        nearest = squared.amin(1).sqrt()
        tolerance = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(found.distance[is_point], nearest[is_point], rtol=tolerance, atol=0)
        assert torch.equal(found.face[is_point], squared.argmin(1)[is_point])
        assert bool((found.distance <= nearest * (1 + tolerance)).all())
    assert not bool(is_point.all())


def test_backends_agree(backend):
    shape = damage("degenerate", torus())
    points, vertices, faces = query_points(torus()).float(), shape[0].float(), shape[1]
    expected = ops.closest_point(points, ops.build_bvh(vertices, faces))
    for got, want in zip(query(backend, points, vertices, faces), expected, strict=True):
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("num_faces", [1, 7, 8, 9, 63, 64, 65, 511, 512, 513, 520])
def test_sizes(backend, num_faces):
    vertices, faces = torus(26, 10)
    points = query_points(torus(), 200)
    result = query(backend, points, vertices, faces[:num_faces], torch.float64)
    expected = reference.closest_point(points, vertices, faces[:num_faces])
    torch.testing.assert_close(result.distance.cpu(), expected[0], rtol=1e-12, atol=1e-14)


def test_far_from_the_origin(backend):
    """Coordinates of 1000 and features of 0.01: the search must not lose faces to rounding."""
    shape = torus(30, 20)
    vertices = (shape[0] + 1000).float()
    points = (query_points(shape, 300) + 1000).float()
    expected = reference.closest_point(points.double(), vertices.double(), shape[1])[0]
    result = query(backend, points, vertices, shape[1])
    torch.testing.assert_close(result.distance.double().cpu(), expected, rtol=1e-4, atol=2e-7)


def test_values_that_are_not_finite(backend):
    vertices, faces = cube()
    points = torch.tensor([[0.0, torch.nan, 0], [torch.inf, 0, 0], [0, 0, 1], [3e38, 3e38, 0]])
    result = query(backend, points, vertices, faces)
    assert result.face.tolist()[:2] == [-1, -1]
    assert result.distance[:2].isnan().all()
    assert result.point[:2].isnan().all()
    assert result.barycentric[:2].isnan().all()
    assert result.distance[2] == 0.5
    assert result.face[3] == -1
    assert result.distance[3] == torch.inf  # its square overflows
    spoiled = vertices.clone()
    spoiled[0] = torch.nan
    whole = [i for i, face in enumerate(faces.tolist()) if 0 not in face]
    points = query_points(cube(), 200).float()
    assert torch.equal(
        query(backend, points, spoiled, faces).distance,
        query(backend, points, vertices, faces[whole]).distance,
    )
    nothing = query(backend, points, torch.full_like(vertices, torch.nan), faces)
    assert (nothing.face == -1).all()
    assert (nothing.distance == torch.inf).all()


def test_no_points(backend):
    result = query(backend, torch.zeros(0, 3), *cube())
    assert [tuple(t.shape) for t in result] == [(0,), (0,), (0, 3), (0, 3)]


# ---- Gradients ---------------------------------------------------------------------------------------------


def test_gradcheck(backend):
    shape = damage("degenerate", torus(6, 5))
    points, vertices, faces = backend.put(query_points(shape, 30)[:-10], *shape)

    def distance(points, vertices):
        return ops.closest_point(points, ops.build_bvh(vertices, faces)).distance

    testing.check_gradients(distance, points, vertices)


def test_gradient_against_the_reference(backend):
    shape = torus(20, 10)
    points, weights = query_points(shape, 300)[:-10].float(), testing.random_points(300)[:, 0]
    grads = []
    for double in (False, True):
        p, v, f, w = backend.put(points, shape[0].float(), shape[1], weights)
        p, v = p.requires_grad_(), v.requires_grad_()
        if double:
            distance = reference.closest_point(p.double().cpu(), v.double().cpu(), f.cpu())[0].to(w.device)
        else:
            distance = ops.closest_point(p, ops.build_bvh(v, f)).distance
        (distance * w).sum().backward()
        grads.append((p.grad, v.grad))
    testing.assert_gradients_match(grads[0][0], grads[1][0], tolerance=1e-4)
    testing.assert_gradients_match(grads[0][1], grads[1][1], tolerance=1e-4)


def test_gradient_is_zero_on_the_surface_and_where_nothing_was_found(backend):
    vertices, faces = backend.put(cube()[0].float(), cube()[1])
    points = torch.cat([cube()[0], torch.full((1, 3), torch.nan)]).float()
    points = backend.put(points).requires_grad_()
    vertices.requires_grad_()
    ops.closest_point(points, ops.build_bvh(vertices, faces)).distance.nansum().backward()
    assert (points.grad == 0).all()
    assert (vertices.grad == 0).all()


def test_backward_is_deterministic_and_equal_on_every_backend(backend):
    shape = torus(60, 30)
    inputs = [query_points(shape, 2000).float(), shape[0].float()]
    expected = None
    for put in (lambda *t: t, backend.put, backend.put):
        points, vertices, faces = put(*inputs, shape[1])
        points, vertices = (t.detach().clone().requires_grad_() for t in (points, vertices))
        ops.closest_point(points, ops.build_bvh(vertices, faces)).distance.sum().backward()
        grads = (points.grad.cpu(), vertices.grad.cpu())
        expected = expected or grads
        assert torch.equal(grads[0], expected[0])
        assert torch.equal(grads[1], expected[1])


# ---- The operator ------------------------------------------------------------------------------------------


def test_operator(backend):
    points, vertices, faces = backend.put(testing.random_points(20), cube()[0].float(), cube()[1])
    testing.check_operator(mesh_ops._build_bvh_op, vertices, faces, False)
    bvh = ops.build_bvh(vertices, faces)
    testing.check_operator(mesh_ops._closest_point_op, points, *bvh.arrays)
    result = ops.closest_point(points, bvh)
    testing.check_operator(
        mesh_ops._closest_point_backward_op,
        torch.ones_like(result.distance),
        points,
        vertices,
        faces,
        result.face,
        result.barycentric,
    )


def test_compiles():
    vertices, faces = cube()

    def distance(points, vertices, faces):
        return tuple(ops.closest_point(points, ops.build_bvh(vertices, faces)))

    testing.check_compiles(distance, testing.random_points(20), vertices.float(), faces)


def test_wrong_inputs():
    vertices, faces = cube()[0].float(), cube()[1]
    bvh = ops.build_bvh(vertices, faces)
    points = testing.random_points(5)
    with pytest.raises(ValueError, match=r"`faces` must hold at least one face, got shape \(0, 3\)"):
        ops.build_bvh(vertices, faces[:0])
    with pytest.raises(ValueError, match=r"`faces` must lie in \[0, 8\), got 8 in face 3"):
        ops.build_bvh(vertices, faces.clone().index_put_((torch.tensor(3), torch.tensor(1)), torch.tensor(8)))
    with pytest.raises(ValueError, match=r"`vertices` must have shape \(V, 3\), got \(8, 2\)"):
        ops.build_bvh(vertices[:, :2].contiguous(), faces)
    with pytest.raises(TypeError, match="`faces` must be int64, got int32"):
        ops.build_bvh(vertices, faces.int())
    with pytest.raises(TypeError, match="`vertices` must be float32 or float64, got float16"):
        ops.build_bvh(vertices.half(), faces)
    with pytest.raises(TypeError, match=r"`bvh.boxes` must be float64 as `points`, got float32"):
        ops.closest_point(points.double(), bvh)
    with pytest.raises(ValueError, match=r"`points` must have shape \(Q, 3\), got \(5, 2\)"):
        ops.closest_point(points[:, :2].contiguous(), bvh)
    with pytest.raises(ValueError, match="`points` must be contiguous"):
        ops.closest_point(points.T.contiguous().T, bvh)


_MEMORY = """
import sys, torch
from fastshape import ops
def kilobytes(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
vertices, faces, points = torch.load(sys.argv[1])
ops.closest_point(points[:10], ops.build_bvh(vertices, faces[:100]))  # what loads once
before = kilobytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
bvh = ops.build_bvh(vertices, faces)
ops.closest_point(points, bvh)
ops.winding_number(points, bvh)
print((kilobytes("VmHWM") - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_half_a_million_faces(tmp_path):
    """Peak resident memory above the mesh and the points, outputs for 500,000 points (22 MB) included."""
    vertices, faces = torus(1000, 250)
    points = testing.random_points(500_000)
    torch.save((vertices.float(), faces, points), tmp_path / "mesh.pt")
    run = [sys.executable, "-c", _MEMORY, str(tmp_path / "mesh.pt")]
    megabytes = float(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert megabytes < 150
