import math

import pytest
import torch

from fastshape import ops, testing
from fastshape.geometry import Mesh, shapes
from fastshape.geometry.narrow_band import (
    Lattice,
    crossed_cells,
    far_from_inside,
    find,
    follow,
    grow,
    narrow_band,
)
from fastshape.reference import mesh as reference


def everything(lattice):
    return torch.arange(lattice.count**3)


def test_lattice_positions():
    lattice = Lattice(20, 1.05, margin=3)
    assert lattice.count == 27
    assert lattice.cell == pytest.approx(0.105)
    indices = torch.tensor([0, 1, 27, 27 * 27, 27**3 - 1])
    coords = lattice.coords(indices)
    assert coords.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [26, 26, 26]]
    assert torch.equal(lattice.flat(coords), indices)
    expected = (coords.double() - 3) / 20 * 2.1 - 1.05
    torch.testing.assert_close(lattice.positions(coords), expected)
    assert lattice.on_border(indices).all()
    assert not lattice.on_border(lattice.flat(torch.tensor([[1, 2, 3]]))).any()


@pytest.mark.parametrize("resolution", [9, 33])
@pytest.mark.parametrize("radius", [0.0, 0.02, 0.2])
def test_narrow_band_is_every_point_within_the_radius(resolution, radius):
    vertices, faces = testing.icosphere(0, 0.7)
    vertices = vertices + torch.tensor([0.1, -0.2, 0.05])
    lattice = Lattice(resolution, 1.05, margin=1)
    indices, distance = narrow_band(lattice, ops.build_bvh(vertices.float(), faces), radius)
    every = lattice.points(everything(lattice))
    exact = reference.closest_point(every.double(), vertices, faces)[0]
    sure = (exact - radius).abs() > 1e-6
    assert torch.equal(torch.isin(everything(lattice), indices)[sure], (exact <= radius)[sure])
    assert (indices.diff() > 0).all()
    torch.testing.assert_close(distance.double(), exact[indices], rtol=0, atol=1e-6)  # of coordinates near 1


def test_narrow_band_of_a_point_beyond_the_lattice_is_empty():
    mesh = Mesh(torch.tensor([[9.0, 9, 9], [9, 9.1, 9], [9, 9, 9.1]]), torch.tensor([[0, 1, 2]]))
    indices, distance = narrow_band(Lattice(16), ops.build_bvh(mesh.vertices, mesh.faces), 0.1)
    assert len(indices) == len(distance) == 0
    coords, values = crossed_cells(Lattice(16), indices, distance, 0.0)
    assert coords.shape == (0, 3)
    assert values.shape == (0, 8)


def test_find():
    at, found = find(torch.tensor([2, 4, 9]), torch.tensor([4, 1, 9, 10, 2, 3]))
    assert found.tolist() == [True, False, True, False, True, False]
    assert at[found].tolist() == [1, 2, 0]
    assert not find(torch.tensor([], dtype=torch.int64), torch.tensor([1]))[1].any()


def test_crossed_cells_are_those_of_the_dense_grid():
    lattice = Lattice(12)
    generator = torch.Generator().manual_seed(0)
    kept = (torch.rand(lattice.count**3, generator=generator) < 0.9).nonzero().flatten()
    kept = kept[~lattice.on_border(kept)]
    values = torch.randn(len(kept), generator=generator)
    values[::17] = 0.25  # the level itself is outside
    coords, corners = crossed_cells(lattice, kept, values, 0.25)
    dense = torch.full((lattice.count**3,), math.nan)
    dense[kept] = values
    dense = dense.view(lattice.shape)
    n = lattice.count - 1
    expected = torch.stack(
        [dense[i & 1 :, (i >> 1) & 1 :, (i >> 2) & 1 :][:n, :n, :n] for i in range(8)], -1
    ).reshape(-1, 8)
    inside = expected < 0.25
    mixed = ~expected.isnan().any(1) & inside.any(1) & ~inside.all(1)
    where = torch.cartesian_prod(*[torch.arange(n)] * 3)[mixed]
    assert coords.dtype == torch.int32
    assert torch.equal(coords.long(), where)
    assert torch.equal(corners, expected[mixed])


def test_follow_closes_a_surface_from_a_piece_of_it():
    """A ball of which only the lowest points are known at first."""
    lattice = Lattice(24)

    def field(indices):
        return lattice.points(indices).norm(dim=1) - 0.8

    every = everything(lattice)
    start = every[(field(every).abs() < 0.2) & (lattice.points(every)[:, 2] < -0.6)]
    indices, values = follow(lattice, start, field(start), 0.0, field, most=10**6)
    assert torch.equal(values, field(indices))
    vertices, faces = ops.marching_cubes_sparse(*reversed(crossed_cells(lattice, indices, values, 0.0)))
    mesh = Mesh(lattice.positions(vertices), faces)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.8**3, rel=0.02)
    assert len(indices) < 0.5 * lattice.count**3
    assert follow(lattice, start, field(start), 0.0, field, most=100) is None


def test_follow_leaves_a_finished_surface_alone():
    mesh = shapes.torus(segments=48)
    lattice = Lattice(32)
    bvh = ops.build_bvh(mesh.vertices, mesh.faces)
    indices, distance = narrow_band(lattice, bvh, 1.75 * lattice.cell)
    winding = ops.winding_number(lattice.points(indices), bvh)
    values = torch.where(winding > 0.5, -distance, distance)

    def field(indices):
        raise AssertionError("nothing should be asked for")

    result = follow(lattice, indices, values, 0.0, field, most=0)
    assert torch.equal(result[0], indices)
    assert torch.equal(result[1], values)


def test_far_from_inside():
    """Every outside point beside a ball has an inside one near it; beside a sheet none has."""
    lattice = Lattice(32)
    vertices, faces = testing.icosphere(3, 0.6)
    for scale, expected in ((1.0, False), (1e-3, True)):
        bvh = ops.build_bvh((vertices * torch.tensor([1, 1, scale])).float(), faces)
        indices, distance = narrow_band(lattice, bvh, 1.8 * lattice.cell)
        winding = ops.winding_number(lattice.points(indices), bvh)
        inside = (winding > 0.5) & (not expected)  # a lattice plane lies in the sheet
        candidates = (~inside & (distance < 0.95 * lattice.cell)).nonzero().flatten()
        result = far_from_inside(lattice, indices, inside, candidates, bvh)
        assert len(result) == len(candidates) > 100
        assert bool(result.all() if expected else not result.any())


def test_grow():
    lattice = Lattice(8)
    every = everything(lattice)
    coords = lattice.coords(every)
    chosen = every == int(lattice.flat(torch.tensor([[4, 4, 4]])))
    within = coords[:, 0] >= 4
    within[::5] = False
    indices = every[within | chosen]
    rows = indices
    result = grow(lattice, indices, chosen[rows], within[rows], rounds=1)
    expected = chosen | (within & ((coords - 4).abs().amax(1) <= 1))
    assert torch.equal(result, expected[rows])
    twice = grow(lattice, indices, chosen[rows], within[rows], rounds=2)
    assert torch.equal(twice, grow(lattice, indices, result, within[rows], rounds=1))
    assert not grow(lattice, indices, chosen[rows] & False, within[rows], rounds=3).any()
