import pytest
import torch

from fastshape import ops, testing
from fastshape.reference import isosurface as reference


def flat(coords, shape):
    x, y, z = torch.as_tensor(coords).unbind(-1)
    return (x * shape[1] + y) * shape[2] + z


def every_point(shape):
    return torch.arange(shape[0] * shape[1] * shape[2])


def hollow_box(low, high):
    """The shell of the lattice points low..high, both included."""
    grid = torch.cartesian_prod(*(torch.arange(a, b + 1) for a, b in zip(low, high, strict=True)))
    shell = ((grid == torch.tensor(low)) | (grid == torch.tensor(high))).any(1)
    return grid[shell]


def test_reference_on_a_box_and_a_leaking_box():
    shape = (5, 6, 7)
    box = hollow_box((1, 1, 1), (3, 4, 5))
    solid = flat(box, shape)
    inner = flat([[2, 2, 2], [2, 3, 4]], shape)
    outer = flat([[0, 0, 0], [4, 5, 6], [2, 0, 3]], shape)
    assert not reference.flood_fill(inner, solid, shape).any()
    assert reference.flood_fill(outer, solid, shape).all()
    assert not reference.flood_fill(solid, solid, shape).any()
    opened = solid[solid != flat([1, 2, 2], shape)]
    assert reference.flood_fill(inner, opened, shape).all()
    no_edge = solid[solid != flat([1, 1, 2], shape)]  # only a diagonal step leads in
    assert not reference.flood_fill(inner, no_edge, shape).any()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.69, 0.75, 0.9, 1.0])
@pytest.mark.parametrize(
    "shape", [(9, 10, 11), (1, 7, 5), (6, 1, 8), (8, 9, 1), (1, 1, 1), (3, 3, 40), (24, 5, 6)]
)
def test_random_points(backend, shape, share):
    """Around a share of 0.69 free points stop hanging together: that is where paths are longest."""
    generator = torch.Generator().manual_seed(hash((shape, share)) % 1000)
    points = every_point(shape)
    solid = points[torch.rand(len(points), generator=generator) < share]
    expected = reference.flood_fill(points, solid, shape)
    result = ops.flood_fill(*backend.put(points, solid), shape=shape)
    assert torch.equal(result.cpu(), expected)


def test_order_and_duplicates_do_not_matter(backend):
    shape = (12, 11, 10)
    points = every_point(shape)
    generator = torch.Generator().manual_seed(0)
    solid = points[torch.rand(len(points), generator=generator) < 0.65]
    expected = reference.flood_fill(points, solid, shape)
    mixed = torch.cat([solid, solid[::3], torch.tensor([-1, -7, len(points), len(points) + 9])])
    mixed = mixed[torch.randperm(len(mixed), generator=generator)]
    order = torch.randperm(len(points), generator=generator)
    result = ops.flood_fill(*backend.put(points[order], mixed), shape=shape)
    assert torch.equal(result.cpu(), expected[order])
    put_points, put_solid = backend.put(points, mixed.sort().values)
    sorted_result = ops.flood_fill(put_points, put_solid, shape=shape, solid_is_sorted=True)
    assert torch.equal(sorted_result.cpu(), expected)


def test_a_labyrinth(backend):
    """Plates with a gap at alternating ends: one winding way through them, then closed at its mouth."""
    shape = (16, 12, 20)
    grid = torch.cartesian_prod(*(torch.arange(n) for n in shape))
    inside = ((grid > 1) & (grid < torch.tensor(shape) - 2)).all(1)
    block = ((grid >= 1) & (grid < torch.tensor(shape) - 1)).all(1)
    plate = inside & (grid[:, 0] % 2 == 1) & torch.where(grid[:, 0] % 4 == 1, grid[:, 2] > 2, grid[:, 2] < 17)
    solid = every_point(shape)[(block & ~inside) | plate]
    mouth = flat([1, 5, 5], shape)
    points = every_point(shape)
    for walls, reachable in ((solid[solid != mouth], True), (solid, False)):
        result = ops.flood_fill(*backend.put(points, walls), shape=shape).cpu()
        assert torch.equal(result, reference.flood_fill(points, walls, shape))
        assert bool(result[flat([12, 5, 5], shape)]) == reachable


def test_points_beyond_the_border(backend):
    points = torch.tensor([-1, -100, 27, 10**15, -(2**62), 13])
    result = ops.flood_fill(*backend.put(points, torch.arange(27)), shape=(3, 3, 3))
    assert result.tolist() == [True] * 5 + [False]


def test_empty(backend):
    none = torch.empty(0, dtype=torch.int64)
    assert ops.flood_fill(*backend.put(none, torch.arange(4)), shape=(2, 2, 2)).shape == (0,)
    assert ops.flood_fill(*backend.put(none, none), shape=(2, 2, 2)).shape == (0,)
    assert ops.flood_fill(*backend.put(every_point((4, 4, 4)), none), shape=(4, 4, 4)).all()


def test_a_lattice_that_has_no_dense_grid(backend):
    """A hollow box in 1024 x 1024 x 2^40 points: only rows and solid points are stored."""
    shape = (64, 64, 2**40) if backend.name == "emulated" else (1024, 1024, 2**40)
    solid = flat(hollow_box((30, 30, 2**39), (34, 34, 2**39 + 4)), shape)
    points = flat([[32, 32, 2**39 + 2], [32, 32, 5], [40, 40, 2**39]], shape)
    result = ops.flood_fill(*backend.put(points, solid), shape=shape)
    assert result.tolist() == [False, True, True]


def test_number_of_threads_does_not_matter():
    shape = (150, 150, 20)
    points = every_point(shape)
    solid = points[torch.rand(len(points), generator=torch.Generator().manual_seed(1)) < 0.68]
    results = []
    for threads in (1, 2, 5):
        with testing.num_threads(threads):
            results.append(ops.flood_fill(points, solid, shape=shape))
    assert 0 < int(results[0].sum()) < len(points) - len(solid)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_operator(backend):
    points, solid = backend.put(every_point((4, 4, 4)), torch.tensor([1, 2, 21]))
    testing.check_operator(torch.ops.fastshape.flood_fill.default, points, solid, [4, 4, 4])
    testing.check_compiles(lambda p, s: ops.flood_fill(p, s, shape=(4, 4, 4)), points, solid)


def test_wrong_input(backend):
    points, solid = backend.put(torch.arange(3), torch.arange(2))
    with pytest.raises(TypeError, match="`points` must be int64, got int32"):
        ops.flood_fill(points.int(), solid, shape=(2, 2, 2))
    with pytest.raises(TypeError, match="`solid` must be int64"):
        ops.flood_fill(points, solid.float(), shape=(2, 2, 2))
    with pytest.raises(ValueError, match=r"`points` must have shape \(N,\)"):
        ops.flood_fill(points[:, None].contiguous(), solid, shape=(2, 2, 2))
    with pytest.raises(ValueError, match=r"positive numbers, got \(2, 0, 2\)"):
        ops.flood_fill(points, solid, shape=(2, 0, 2))
    with pytest.raises(ValueError, match=r"fewer than 2\^31"):
        ops.flood_fill(points, solid, shape=(2**20, 2**20, 2))
    with pytest.raises(ValueError, match=r"fewer than 2\^31"):
        ops.flood_fill(points, solid, shape=(2**40, 2**40, 2**40))
