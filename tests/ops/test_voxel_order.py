import pytest
import torch

from fastshape import ops, testing
from fastshape.ops import attention
from fastshape.reference import attention as reference


def random_coords(number, size, *, batch=3, seed=0, dtype=torch.int32):
    generator = testing.generator(seed)
    numbers = torch.randint(batch, (number, 1), generator=generator)
    return torch.cat([numbers, torch.randint(size, (number, 3), generator=generator)], 1).to(dtype)


def test_the_reference_of_a_cube_of_two():
    coords = torch.cartesian_prod(*(torch.arange(2) for _ in range(4))).flip(0)
    assert reference.voxel_order(coords).tolist() == list(reversed(range(16)))
    coords = torch.tensor([[0, 2, 0, 0], [0, 1, 1, 1], [0, 0, 2, 0], [0, 0, 0, 3]])
    assert reference.voxel_order(coords).tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("size", "batch"), [(3, 1), (70, 5), (2**20, 2), (2**20, 2**31), (1, 1)])
def test_against_the_reference(backend, dtype, size, batch):
    coords = random_coords(500, size, batch=batch, dtype=dtype)  # of a small grid: with many copies
    order = ops.voxel_order(backend.put(coords))
    assert order.dtype == torch.int64
    assert torch.equal(order.cpu(), reference.voxel_order(coords))


def test_boxes_are_runs(backend):
    coords = random_coords(600, 40).unique(dim=0).int().contiguous()
    coords = coords[ops.voxel_order(backend.put(coords)).cpu()]
    for side in (2, 4, 8, 16, 32):
        boxes = torch.cat([coords[:, :1], coords[:, 1:] // side], 1)
        changes = int((boxes[1:] != boxes[:-1]).any(1).sum()) + 1
        assert changes == len(boxes.unique(dim=0))


def test_empty(backend):
    assert ops.voxel_order(backend.put(torch.empty(0, 4, dtype=torch.int32))).tolist() == []


def test_operator(backend):
    testing.check_operator(attention._voxel_order_op, backend.put(random_coords(30, 9)))


def test_compiles():
    testing.check_compiles(lambda coords: coords[ops.voxel_order(coords)], random_coords(30, 9))


def test_wrong_inputs(backend):
    coords = backend.put(random_coords(20, 9))
    with pytest.raises(TypeError, match=r"`coords` must be a torch\.Tensor, got list"):
        ops.voxel_order([[0, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"`coords` must have shape \(N, 4\), got \(20, 3\)"):
        ops.voxel_order(coords[:, 1:])
    with pytest.raises(TypeError, match="`coords` must be int32 or int64, got float32"):
        ops.voxel_order(coords.float())
    with pytest.raises(ValueError, match="`coords` must be contiguous"):
        ops.voxel_order(coords.T.contiguous().T)
    for row, column, wrong in ((3, 1, -1), (7, 2, 2**20), (0, 0, -1), (19, 3, 2**31 - 1)):
        spoiled = coords.clone()
        spoiled[row, column] = spoiled[19, column] = wrong
        with pytest.raises(ValueError, match=rf"coordinates in \[0, 1048575\], got .*{wrong}.* in row {row}"):
            ops.voxel_order(spoiled)
    wide = coords.long()
    wide[4, 2] = 2**40
    with pytest.raises(ValueError, match="in row 4"):
        ops.voxel_order(wide)
