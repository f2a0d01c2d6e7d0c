import pytest
import torch
from test_marching_cubes_sparse import euler, random_field, sphere, torus

from fastshape import _C, _library, ops, testing
from fastshape.geometry import Mesh
from fastshape.ops import dual_surface, dual_topology
from fastshape.reference import flexicubes as reference


def random_inputs(*shape, seed=0, dtype=torch.float32, features=2):
    """A field with random signs, and everything that a lattice of that shape can have."""
    generator = testing.generator(seed + 100)
    field = random_field(*shape, seed=seed, dtype=dtype, padded=False)
    cubes, points = reference.lattice(shape)

    def random(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=dtype)

    return {
        "sdf": field,
        "positions": points.to(dtype) + 0.3 * random(len(points), 3).tanh(),
        "alpha": random(len(cubes), 8),
        "beta": random(len(cubes), 12),
        "gamma": random(len(cubes)),
        "features": random(len(points), features),
    }, cubes


def expected_surface(inputs, cubes, **options):
    weights = reference.activate(inputs["beta"], inputs["alpha"], inputs["gamma"])
    return reference.flexicubes(
        inputs["sdf"].flatten(), cubes, inputs["positions"], *weights, inputs["features"], **options
    )


def on(backend, inputs):
    return {name: backend.put(tensor) for name, tensor in inputs.items()}


def by_row(faces):
    """Faces as a set that does not depend on their order."""
    first = faces.argmin(1, keepdim=True)
    turned = faces.gather(1, (first + torch.arange(3)) % 3)
    return turned[((turned[:, 0] * 10**6 + turned[:, 1]) * 10**6 + turned[:, 2]).argsort()]


# ---- Against the reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 2, 2), (5, 6, 7), (3, 4, 65)])
@pytest.mark.parametrize("training", [False, True])
def test_against_the_reference(backend, shape, dtype, training):
    inputs, cubes = random_inputs(*shape, dtype=dtype)
    for face_order in ("nv", "trellis"):
        options = {"training": training, "face_order": face_order}
        surface = ops.flexicubes(**on(backend, inputs), **options)
        same = expected_surface(inputs, cubes, **options)
        wide = expected_surface({name: t.double() for name, t in inputs.items()}, cubes, **options)
        assert surface.vertices.dtype == dtype
        assert torch.equal(surface.faces.cpu(), same.faces)
        assert torch.equal(surface.vertex_cubes.cpu(), same.vertex_cubes)
        for name in ("vertices", "features", "deviation"):
            # Random signs have values near each other, whose quotients are large.
            testing.assert_accurate(
                getattr(surface, name),
                getattr(wide, name),
                getattr(same, name),
                floor=10 * testing.FLOORS[dtype],
            )


def test_a_list_of_all_cubes_is_the_lattice(backend):
    inputs, cubes = random_inputs(5, 6, 7)
    dense = ops.flexicubes(**on(backend, inputs), training=True)
    order = torch.randperm(len(cubes), generator=testing.generator(1))
    inputs["sdf"] = inputs["sdf"].flatten()
    for name in ("alpha", "beta", "gamma"):
        inputs[name] = inputs[name][order]
    sparse = ops.flexicubes(**on(backend, inputs), cubes=backend.put(cubes[order]), training=True)
    assert torch.equal(sparse.vertices, dense.vertices)
    assert torch.equal(sparse.faces, dense.faces)
    assert torch.equal(sparse.deviation, dense.deviation)
    assert torch.equal(sparse.features, dense.features)
    assert torch.equal(order[sparse.vertex_cubes.cpu()], dense.vertex_cubes.cpu())


@pytest.mark.parametrize("seed", range(3))
def test_cubes_missing(backend, seed):
    inputs, cubes = random_inputs(6, 6, 6, seed=seed)
    kept = torch.rand(len(cubes), generator=testing.generator(seed)) < (0.3, 0.6, 0.9)[seed]
    inputs = {n: t[kept] if n in ("alpha", "beta", "gamma") else t for n, t in inputs.items()}
    inputs["sdf"] = inputs["sdf"].flatten()
    surface = ops.flexicubes(**on(backend, inputs), cubes=backend.put(cubes[kept]), face_order="nv")
    expected = expected_surface(inputs, cubes[kept])
    assert torch.equal(surface.faces.cpu(), expected.faces)
    testing.assert_accurate(surface.vertices, expected.vertices.double(), expected.vertices, floor=1e-5)


def test_shapes_beside_each_other(backend):
    """Two lists of voxels in one call are the two alone."""
    parts, coords, values = [], [], []
    for shape in range(2):
        field = random_field(5, 5, 5, seed=shape, padded=False)
        cubes, points = reference.lattice((5, 5, 5))
        kept = torch.rand(len(cubes), generator=testing.generator(shape)) < 0.8
        voxels = points[cubes[kept, 0]].int()
        corners = ops.voxel_corners(backend.put(voxels), resolution=4)
        here = backend.put(field)[tuple(corners.coords.long().T)]
        parts.append(ops.flexicubes(here, cubes=corners.cubes, positions=corners.coords.float()))
        coords.append(torch.nn.functional.pad(voxels, (1, 0), value=shape))
        values.append(here)
    corners = ops.voxel_corners(backend.put(torch.cat(coords)), resolution=4)
    both = ops.flexicubes(torch.cat(values), cubes=corners.cubes, positions=corners.coords[:, 1:].float())
    shape_of = corners.coords[corners.cubes[both.vertex_cubes, 0], 0]
    for shape, part in enumerate(parts):
        rows = (shape_of == shape).nonzero()[:, 0]
        assert torch.equal(both.vertices[rows], part.vertices)
        number = torch.full((len(both.vertices),), -1, device=backend.device)
        number[rows] = torch.arange(len(rows), device=backend.device)
        faces = number[both.faces]
        assert torch.equal(faces[faces[:, 0] >= 0], part.faces)


def test_copies_of_a_cube(backend):
    """The last one's weights count."""
    inputs, cubes = random_inputs(4, 4, 4)
    inputs["sdf"] = inputs["sdf"].flatten()
    twice = {
        n: torch.cat([t.flip(0), t]) if n in ("alpha", "beta", "gamma") else t for n, t in inputs.items()
    }
    one = ops.flexicubes(**on(backend, inputs), cubes=backend.put(cubes))
    two = ops.flexicubes(**on(backend, twice), cubes=backend.put(torch.cat([cubes, cubes])))
    assert torch.equal(one.vertices, two.vertices)
    assert torch.equal(one.faces, two.faces)
    assert torch.equal(one.vertex_cubes + len(cubes), two.vertex_cubes)


def test_orders_of_faces(backend):
    inputs, _ = random_inputs(6, 5, 70)
    results = [ops.flexicubes(**on(backend, inputs), face_order=order) for order in ("cube", "nv", "trellis")]
    for result in results[1:]:
        assert torch.equal(by_row(result.faces.cpu()), by_row(results[0].faces.cpu()))
        assert torch.equal(result.vertices, results[0].vertices)
    assert not torch.equal(results[0].faces, results[1].faces)


def test_a_value_of_nothing_is_outside(backend):
    field = torch.nn.functional.pad(torch.full((1, 1, 1), -1.0), (2,) * 6, value=0.0)
    for order in ("nv", "trellis"):
        surface = ops.flexicubes(backend.put(field), face_order=order)
        mesh = Mesh(surface.vertices.cpu(), surface.faces.cpu())
        assert mesh.is_watertight
        assert mesh.volume > 0


def test_values_that_are_not_finite(backend):
    inputs, _ = random_inputs(5, 5, 5)
    plain = ops.flexicubes(**on(backend, inputs))
    field = inputs["sdf"]
    field[field > 1.2] = torch.nan
    field[field < -1.2] = -torch.inf
    inputs = {name: t.requires_grad_() for name, t in on(backend, inputs).items()}
    surface = ops.flexicubes(**inputs)
    assert torch.equal(surface.faces, plain.faces)  # NaN is outside
    assert surface.vertices.isfinite().all()
    (surface.vertices.sum() + surface.deviation.sum()).backward()
    for name in ("positions", "beta", "gamma", "features"):
        grad = inputs[name].grad
        assert grad is None or grad.isfinite().all(), name


@pytest.mark.parametrize("shape", [(0, 0, 0), (1, 5, 5), (5, 1, 5), (5, 5, 1), (3, 3, 3)])
def test_no_surface(backend, shape):
    sdf = backend.put(torch.ones(shape)).requires_grad_()
    surface = ops.flexicubes(sdf, training=True)
    assert tuple(surface.vertices.shape) == tuple(surface.faces.shape) == (0, 3)
    assert surface.deviation.numel() == surface.vertex_cubes.numel() == 0
    assert surface.features is None
    surface.vertices.sum().backward()
    assert (sdf.grad == 0).all()


def test_no_cubes(backend):
    cubes = backend.put(torch.zeros(0, 8, dtype=torch.int64))
    surface = ops.flexicubes(backend.put(torch.ones(4)), cubes=cubes, positions=backend.put(torch.ones(4, 3)))
    assert len(surface.vertices) == len(surface.faces) == 0


# ---- The same everywhere -----------------------------------------------------------------------------------


def gradients(inputs, **options):
    inputs = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    surface = ops.flexicubes(**inputs, **options)
    outputs = [t for t in (surface.vertices, surface.deviation, surface.features) if t is not None]
    weights = [
        torch.randn(t.shape, generator=testing.generator(9), dtype=t.dtype).to(t.device) for t in outputs
    ]
    torch.autograd.backward(outputs, weights)
    return surface, {name: t.grad for name, t in inputs.items()}


@pytest.mark.parametrize("training", [False, True])
def test_equal_bits_on_every_backend(backend, training):
    inputs, _ = random_inputs(5, 6, 70)
    surface, grads = gradients(on(backend, inputs), training=training)
    with _library.use_backend(_C):
        expected, expected_grads = gradients(inputs, training=training)
    assert torch.equal(surface.faces.cpu(), expected.faces)
    if backend.name == "cuda":  # whose tanh is its own
        testing.assert_accurate(surface.vertices, expected.vertices.double(), expected.vertices)
        return
    assert torch.equal(surface.vertices, expected.vertices)
    assert torch.equal(surface.deviation, expected.deviation)
    assert torch.equal(surface.features, expected.features)
    for name, grad in grads.items():
        assert torch.equal(grad, expected_grads[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_instruction_sets_and_threads_agree(dtype):
    inputs, _ = random_inputs(30, 20, 70, dtype=dtype)
    results = []
    for name in testing.instruction_sets():
        for threads in (1, 3):
            with testing.instruction_set(name), testing.num_threads(threads):
                results.append(gradients(inputs, training=True, face_order="trellis"))
    for surface, grads in results[1:]:
        for part, expected in zip(surface, results[0][0], strict=True):
            assert torch.equal(part, expected)
        for name, grad in grads.items():
            assert torch.equal(grad, results[0][1][name])


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_a_list_are_those_of_the_lattice(training):
    """A lattice's are gathered plane by plane, those of a list kept by its cubes and then summed."""
    inputs, cubes = random_inputs(30, 9, 20)
    _, dense = gradients(inputs, training=training)
    _, sparse = gradients(inputs | {"sdf": inputs["sdf"].flatten()}, cubes=cubes, training=training)
    for name, grad in dense.items():
        assert torch.equal(sparse[name].view_as(grad), grad), name


# ---- Gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_gradcheck(backend, training):
    inputs, _ = random_inputs(2, 3, 4, dtype=torch.float64)
    inputs["sdf"] = inputs["sdf"].sign() * (0.2 + inputs["sdf"].abs())
    names = list(inputs)

    def surface(*tensors):
        result = ops.flexicubes(**dict(zip(names, tensors, strict=True)), training=training)
        return result.vertices, result.deviation, result.features

    testing.check_gradients(surface, *on(backend, inputs).values())


@pytest.mark.parametrize("name", ["sdf", "positions", "alpha", "beta", "gamma", "features"])
def test_gradient_of_one_input_alone(backend, name):
    inputs, cubes = random_inputs(4, 4, 5, dtype=torch.float64)
    ours = on(backend, inputs)
    ours[name].requires_grad_()
    surface = ops.flexicubes(**ours, training=True)
    inputs[name].requires_grad_()
    expected = expected_surface(inputs, cubes, training=True)
    count = len(expected.vertex_cubes)  # the centers follow, in another order
    for result in (surface, expected):
        loss = (
            result.vertices.square().sum() + result.deviation.square().sum() + result.features.square().sum()
        )
        (loss + result.vertices[:count].pow(3).sum()).backward()
    testing.assert_gradients_match(ours[name].grad, inputs[name].grad, tolerance=1e-10)


def test_gradient_without_weights_or_positions(backend):
    field = random_field(4, 5, 66, dtype=torch.float64, padded=False)
    cubes, points = reference.lattice(field.shape)
    ours, plain = backend.put(field).requires_grad_(), field.clone().requires_grad_()
    ops.flexicubes(ours, training=True).vertices.square().sum().backward()
    reference.flexicubes(
        plain.flatten(), cubes, points.double(), training=True
    ).vertices.square().sum().backward()
    testing.assert_gradients_match(ours.grad, plain.grad, tolerance=1e-10)


# ---- Surfaces ----------------------------------------------------------------------------------------------


def test_sphere_and_torus(backend):
    small = 12 if backend.name == "emulated" else 40
    for field, characteristic in ((sphere(small), 2), (torus(2 * small), 0)):
        for training in (False, True):
            surface = ops.flexicubes(backend.put(field), training=training)
            mesh = Mesh(surface.vertices.cpu(), surface.faces.cpu())
            assert mesh.is_watertight
            assert euler(mesh) == characteristic
            assert mesh.volume > 0


# ---- The operators -----------------------------------------------------------------------------------------


def test_operators(backend):
    inputs, _ = random_inputs(3, 3, 3)
    inputs = on(backend, inputs)
    topology = list(dual_topology.dual_surface_op(inputs["sdf"], None, 0.0, True, 1))
    testing.check_operator(dual_topology.dual_surface_op, inputs["sdf"], None, 0.0, True, 1)
    rows = topology[1]
    field = (
        inputs["sdf"], None, inputs["positions"], inputs["features"],
        inputs["alpha"][rows], inputs["beta"][rows], inputs["gamma"].view(-1, 1)[rows],
        topology, 0.0, True,
    )  # fmt: skip
    testing.check_operator(dual_surface._flexicubes_op, *field)
    vertices, _, deviation, features = dual_surface._flexicubes_op(*field)
    ones = tuple(torch.ones_like(t) for t in (vertices, features, deviation))
    for activated in (False, True):
        testing.check_operator(
            dual_surface._flexicubes_backward_op, *ones, vertices, features, *field, 8, activated
        )


def test_compiles():
    inputs, _ = random_inputs(4, 4, 4)
    names = list(inputs)
    testing.check_compiles(
        lambda *tensors: tuple(ops.flexicubes(**dict(zip(names, tensors, strict=True)), training=True)),
        *inputs.values(),
    )

    def gradient(wrap):
        sdf, gamma = inputs["sdf"].clone().requires_grad_(), inputs["gamma"].clone().requires_grad_()

        def loss(sdf, gamma):
            surface = ops.flexicubes(sdf, gamma=gamma, training=True)
            return surface.vertices.square().sum() + surface.deviation.sum()

        wrap(loss)(sdf, gamma).backward()
        return sdf.grad, gamma.grad

    compiled = gradient(lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"))
    for result, expected in zip(compiled, gradient(lambda f: f), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("width", [1, 8, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activation(backend, dtype, width):
    raw = torch.cat([torch.linspace(-120, 120, 4001, dtype=torch.float64), torch.randn(4000).double()]).to(
        dtype
    )
    expected = reference.activate(raw.double(), raw.double(), raw.double())
    rows = torch.randperm(len(raw) // width, generator=testing.generator(0))
    raw = raw[: len(rows) * width].view(-1, width)
    for sigmoid in (False, True):
        wanted = expected[2 * sigmoid][: raw.numel()].view(-1, width)[rows]
        apart = torch.stack([raw, raw], 2)[..., 0]  # not contiguous, as columns of a network's output
        for given in (raw, apart):
            weights = dual_surface._flexicubes_weights_op(*backend.put(given, rows), sigmoid)
            torch.testing.assert_close(
                weights.cpu().double(), wanted, rtol=0, atol=2 * torch.finfo(dtype).eps
            )
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0], dtype=dtype)
    special, rows = backend.put(special[:, None].repeat(1, width), torch.arange(5))
    nan, *values = dual_surface._flexicubes_weights_op(special, rows, False)[:, -1].tolist()
    assert nan != nan
    assert values == pytest.approx([1.99, 0.01, 1, 1])
    testing.check_operator(dual_surface._flexicubes_weights_op, special[1:], rows[:2], True)


def test_wrong_inputs(backend):
    inputs, cubes = random_inputs(3, 3, 3)
    inputs = on(backend, inputs)
    sdf, cubes, points = inputs["sdf"], backend.put(cubes), inputs["positions"]
    flat = sdf.flatten()
    with pytest.raises(ValueError, match=r"`values` must have shape \(X, Y, Z\), got \(27,\)"):
        ops.flexicubes(flat)
    with pytest.raises(ValueError, match=r"`values` must have shape \(P,\) beside `cubes`, got \(3, 3, 3\)"):
        ops.flexicubes(sdf, cubes=cubes, positions=points)
    with pytest.raises(TypeError, match="`values` must be float32 or float64, got float16"):
        ops.flexicubes(sdf.half())
    with pytest.raises(ValueError, match="`values` must be contiguous"):
        ops.flexicubes(sdf.transpose(0, 2))
    with pytest.raises(TypeError, match="`cubes` must be int64, got int32"):
        ops.flexicubes(flat, cubes=cubes.int(), positions=points)
    with pytest.raises(ValueError, match=r"`cubes` must have shape \(N, 8\), got \(8, 7\)"):
        ops.flexicubes(flat, cubes=cubes[:, :7].contiguous(), positions=points)
    for wrong in (-1, 27):
        spoiled = cubes.clone()
        spoiled[3, 5] = wrong
        with pytest.raises(ValueError, match=rf"`cubes` must lie in \[0, 27\), got .*{wrong}.* in row 3"):
            ops.flexicubes(flat, cubes=spoiled, positions=points)
    with pytest.raises(ValueError, match="`positions` must be given beside `cubes`"):
        ops.flexicubes(flat, cubes=cubes)
    with pytest.raises(
        ValueError, match=r"`positions` must have three numbers for each value, got \(26, 3\)"
    ):
        ops.flexicubes(sdf, positions=points[1:])
    with pytest.raises(TypeError, match="`positions` must be float32 as `values`, got float64"):
        ops.flexicubes(sdf, positions=points.double())
    with pytest.raises(ValueError, match=r"`features` must have a row for each value, got \(26, 2\)"):
        ops.flexicubes(sdf, features=inputs["features"][1:])
    with pytest.raises(ValueError, match=r"`alpha` must have 8 numbers for each of 8 cubes, got \(8, 7\)"):
        ops.flexicubes(sdf, alpha=inputs["alpha"][:, :7])
    with pytest.raises(ValueError, match=r"`beta` must have 12 numbers for each of 8 cubes, got \(7, 12\)"):
        ops.flexicubes(sdf, beta=inputs["beta"][1:])
    with pytest.raises(ValueError, match=r"`gamma` must have a number for each of 8 cubes, got \(7,\)"):
        ops.flexicubes(sdf, gamma=inputs["gamma"][1:])
    with pytest.raises(ValueError, match="`face_order` must be one of cube, nv, trellis, got 'other'"):
        ops.flexicubes(sdf, face_order="other")


def test_shapes_of_the_lattice_are_taken_too(backend):
    inputs, _ = random_inputs(3, 4, 5)
    inputs = on(backend, inputs)
    flat = ops.flexicubes(**inputs)
    inputs["positions"] = inputs["positions"].view(3, 4, 5, 3)
    inputs["features"] = inputs["features"].view(3, 4, 5, 2)
    for name, width in (("alpha", (8,)), ("beta", (12,)), ("gamma", ())):
        inputs[name] = inputs[name].view(2, 3, 4, *width)
    shaped = ops.flexicubes(**inputs)
    for part, expected in zip(shaped, flat, strict=True):
        assert torch.equal(part, expected)


def test_weights_that_are_no_outputs_of_a_network(backend):
    inputs, _ = random_inputs(4, 4, 4)
    inputs = on(backend, inputs)
    activated = ops.flexicubes(**inputs)
    beta, alpha, gamma = reference.activate(inputs["beta"], inputs["alpha"], inputs["gamma"])
    plain = ops.flexicubes(**inputs | {"beta": beta, "alpha": alpha, "gamma": gamma}, activate=False)
    assert torch.equal(plain.faces, activated.faces)
    torch.testing.assert_close(plain.vertices, activated.vertices, rtol=1e-5, atol=1e-5)
