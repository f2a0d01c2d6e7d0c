import pytest
import torch
from test_marching_cubes_sparse import euler, random_field, sphere, torus

from fastshape import ops, testing
from fastshape.geometry import Mesh
from fastshape.ops import dual_mesh
from fastshape.reference import flexicubes as reference


def run(backend, values, **options):
    vertices, faces = ops.dual_marching_cubes(backend.put(values), **options)
    return vertices.cpu(), faces.cpu()


def edge_uses(faces):
    """How often each edge is used, and by how much more often one way than the other."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    way = (edges[:, 0] < edges[:, 1]).long() * 2 - 1
    _, inverse = edges.sort(1).values.unique(dim=0, return_inverse=True)
    count = torch.bincount(inverse)
    return count, torch.zeros_like(count).index_add(0, inverse, way)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 6, 7), (3, 4, 65)])
def test_against_the_reference(backend, shape, dtype):
    values = random_field(*shape, dtype=dtype, padded=False)
    vertices, faces = run(backend, values, level=0.25)
    cubes, points = reference.lattice(shape)
    expected = reference.flexicubes(values.flatten() - 0.25, cubes, points.to(dtype))
    wide = reference.flexicubes(values.double().flatten() - 0.25, cubes, points.double())
    assert vertices.dtype == dtype
    testing.assert_accurate(vertices, wide.vertices, expected.vertices)
    # In the order of our own: by the lowest of a quad's cubes.
    assert torch.equal(
        faces.view(-1, 6).unique(dim=0).sort().values, expected.faces.view(-1, 6).unique(dim=0).sort().values
    )


@pytest.mark.parametrize("seed", range(4))
def test_random_signs_give_a_closed_manifold(backend, seed):
    """Every edge has two faces that run through it in opposite directions."""
    vertices, faces = run(backend, random_field(8, 9, 10, seed=seed))
    count, balance = edge_uses(faces)
    assert (count == 2).all()
    assert (balance == 0).all()
    assert Mesh(vertices, faces).is_watertight
    assert Mesh(vertices, faces).volume > 0


def test_where_it_is_no_manifold(backend):
    """Without the other cases an edge of two ambiguous neighbors has four faces; it still is closed."""
    values = torch.cat([random_field(8, 9, 10, seed=seed) for seed in range(4)], 2)
    count, balance = edge_uses(run(backend, values, manifold=False)[1])
    assert (count == 4).any()
    assert (count % 2 == 0).all()
    assert (balance == 0).all()
    repaired = edge_uses(run(backend, values)[1])[0]
    assert (repaired == 2).all()


def test_two_ambiguous_neighbors(backend):
    """The smallest field with such an edge: two cubes along x, ambiguous across the face between them."""
    signs = torch.tensor([1.0 - 2 * (1895 >> i & 1) for i in range(12)]).view(3, 2, 2)
    values = torch.nn.functional.pad(signs, (1,) * 6, value=1.0)
    count, _ = edge_uses(run(backend, values, manifold=False)[1])
    assert count.max() == 4
    count, _ = edge_uses(run(backend, values)[1])
    assert (count == 2).all()


def test_sphere_and_torus(backend):
    small = 12 if backend.name == "emulated" else 40
    for field, characteristic in ((sphere(small), 2), (torus(2 * small), 0)):
        mesh = Mesh(*run(backend, field))
        assert mesh.is_watertight
        assert euler(mesh) == characteristic
        marching = Mesh(*ops.marching_cubes(field))
        assert mesh.volume == pytest.approx(marching.volume, rel=0.05)
        assert abs(mesh.num_faces - marching.num_faces) < 0.2 * marching.num_faces


def test_it_is_open_where_the_lattice_ends(backend):
    """A plane through the lattice: a square of quads between the cubes' middles."""
    values = (torch.arange(4.0) - 1.25).expand(5, 6, 4).contiguous()
    vertices, faces = run(backend, values)
    assert len(vertices) == 4 * 5
    assert len(faces) == 2 * 3 * 4
    assert (vertices[:, 2] == 1.25).all()
    normals = torch.linalg.cross(
        vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]]
    )
    assert (normals[:, 2] > 0).all()  # towards the larger values


def test_sparse_is_dense_where_all_crossed_cubes_are_there(backend):
    values = random_field(6, 6, 6)
    cubes, points = reference.lattice(values.shape)
    inside = values.flatten()[cubes] < 0
    crossed = inside.any(1) & ~inside.all(1)
    corners = ops.voxel_corners(backend.put(points[cubes[crossed, 0]].int()), resolution=7)
    here = backend.put(values)[tuple(corners.coords.long().T)]
    vertices, faces = ops.dual_marching_cubes(here, cubes=corners.cubes, positions=corners.coords.float())
    dense = run(backend, values)
    assert torch.equal(vertices.cpu(), dense[0])
    assert torch.equal(faces.cpu(), dense[1])


def test_gradcheck(backend):
    values = random_field(3, 3, 4, dtype=torch.float64, padded=False)
    values = backend.put(values.sign() * (0.2 + values.abs()))
    testing.check_gradients(lambda v: ops.dual_marching_cubes(v, level=0.1)[0], values)


# ---- Sharp vertices ----------------------------------------------------------------------------------------


def box_distance(points, half):
    """To the nearest of a box's planes, signed: linear along an edge that crosses one of them."""
    return (points.abs() - half).amax(-1)


def box_field(resolution, dtype=torch.float64):
    """A box that the lattice does not fit, turned around all axes; its distance and gradient by place."""
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=testing.generator(5), dtype=dtype))
    half = torch.tensor([0.71, 0.43, 0.57], dtype=dtype)

    def distance(places):
        return box_distance((places / (resolution - 1) * 2 - 1) @ turn.to(places), half.to(places))

    def gradient(places):
        with torch.enable_grad():
            places = places.detach().requires_grad_()
            return torch.autograd.grad(distance(places).sum(), places)[0]

    _, points = reference.lattice((resolution,) * 3)
    return distance(points.to(dtype)).view((resolution,) * 3), distance, gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_box_keeps_its_edges(backend, dtype):
    resolution = 20 if backend.name == "emulated" else 40
    field, distance, gradient = box_field(resolution, dtype)
    smooth = Mesh(*run(backend, field))
    sharp = Mesh(*run(backend, field, gradient=gradient))
    exact = 8 * 0.71 * 0.43 * 0.57 * ((resolution - 1) / 2) ** 3
    errors = [abs(mesh.volume - exact) / exact for mesh in (smooth, sharp)]
    assert errors[1] < 0.25 * errors[0]
    away = [distance(mesh.vertices.to(dtype)).abs().mean() for mesh in (smooth, sharp)]
    assert away[1] < 0.3 * away[0]
    assert sharp.is_watertight
    assert (sharp.num_vertices, sharp.num_faces) == (smooth.num_vertices, smooth.num_faces)


def test_three_planes_meet_in_a_corner(backend):
    """Worked out by hand: one crossing on each of three planes through (0.3, 0.6, 0.2)."""
    corner = torch.tensor([0.3, 0.6, 0.2], dtype=torch.float64)
    values = torch.ones(2, 2, 2, dtype=torch.float64)
    values[1, 1, 1] = -1
    values[0, 1, 1], values[1, 0, 1], values[1, 1, 0] = (corner / (1 - corner)).tolist()

    def gradient(places):
        assert len(places) == 3
        return -torch.eye(3, dtype=places.dtype, device=places.device)[(places - 1).abs().argmax(1)]

    vertices, faces = run(backend, values, gradient=gradient, regularization=1e-12)
    torch.testing.assert_close(vertices, corner[None], rtol=0, atol=1e-9)
    assert len(faces) == 0
    # With nothing but the regularization it is the mean.
    vertices, _ = run(backend, values, gradient=torch.zeros_like)
    torch.testing.assert_close(vertices, run(backend, values)[0])


def test_sharp_vertices_stay_in_their_cubes(backend):
    values = random_field(6, 7, 8, padded=False)

    def gradient(places):
        return torch.randn(places.shape, generator=testing.generator(3)).to(places)

    vertices, faces = run(backend, values, gradient=gradient, regularization=1e-4)
    plain, plain_faces = run(backend, values)
    assert vertices.isfinite().all()
    assert ((vertices - plain.floor()).abs() <= 1).all()
    assert (vertices != plain).any()
    # The same quads, split along either diagonal.
    corners = [f.view(-1, 6)[:, :3].sort().values for f in (faces, plain_faces)]
    assert len(corners[0]) == len(corners[1])
    assert edge_uses(faces)[0].max() <= 2


def test_sharp_lists_of_cubes(backend):
    field, _, gradient = box_field(12)
    cubes, points = reference.lattice(field.shape)
    dense = run(backend, field, gradient=gradient)
    flat, cubes, points = backend.put(field.flatten(), cubes, points.double())
    vertices, faces = ops.dual_marching_cubes(flat, cubes=cubes, positions=points, gradient=gradient)
    assert torch.equal(faces.cpu(), dense[1])
    torch.testing.assert_close(vertices.cpu(), dense[0], rtol=0, atol=1e-12)


def test_sharp_without_a_surface(backend):
    vertices, faces = run(backend, torch.ones(3, 3, 3), gradient=torch.zeros_like)
    assert tuple(vertices.shape) == tuple(faces.shape) == (0, 3)


def test_wrong_gradients(backend):
    values = backend.put(random_field(3, 3, 3))
    with pytest.raises(ValueError, match=r"`gradient` must return shape \(.*, 3\), got \(.*, 2\)"):
        ops.dual_marching_cubes(values, gradient=lambda places: places[:, :2])
    with pytest.raises(ValueError, match="`regularization` must be positive, got 0"):
        ops.dual_marching_cubes(values, gradient=torch.zeros_like, regularization=0)


@pytest.mark.parametrize("manifold", [False, True])
def test_with_and_without_gradients(backend, manifold):
    """What is written without gradients is what they are of, of a lattice and of a list of cubes."""
    values = random_field(9, 5, 70, padded=False)
    cubes, points = reference.lattice(tuple(values.shape))
    places = points + 0.3 * torch.rand(len(points), 3, generator=testing.generator(2))
    lists = backend.put(values.flatten()), {"cubes": backend.put(cubes), "positions": backend.put(places)}
    for field, options in (
        (backend.put(values), {}),
        (backend.put(values), {"positions": backend.put(places)}),
        lists,
    ):
        alone = ops.dual_marching_cubes(field, level=0.1, manifold=manifold, **options)
        leaf = field.clone().requires_grad_()
        vertices, faces = ops.dual_marching_cubes(leaf, level=0.1, manifold=manifold, **options)
        assert vertices.requires_grad
        assert not alone[0].requires_grad
        assert torch.equal(alone[0], vertices.detach())
        assert torch.equal(alone[1], faces)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_instruction_sets_and_threads_agree(dtype):
    values = random_field(20, 20, 200, dtype=dtype, padded=False)
    values[3, 4] = torch.nan
    values[5, 6] = 0.0
    results = []
    for name in testing.instruction_sets():
        for threads in (1, 3):
            with testing.instruction_set(name), testing.num_threads(threads):
                results.append(ops.dual_marching_cubes(values))
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        assert torch.equal(result[1], results[0][1])


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 1, 3), (2, 2, 2), (2, 9, 1), (9, 2, 64), (2, 3, 130)])
def test_thin_lattices(backend, shape):
    """Sizes at which a lattice has no cubes, or cubes and no quads along some axis."""
    values = random_field(*shape, padded=False)
    vertices, faces = run(backend, values)
    cubes, points = reference.lattice(shape)
    expected = reference.flexicubes(values.flatten(), cubes, points.float())
    assert vertices.shape == expected.vertices.shape
    assert torch.equal(
        faces.view(-1, 6).unique(dim=0).sort().values, expected.faces.view(-1, 6).unique(dim=0).sort().values
    )


def test_operator(backend):
    values = backend.put(random_field(3, 4, 5, padded=False))
    testing.check_operator(dual_mesh._dual_mesh_op, values, None, None, 0.1, True)
    cubes, points = (backend.put(t) for t in reference.lattice((3, 4, 5)))
    field = values.flatten()
    testing.check_operator(dual_mesh._dual_mesh_op, field, cubes, points.float(), 0.1, False)


def test_compiles():
    testing.check_compiles(lambda v: ops.dual_marching_cubes(v, level=0.2), random_field(4, 4, 4))


def test_wrong_inputs(backend):
    values = backend.put(random_field(3, 3, 3))
    with pytest.raises(ValueError, match=r"`values` must have shape \(X, Y, Z\), got \(1, 5, 5, 5\)"):
        ops.dual_marching_cubes(values[None])
    with pytest.raises(TypeError, match="`values` must be float32 or float64, got float16"):
        ops.dual_marching_cubes(values.half())
