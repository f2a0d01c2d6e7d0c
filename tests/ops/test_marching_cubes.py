import pytest
import torch
from test_marching_cubes_sparse import cells_of, euler, random_field, sphere, torus

from fastshape import ops, testing
from fastshape.geometry import Mesh
from fastshape.ops import isosurface
from fastshape.reference import isosurface as reference


def run(backend, values, level=0.0):
    vertices, faces = ops.marching_cubes(backend.put(values), level=level)
    return vertices.cpu(), faces.cpu()


# Rows that end within a word, at its end and behind it.
@pytest.mark.parametrize("shape", [(2, 2, 2), (5, 6, 7), (3, 4, 63), (4, 3, 64), (2, 3, 65), (3, 2, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_the_reference(backend, shape, dtype):
    values = random_field(*shape, dtype=dtype, padded=False)
    vertices, faces = run(backend, values, 0.1)
    expected = reference.marching_cubes(values, 0.1)
    assert vertices.dtype == dtype
    assert torch.equal(vertices, expected[0])
    assert torch.equal(faces, expected[1])


def test_equal_to_the_sparse_one(backend):
    values = random_field(5, 4, 66)
    dense = run(backend, values)
    sparse = ops.marching_cubes_sparse(*backend.put(*cells_of(values)))
    assert torch.equal(dense[0], sparse[0].cpu())
    assert torch.equal(dense[1], sparse[1].cpu())


@pytest.mark.parametrize("seed", range(3))
def test_random_signs_give_a_closed_surface(backend, seed):
    mesh = Mesh(*run(backend, random_field(8, 9, 10, seed=seed)))
    assert mesh.is_watertight
    assert mesh.volume > 0


def test_sphere_and_torus(backend):
    small = 12 if backend.name == "emulated" else 64
    for field, characteristic in ((sphere(small), 2), (torus(2 * small), 0)):
        mesh = Mesh(*run(backend, field))
        assert mesh.is_watertight
        assert euler(mesh) == characteristic


def test_as_many_triangles_as_scikit_image():
    measure = pytest.importorskip("skimage.measure")
    field = torus(50)
    vertices, faces, _, _ = measure.marching_cubes(field.numpy(), 0.0, gradient_direction="ascent")
    ours = Mesh(*ops.marching_cubes(field))
    theirs = Mesh(torch.from_numpy(vertices.copy()), torch.from_numpy(faces.astype("int64")))
    assert (ours.num_vertices, ours.num_faces) == (theirs.num_vertices, theirs.num_faces)
    assert ours.volume == pytest.approx(abs(theirs.volume), rel=1e-3)  # quads are split otherwise
    difference = torch.cdist(ours.vertices.double(), theirs.vertices.double()).amin(1)
    assert difference.max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_instruction_sets_and_threads_agree(dtype):
    values = random_field(20, 20, 200, dtype=dtype)
    values[3, 4] = torch.nan
    values[5, 6] = 0.0
    results = []
    for name in testing.instruction_sets():
        for threads in (1, 3):
            with testing.instruction_set(name), testing.num_threads(threads):
                results.append(ops.marching_cubes(values))
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        assert torch.equal(result[1], results[0][1])
    assert Mesh(*results[0]).is_watertight


def test_values_that_are_not_finite(backend):
    field = random_field(5, 5, 5)
    plain = run(backend, field)
    field[field > 1.2] = torch.nan
    field[field < -1.2] = -torch.inf
    vertices, faces = run(backend, field)
    assert torch.equal(faces, plain[1])
    assert vertices.isfinite().all()


@pytest.mark.parametrize(
    "shape", [(0, 0, 0), (0, 5, 5), (5, 5, 0), (1, 5, 5), (5, 1, 5), (5, 5, 1), (3, 3, 3)]
)
def test_no_surface(backend, shape):
    values = random_field(*shape, padded=False) if 1 in shape else torch.ones(shape)
    vertices, faces = run(backend, values)
    assert tuple(vertices.shape) == (0, 3)
    assert tuple(faces.shape) == (0, 3)
    assert faces.dtype == torch.int64


# ---- Gradients ---------------------------------------------------------------------------------------------


def test_gradcheck(backend):
    values = backend.put(random_field(2, 3, 3, dtype=torch.float64))
    testing.check_gradients(lambda v: ops.marching_cubes(v, level=0.1)[0], values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_against_the_reference(backend, dtype):
    values = random_field(4, 5, 66, dtype=dtype)
    weights = testing.random_points(len(ops.marching_cubes(values, level=0.1)[0])).to(dtype)
    v = backend.put(values).requires_grad_()
    (ops.marching_cubes(v, level=0.1)[0] * backend.put(weights)).sum().backward()
    wide = values.double().requires_grad_()
    (reference.marching_cubes(wide, level=0.1)[0] * weights).sum().backward()
    testing.assert_gradients_match(v.grad, wide.grad, tolerance=1e-4 if dtype == torch.float32 else 1e-10)


def test_gradients_are_equal_on_every_backend(backend):
    values = random_field(5, 6, 70)
    weights = testing.random_points(len(ops.marching_cubes(values)[0]))
    _, _, source = isosurface._marching_cubes_op(values, 0.0)
    result = isosurface._marching_cubes_backward_op(*backend.put(weights, values, source), 0.0).cpu()
    # In the order of the vertices, as the CPU sums.
    expected = torch.zeros(values.numel())
    flat, axis = source // 3, source % 3
    step = torch.tensor([values.shape[1] * values.shape[2], values.shape[2], 1])[axis]
    a, b = values.flatten()[flat], values.flatten()[flat + step]
    grad, t = weights.gather(1, axis[:, None])[:, 0], (0 - a) / (b - a)
    for i in range(len(flat)):
        expected[flat[i]] += grad[i] * ((t[i] - 1) / (b - a)[i])
        expected[flat[i] + step[i]] += grad[i] * (-t[i] / (b - a)[i])
    assert torch.equal(result.flatten(), expected)


def test_gradient_where_a_value_is_not_finite(backend):
    values = random_field(3, 3, 3)
    values[2, 2, 2], values[1, 2, 3], values[3, 3, 3] = -torch.inf, torch.nan, torch.inf
    v = backend.put(values).requires_grad_()
    vertices, faces = ops.marching_cubes(v)
    assert not faces.requires_grad
    vertices.sum().backward()
    assert v.grad.isfinite().all()
    none = backend.put(torch.ones(3, 3, 3)).requires_grad_()
    ops.marching_cubes(none)[0].sum().backward()
    assert (none.grad == 0).all()


# ---- The operator ------------------------------------------------------------------------------------------


def test_operator(backend):
    values = backend.put(random_field(3, 3, 3))
    testing.check_operator(isosurface._marching_cubes_op, values, 0.0)
    vertices, _, source = isosurface._marching_cubes_op(values, 0.0)
    testing.check_operator(
        isosurface._marching_cubes_backward_op, torch.ones_like(vertices), values, source, 0.0
    )


def test_compiles():
    values = random_field(4, 4, 4)
    testing.check_compiles(lambda values: ops.marching_cubes(values, level=0.2), values)

    def gradient(wrap):
        v = values.clone().requires_grad_()
        wrap(lambda v: ops.marching_cubes(v)[0].square().sum())(v).backward()
        return v.grad

    compiled = gradient(lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"))
    assert torch.equal(compiled, gradient(lambda f: f))


def test_wrong_inputs(backend):
    values = backend.put(random_field(3, 3, 3))
    with pytest.raises(ValueError, match=r"`values` must have shape \(X, Y, Z\), got \(1, 5, 5, 5\)"):
        ops.marching_cubes(values[None])
    with pytest.raises(TypeError, match="`values` must be float32 or float64, got float16"):
        ops.marching_cubes(values.half())
    with pytest.raises(ValueError, match="`values` must be contiguous"):
        ops.marching_cubes(values.transpose(0, 2))
