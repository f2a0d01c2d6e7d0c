"""Grids of bits and their dilation."""

import pytest
import torch

from fastshape import ops, testing
from fastshape.ops import carving
from fastshape.reference import carving as reference

SHAPES = [(5, 6, 7), (1, 1, 1), (3, 2, 64), (4, 3, 65), (2, 5, 130), (9, 1, 63), (1, 4, 128)]


def random_grid(*shape, share=0.08, seed=0):
    return torch.rand(*shape, generator=testing.generator(seed)) < share


def list_of(grid):
    return grid.nonzero().int().contiguous()


def test_the_reference_is_max_pooling():
    grid = random_grid(2, 6, 7, 9)
    pooled = torch.nn.functional.max_pool3d(grid[:, None].float(), 5, 1, 2)[:, 0] > 0
    assert torch.equal(reference.dilate(grid, 2), pooled)
    assert torch.equal(list_of(pooled), reference.dilate_coords(list_of(grid), (6, 7, 9), 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("iterations", [0, 1, 2, 3])
def test_grid(backend, shape, iterations):
    for batch in ((), (3,)):
        grid = random_grid(*batch, *shape)
        result = ops.dilate(backend.put(grid), iterations=iterations).cpu()
        assert result.dtype == torch.bool
        assert torch.equal(result, reference.dilate(grid, iterations))


def test_one_voxel_everywhere(backend):
    """Every place of a grid whose rows have two words, alone: nothing wraps around."""
    shape = (3, 3, 70)
    grids = torch.eye(3 * 3 * 70, dtype=torch.bool)[:: 1 if backend.name == "cpu" else 23]
    grids = grids.reshape(-1, *shape).contiguous()
    assert torch.equal(ops.dilate(backend.put(grids)).cpu(), reference.dilate(grids))


@pytest.mark.parametrize("shape", SHAPES)
def test_packing(backend, shape):
    grid = random_grid(2, *shape, share=0.5)
    bits = ops.pack_bits(backend.put(grid))
    assert bits.dtype == torch.int64
    assert bits.shape == (2, *shape[:2], -(-shape[2] // 64))
    assert torch.equal(ops.unpack_bits(bits, shape[2]).cpu(), grid)
    assert torch.equal(ops.pack_bits(backend.put(grid[0])).cpu(), bits[0].cpu())
    assert torch.equal(ops.unpack_bits(bits[0], shape[2]).cpu(), grid[0])
    words = bits.cpu()
    for z in range(shape[2]):
        assert torch.equal((words[..., z // 64] >> (z % 64) & 1).bool(), grid[..., z])
    if shape[2] % 64:
        assert (words[..., -1] >> (shape[2] % 64) & (1 << (64 - shape[2] % 64)) - 1 == 0).all()


@pytest.mark.parametrize("iterations", [0, 1, 2, 3])
def test_bits(backend, iterations):
    grid = random_grid(2, 5, 4, 100)
    bits = ops.pack_bits(backend.put(grid))
    kept = bits.clone()
    result = ops.dilate_bits(bits, size_z=100, iterations=iterations)
    assert torch.equal(ops.unpack_bits(result, 100).cpu(), reference.dilate(grid, iterations))
    assert torch.equal(result, ops.pack_bits(ops.unpack_bits(result, 100)))  # nothing behind the rows
    assert torch.equal(bits, kept)
    assert torch.equal(ops.dilate_bits(bits[0], size_z=100, iterations=iterations), result[0])


@pytest.mark.parametrize("iterations", [0, 1, 2])
@pytest.mark.parametrize("batch", [None, 3])
def test_coords(backend, iterations, batch):
    for shape in SHAPES:
        grid = random_grid(*(() if batch is None else (batch,)), *shape)
        coords = list_of(grid)
        order = torch.rand(3 * len(coords), generator=testing.generator(1)).argsort()
        coords = coords.repeat(3, 1)[order]
        result = ops.dilate_coords(
            backend.put(coords), shape=shape, batch_size=batch or 1, iterations=iterations
        ).cpu()
        assert result.dtype == torch.int32
        assert torch.equal(result, list_of(reference.dilate(grid, iterations)))
        assert torch.equal(result, reference.dilate_coords(coords, shape, iterations))


def test_values_of_bytes_that_are_not_one(backend):
    grid = torch.tensor([0, 1, 2, 128, 255, 0, 64, 0], dtype=torch.uint8).view(torch.bool).view(1, 1, 8)
    bits = ops.pack_bits(backend.put(grid))
    assert bits.tolist() == [[[0b01011110]]]


def test_instruction_sets_and_threads(instruction_set):
    for shape in ((40, 37, 130), (70, 3, 64), (9, 90, 61)):
        grid = random_grid(2, *shape, share=0.02)
        coords = list_of(grid)
        want = reference.dilate(grid, 2)
        for threads in (1, 2, 5):
            with testing.num_threads(threads):
                assert torch.equal(ops.dilate(grid, iterations=2), want)
                result = ops.dilate_coords(coords, shape=shape, batch_size=2, iterations=2)
                assert torch.equal(result, list_of(want))


def test_empty(backend):
    for shape in ((0, 4, 4), (4, 0, 4), (4, 4, 0), (0, 4, 4, 4)):
        grid = backend.put(torch.zeros(*shape, dtype=torch.bool))
        assert ops.dilate(grid, iterations=2).shape == shape
        assert ops.unpack_bits(ops.pack_bits(grid), shape[-1]).shape == shape
    none = backend.put(torch.empty(0, 3, dtype=torch.int32))
    assert ops.dilate_coords(none, shape=(4, 4, 4)).shape == (0, 3)
    assert ops.dilate_coords(none, shape=(0, 4, 4)).shape == (0, 3)
    none = backend.put(torch.empty(0, 4, dtype=torch.int32))
    assert ops.dilate_coords(none, shape=(4, 4, 4), batch_size=0).shape == (0, 4)


def test_operators(backend):
    grid = backend.put(random_grid(2, 4, 4, 66))
    testing.check_operator(carving._dilate_op, grid, 2)
    testing.check_operator(carving._pack_bits_op, grid)
    bits = ops.pack_bits(grid)
    testing.check_operator(carving._unpack_bits_op, bits, 66)
    testing.check_operator(carving._dilate_bits_op, bits, 66, 0)
    testing.check_operator(carving._dilate_bits_op, bits, 66, 2)
    testing.check_operator(carving._dilate_coords_op, list_of(grid), [4, 4, 66], 2, 1)


def test_compiles():
    grid = random_grid(4, 5, 66)
    testing.check_compiles(lambda g: ops.dilate(g, iterations=2), grid)
    testing.check_compiles(lambda g: ops.unpack_bits(ops.dilate_bits(ops.pack_bits(g), size_z=66), 66), grid)
    testing.check_compiles(lambda c: ops.dilate_coords(c, shape=(4, 5, 66)), list_of(grid))


def test_wrong_inputs(backend):
    grid = backend.put(random_grid(4, 5, 66))
    with pytest.raises(TypeError, match=r"`grid` must be a torch\.Tensor, got list"):
        ops.dilate([[[True]]])
    with pytest.raises(TypeError, match="`grid` must be bool, got uint8"):
        ops.dilate(grid.byte())
    with pytest.raises(
        ValueError, match=r"`grid` must have shape \(X, Y, Z\) or \(B, X, Y, Z\), got \(5, 66\)"
    ):
        ops.pack_bits(grid[0])
    with pytest.raises(ValueError, match="`grid` must be contiguous"):
        ops.dilate(grid.transpose(0, 1))
    with pytest.raises(ValueError, match="`iterations` must be at least 0, got -1"):
        ops.dilate(grid, iterations=-1)
    bits = ops.pack_bits(grid)
    with pytest.raises(TypeError, match="`bits` must be int64, got int32"):
        ops.unpack_bits(bits.int(), 66)
    with pytest.raises(ValueError, match="`bits` must have a word for every 64 of 129 voxels along z"):
        ops.unpack_bits(bits, 129)
    with pytest.raises(ValueError, match="`bits` must have a word for every 64 of 64 voxels along z"):
        ops.dilate_bits(bits, size_z=64)
    coords = list_of(grid)
    with pytest.raises(TypeError, match="`coords` must be int32, got int64"):
        ops.dilate_coords(coords.long(), shape=(4, 5, 66))
    with pytest.raises(ValueError, match=r"`coords` must have shape \(N, 3\)"):
        ops.dilate_coords(coords[:, :2], shape=(4, 5, 66))
    with pytest.raises(ValueError, match=r"`shape` must be three numbers of at least 0"):
        ops.dilate_coords(coords, shape=(4, 5, -66))
    for column, wrong in ((0, 4), (1, -1), (2, 66), (2, -(2**31))):
        spoiled = coords.clone()
        spoiled[5, column] = spoiled[9, column] = wrong
        with pytest.raises(ValueError, match=rf"a grid of shape \(4, 5, 66\), got .*{wrong}.* in row 5"):
            ops.dilate_coords(spoiled, shape=(4, 5, 66))
    batched = torch.nn.functional.pad(coords, (1, 0), value=2)
    with pytest.raises(ValueError, match=r"and a batch of 2, got \[2, .*in row 0"):
        ops.dilate_coords(batched, shape=(4, 5, 66), batch_size=2)
