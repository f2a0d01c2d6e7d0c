import importlib.util
from pathlib import Path

import pytest
import torch

from fastshape import ops, testing
from fastshape.geometry import Mesh
from fastshape.ops import isosurface
from fastshape.reference import isosurface as reference

ROOT = Path(__file__).resolve().parent.parent.parent


def corner_offsets():
    return torch.tensor([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)])


def cells_of(field, crossed_only=False, level=0.0, shift=0):
    """All cells of a lattice of values, or those that the surface crosses; coordinates moved by `shift`."""
    coords = torch.cartesian_prod(*(torch.arange(n - 1) for n in field.shape))
    values = torch.stack([field[tuple((coords + offset).T)] for offset in corner_offsets()], 1)
    if crossed_only:
        inside = values < level
        kept = inside.any(1) & ~inside.all(1)
        coords, values = coords[kept], values[kept]
    return values.contiguous(), (coords + shift).int().contiguous()


def random_field(*shape, seed=0, dtype=torch.float32, padded=True):
    """Random signs, and outside all around."""
    field = torch.randn(*shape, generator=testing.generator(seed), dtype=dtype)
    if padded:
        field = torch.nn.functional.pad(field, (1,) * 6, value=1.0)
    return field


def sphere(resolution, radius=0.7, dtype=torch.float32):
    axis = torch.linspace(-1, 1, resolution, dtype=torch.float64)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    return (torch.stack([x, y, z]).norm(dim=0) - radius).to(dtype)


def torus(resolution, dtype=torch.float32):
    axis = torch.linspace(-1, 1, resolution, dtype=torch.float64)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    return (((x * x + y * y).sqrt() - 0.6).hypot(z) - 0.25).to(dtype)


def euler(mesh):
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]).sort(1).values
    return mesh.num_vertices - len(edges.unique(dim=0)) + mesh.num_faces


def run(backend, values, coords, level=0.0):
    vertices, faces = ops.marching_cubes_sparse(*backend.put(values, coords), level=level)
    return vertices.cpu(), faces.cpu()


# ---- The cases ---------------------------------------------------------------------------------------------


def test_the_table_is_what_the_rules_give(monkeypatch):
    path = ROOT / "scripts" / "marching_cubes_table.py"
    if not path.exists():
        pytest.skip("no source tree")
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location("marching_cubes_table", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (ROOT / "csrc" / "isosurface" / "marching_cubes_table.h").read_text() == script.table()


def test_a_corner_alone():
    assert reference.case_triangles(1) == ((0, 1, 2),)
    values, coords = torch.ones(1, 8), torch.zeros(1, 3, dtype=torch.int32)
    values[0, 0] = -3
    vertices, faces = reference.marching_cubes_sparse(values, coords)
    assert vertices.tolist() == [[0.75, 0, 0], [0, 0.75, 0], [0, 0, 0.75]]
    assert faces.tolist() == [[0, 1, 2]]  # the normal (1, 1, 1) points away from the inside


@pytest.mark.parametrize("case", range(0, 256, 17))
def test_loops_have_every_crossed_edge_once(case):
    loops = reference.case_loops(case)
    crossed = [e for e, (c, a) in enumerate(reference.EDGES) if (case >> c ^ case >> (c | 1 << a)) & 1]
    assert sorted(e for loop in loops for e in loop) == crossed
    assert len(reference.case_triangles(case)) == sum(len(loop) - 2 for loop in loops) <= 5


def test_all_256_cases(backend):
    """Each case as one cell in the middle of a lattice that is outside all around: a closed surface."""
    fields = torch.ones(256, 4, 4, 4)
    for i, (x, y, z) in enumerate(corner_offsets().tolist()):
        fields[:, 1 + x, 1 + y, 1 + z] = 1.0 - 2.0 * (torch.arange(256) >> i & 1)
    parts = [cells_of(field) for field in fields]
    values = torch.cat([values for values, _ in parts])
    apart = 5 * torch.arange(256, dtype=torch.int32)[:, None, None]
    coords = (torch.stack([coords for _, coords in parts]) + apart).view(-1, 3)
    vertices, faces = run(backend, values, coords)
    expected = reference.marching_cubes_sparse(values, coords)
    assert torch.equal(vertices, expected[0])
    assert torch.equal(faces, expected[1])
    assert Mesh(vertices, faces).is_watertight
    for case in (1, 22, 105, 150, 233, 254, 255):
        mesh = Mesh(*run(backend, *parts[case]))
        assert mesh.is_watertight
        assert mesh.volume > 0


# ---- Against the reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("crossed_only", [False, True])
def test_against_the_reference(backend, dtype, crossed_only):
    values, coords = cells_of(random_field(6, 5, 7, dtype=dtype), crossed_only, level=0.2)
    shuffled = torch.randperm(len(values), generator=testing.generator(1))
    for order in (torch.arange(len(values)), shuffled):
        vertices, faces = run(backend, values[order], coords[order], 0.2)
        expected = reference.marching_cubes_sparse(values[order], coords[order], 0.2)
        assert vertices.dtype == dtype
        assert torch.equal(vertices, expected[0])
        assert torch.equal(faces, expected[1])
        assert Mesh(vertices, faces).is_watertight
        assert Mesh(vertices, faces).volume > 0


@pytest.mark.parametrize("seed", range(3))
def test_cells_missing(backend, seed):
    """A surface with holes: vertices whose owner is not in the list."""
    values, coords = cells_of(random_field(6, 6, 6, seed=seed))
    kept = torch.rand(len(values), generator=testing.generator(seed + 10)) < (0.2, 0.5, 0.9)[seed]
    values, coords = values[kept], coords[kept]
    order = torch.randperm(len(values), generator=testing.generator(seed))
    values, coords = values[order], coords[order]
    vertices, faces = run(backend, values, coords)
    expected = reference.marching_cubes_sparse(values, coords)
    assert torch.equal(vertices, expected[0])
    assert torch.equal(faces, expected[1])
    assert set(faces.flatten().tolist()) == set(range(len(vertices)))


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_copies_of_cells_share_their_vertices(backend, share):
    values, coords = cells_of(random_field(5, 5, 6))
    kept = torch.rand(len(values), generator=testing.generator(8)) < share
    values, coords = values[kept], coords[kept]
    rows = torch.randint(len(values), (2 * len(values),), generator=testing.generator(9))
    rows = torch.cat([rows, torch.arange(len(values))])
    expected = reference.marching_cubes_sparse(values[rows], coords[rows])
    result = run(backend, values[rows], coords[rows])
    assert torch.equal(result[0], expected[0])
    assert torch.equal(result[1], expected[1])
    assert torch.equal(result[0], run(backend, values, coords)[0])


def test_sphere_and_torus(backend):
    small = 12 if backend.name == "emulated" else 40
    for field, characteristic in ((sphere(small), 2), (torus(2 * small), 0)):
        resolution = len(field)
        mesh = Mesh(*run(backend, *cells_of(field, crossed_only=True)))
        assert mesh.is_watertight
        assert euler(mesh) == characteristic
        volume = 4 / 3 * torch.pi * 0.7**3 if characteristic else 2 * torch.pi**2 * 0.6 * 0.25**2
        volume *= ((resolution - 1) / 2) ** 3
        assert 0.9 * volume < mesh.volume < volume


def test_vertices_lie_where_the_interpolation_says(backend):
    values = torch.full((1, 8), 1.0, dtype=torch.float64)
    values[0, 0] = -0.1
    vertices, _ = run(backend, values, torch.tensor([[5, 6, 7]], dtype=torch.int32), level=0.25)
    t = (0.25 + 0.1) / 1.1
    assert vertices.tolist() == [[5 + t, 6, 7], [5, 6 + t, 7], [5, 6, 7 + t]]


# ---- Values that are special -------------------------------------------------------------------------------


def test_a_value_equal_to_the_level_is_outside(backend):
    field = torch.nn.functional.pad(torch.full((1, 1, 1), -1.0), (1,) * 6, value=0.0)
    mesh = Mesh(*run(backend, *cells_of(field)))
    assert mesh.is_watertight  # the octahedron of the six neighbors
    assert mesh.volume == pytest.approx(4 / 3)
    none = torch.zeros(3, 3, 3)
    assert len(run(backend, *cells_of(none))[1]) == 0
    # Integers, many of them equal to the level: triangles without area, but closed.
    values = torch.randint(-1, 2, (6, 6, 6), generator=testing.generator(0)).float()
    mesh = Mesh(*run(backend, *cells_of(torch.nn.functional.pad(values, (1,) * 6, value=1.0))))
    assert mesh.is_watertight
    assert (mesh.face_areas == 0).any()


def test_values_that_are_not_finite(backend):
    field = random_field(5, 5, 5)
    plain = run(backend, *cells_of(field))
    spoiled = field.clone()
    spoiled[field > 1.2] = torch.nan
    spoiled[field < -1.2] = -torch.inf
    vertices, faces = run(backend, *cells_of(spoiled))
    assert torch.equal(faces, plain[1])  # NaN is outside
    assert vertices.isfinite().all()
    t = torch.tensor([[-1.0, torch.nan, torch.inf, 1, -torch.inf, 1, 1, 1]])
    vertices = run(backend, t, torch.zeros(1, 3, dtype=torch.int32))[0]
    assert vertices.tolist()[:2] == [[0.5, 0, 0], [0, 0, 0]]


def test_a_level_is_rounded_to_the_values(backend):
    values = torch.full((1, 8), 0.1)  # above the double 0.1
    coords = torch.zeros(1, 3, dtype=torch.int32)
    values[0, 0] = 0
    assert len(run(backend, values, coords, 0.1)[1]) == 1
    assert run(backend, values, coords, 0.1)[0].max() == 1


@pytest.mark.parametrize("level", [float("nan"), float("inf"), -float("inf")])
def test_a_level_that_is_not_finite_has_no_crossings_of_finite_values(backend, level):
    assert len(run(backend, *cells_of(random_field(3, 3, 3)), level=level)[1]) == 0


# ---- Sizes -------------------------------------------------------------------------------------------------


def test_no_cells(backend):
    vertices, faces = run(backend, torch.zeros(0, 8), torch.zeros(0, 3, dtype=torch.int32))
    assert tuple(vertices.shape) == (0, 3)
    assert tuple(faces.shape) == (0, 3)
    assert faces.dtype == torch.int64


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_surface(backend, sign):
    vertices, faces = run(backend, torch.full((300, 8), sign), torch.zeros(300, 3, dtype=torch.int32))
    assert len(vertices) == len(faces) == 0


def test_at_the_end_of_the_range(backend):
    shift = 2**20 - 2 - 4
    values, coords = cells_of(random_field(4, 4, 4), shift=shift)
    assert int(coords.max()) == 2**20 - 2
    vertices, faces = run(backend, values.double(), coords)
    plain = run(backend, values.double(), coords - shift)
    assert torch.equal(faces, plain[1])
    torch.testing.assert_close(vertices - shift, plain[0], rtol=0, atol=1e-9)


def test_many_cells_and_threads_agree():
    """Pieces of work that end in the middle, with and without an order, with cells missing."""
    values, coords = cells_of(random_field(40, 40, 40))
    kept = torch.rand(len(values), generator=testing.generator(2)) < 0.8
    order = torch.randperm(int(kept.sum()), generator=testing.generator(3))
    for v, c in ((values, coords), (values[kept][order], coords[kept][order])):
        expected = reference.marching_cubes_sparse(v, c)
        for threads in (1, 2, 5):
            with testing.num_threads(threads):
                result = ops.marching_cubes_sparse(v, c)
            assert torch.equal(result[0], expected[0])
            assert torch.equal(result[1], expected[1])


# ---- Gradients ---------------------------------------------------------------------------------------------


def test_gradient_summed_over_the_lattice_is_the_dense_one(backend):
    """Whichever cells are there, and for the values themselves: the last cell of an edge has it all."""
    field = random_field(4, 5, 4, dtype=torch.float64)
    values, coords = cells_of(field)
    weights = testing.random_points(len(ops.marching_cubes(field)[0]), dtype=torch.float64)
    order = torch.randperm(len(values), generator=testing.generator(4))
    v, c, w = backend.put(values[order].contiguous(), coords[order].contiguous(), weights)
    v = v.requires_grad_()
    (ops.marching_cubes_sparse(v, c)[0] * w).sum().backward()
    points = coords[order].long()[:, None] + corner_offsets()
    lattice = torch.zeros_like(field).index_put(tuple(points.view(-1, 3).T), v.grad.cpu().flatten(), True)
    dense = field.clone().requires_grad_()
    (ops.marching_cubes(dense)[0] * weights).sum().backward()
    torch.testing.assert_close(lattice, dense.grad, rtol=1e-12, atol=1e-12)


def test_gradient_goes_to_the_owner(backend):
    values, coords = cells_of(random_field(4, 4, 4, dtype=torch.float64))
    kept = torch.rand(len(values), generator=testing.generator(5)) < 0.6
    values, coords = values[kept].contiguous(), coords[kept].contiguous()

    def gradient(extract, values, coords):
        values = values.detach().requires_grad_()
        vertices = extract(values, coords)[0]
        weights = testing.random_points(len(vertices), dtype=torch.float64).to(vertices.device)
        (vertices * weights).sum().backward()
        return values.grad.cpu()

    result = gradient(ops.marching_cubes_sparse, *backend.put(values, coords))
    expected = gradient(reference.marching_cubes_sparse, values, coords)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_backward_in_the_order_of_the_vertices(backend):
    values, coords = cells_of(random_field(5, 5, 5))
    source = isosurface._marching_cubes_sparse_op(values, coords, 0.0)[2]
    weights = testing.random_points(len(source))
    result = isosurface._marching_cubes_sparse_backward_op(*backend.put(weights, values, source), 0.0)
    expected = isosurface._marching_cubes_sparse_backward_op(weights, values, source, 0.0)
    assert torch.equal(result.cpu(), expected)


def test_no_gradient_without_a_surface(backend):
    v = backend.put(torch.ones(5, 8)).requires_grad_()
    c = backend.put(torch.zeros(5, 3, dtype=torch.int32))
    ops.marching_cubes_sparse(v, c)[0].sum().backward()
    assert (v.grad == 0).all()


# ---- The operator ------------------------------------------------------------------------------------------


def test_operator(backend):
    values, coords = backend.put(*cells_of(random_field(3, 3, 3)))
    testing.check_operator(isosurface._marching_cubes_sparse_op, values, coords, 0.0)
    vertices, _, source = isosurface._marching_cubes_sparse_op(values, coords, 0.0)
    testing.check_operator(
        isosurface._marching_cubes_sparse_backward_op, torch.ones_like(vertices), values, source, 0.0
    )


def test_compiles():
    testing.check_compiles(
        lambda values, coords: ops.marching_cubes_sparse(values, coords), *cells_of(random_field(4, 4, 4))
    )


def test_wrong_inputs(backend):
    values, coords = backend.put(*cells_of(random_field(2, 2, 2)))
    with pytest.raises(ValueError, match=r"`values` must have shape \(N, 8\), got \(27, 7\)"):
        ops.marching_cubes_sparse(values[:, :7].contiguous(), coords)
    with pytest.raises(ValueError, match=r"`coords` must have shape \(N, 3\), got \(26, 3\)"):
        ops.marching_cubes_sparse(values, coords[1:])
    with pytest.raises(TypeError, match="`coords` must be int32, got int64"):
        ops.marching_cubes_sparse(values, coords.long())
    with pytest.raises(TypeError, match="`values` must be float32 or float64, got float16"):
        ops.marching_cubes_sparse(values.half(), coords)
    with pytest.raises(ValueError, match="`values` must be contiguous"):
        ops.marching_cubes_sparse(values.T.contiguous().T, coords)
    for wrong in (-1, 2**20 - 1):
        spoiled = coords.clone()
        spoiled[5, 1] = wrong
        with pytest.raises(
            ValueError, match=rf"`coords` must lie in \[0, 1048574\], got .*{wrong}.* in cell 5"
        ):
            ops.marching_cubes_sparse(values, spoiled)
