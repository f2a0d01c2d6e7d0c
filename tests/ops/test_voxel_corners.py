import pytest
import torch

from fastshape import losses, ops, testing
from fastshape.ops import corners as corners_module
from fastshape.reference import flexicubes as reference


def random_voxels(count, size, width=3, seed=0):
    """Some of them twice, in no order."""
    generator = testing.generator(seed)
    coords = torch.randint(size, (count, 3), generator=generator, dtype=torch.int32)
    if width == 4:
        shape = torch.randint(3, (count, 1), generator=generator, dtype=torch.int32)
        coords = torch.cat([shape, coords], 1)
    return coords


def test_one_voxel(backend):
    corners = ops.voxel_corners(backend.put(torch.tensor([[3, 4, 5]], dtype=torch.int32)), resolution=6)
    assert corners.coords.tolist() == [[3 + x, 4 + y, 5 + z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    assert corners.cubes.tolist() == [[0, 4, 2, 6, 1, 5, 3, 7]]
    assert corners.axis_bits == 3
    assert corners.keys[0].item() == (3 << 3 | 4) << 3 | 5


@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize(("count", "size"), [(1, 2), (60, 3), (300, 20)])
def test_against_the_reference(backend, width, count, size):
    coords = random_voxels(count, size, width)
    coords = torch.cat([coords, coords[:5]])
    corners = ops.voxel_corners(backend.put(coords), resolution=size)
    expected, index = reference.voxel_corners(coords)
    assert torch.equal(corners.coords.cpu(), expected)
    assert corners.coords.dtype == torch.int32
    assert torch.equal(corners.cubes.cpu(), index)
    assert (corners.keys.diff() > 0).all()


def test_neighbors(backend):
    coords = random_voxels(100, 6, width=4)
    corners = ops.voxel_corners(backend.put(coords), resolution=6)
    neighbors = ops.corner_neighbors(corners).cpu()
    places = {tuple(place): row for row, place in enumerate(corners.coords.tolist())}
    for row, (shape, x, y, z) in enumerate(corners.coords.tolist()):
        ahead = ((shape, x + 1, y, z), (shape, x, y + 1, z), (shape, x, y, z + 1))
        assert neighbors[row].tolist() == [places.get(place, -1) for place in ahead]


def test_at_the_ends_of_the_range(backend):
    last = 2**20 - 3
    coords = torch.tensor([[7, last, last, last], [0, 0, 0, last], [0, 0, 1, 0]], dtype=torch.int32)
    corners = ops.voxel_corners(backend.put(coords))
    expected, index = reference.voxel_corners(coords)
    assert torch.equal(corners.coords.cpu(), expected)
    assert torch.equal(corners.cubes.cpu(), index)
    neighbors = ops.corner_neighbors(corners).cpu()
    row = (expected == torch.tensor([0, 0, 0, last + 1])).all(1).nonzero().item()
    assert neighbors[row, 2] == -1  # not (0, 0, 1, 0)


def test_no_voxels(backend):
    corners = ops.voxel_corners(backend.put(torch.zeros(0, 4, dtype=torch.int32)))
    assert tuple(corners.coords.shape) == (0, 4)
    assert tuple(corners.cubes.shape) == (0, 8)
    assert tuple(ops.corner_neighbors(corners).shape) == (0, 3)
    assert tuple(ops.corner_mean(backend.put(torch.zeros(0, 8, 2)), corners).shape) == (0, 2)


def test_many_voxels_and_threads_agree():
    coords = random_voxels(30000, 40)
    values = torch.randn(len(coords), 8, 2, generator=testing.generator(1))
    expected, index = reference.voxel_corners(coords)
    means = []
    for threads in (1, 2, 5):
        with testing.num_threads(threads):
            corners = ops.voxel_corners(coords, resolution=40)
            means.append(ops.corner_mean(values, corners))
        assert torch.equal(corners.coords, expected)
        assert torch.equal(corners.cubes, index)
        assert torch.equal(means[-1], means[0])


# ---- corner_mean -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_against_the_reference(backend, dtype):
    coords = random_voxels(200, 8)
    values = torch.randn(200, 8, 5, generator=testing.generator(1), dtype=dtype)
    corners = ops.voxel_corners(backend.put(coords), resolution=8)
    mean = ops.corner_mean(backend.put(values), corners)
    expected = reference.corner_mean(values, corners.cubes.cpu(), len(corners.keys))
    testing.assert_accurate(mean, expected.double(), expected)


def test_mean_in_the_order_of_the_voxels(backend):
    coords = random_voxels(100, 3)
    values = torch.randn(100, 8, 2, generator=testing.generator(2))
    corners = ops.voxel_corners(backend.put(coords), resolution=3)
    sums, counts = torch.zeros(len(corners.keys), 2), torch.zeros(len(corners.keys))
    for voxel, row in enumerate(corners.cubes.tolist()):
        for k, corner in enumerate(row):
            sums[corner] += values[voxel, k]
            counts[corner] += 1
    assert torch.equal(ops.corner_mean(backend.put(values), corners).cpu(), sums / counts[:, None])


def test_mean_gradcheck(backend):
    corners = ops.voxel_corners(backend.put(random_voxels(6, 3)), resolution=3)
    values = backend.put(torch.randn(6, 8, 2, generator=testing.generator(3), dtype=torch.float64))
    testing.check_gradients(lambda v: ops.corner_mean(v, corners), values)


def test_consistency_loss(backend):
    """Its gradient with respect to the mean vanishes, so it is that of plain autograd."""
    corners = ops.voxel_corners(backend.put(random_voxels(40, 4)), resolution=4)
    values = backend.put(torch.randn(40, 8, 3, generator=testing.generator(4), dtype=torch.float64))
    values.requires_grad_()
    loss = losses.corner_consistency_loss(values, ops.corner_mean(values, corners), corners.cubes)
    loss.backward()
    plain = values.detach().cpu().requires_grad_()
    index = corners.cubes.cpu()
    expected = (plain - reference.corner_mean(plain, index, len(corners.keys))[index]).square().mean()
    expected.backward()
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(values.grad.cpu(), plain.grad, rtol=1e-9, atol=1e-12)


# ---- The operators -----------------------------------------------------------------------------------------


def test_operators(backend):
    coords = backend.put(random_voxels(10, 3, width=4))
    testing.check_operator(corners_module._voxel_corners_op, coords, 5)
    corners = ops.voxel_corners(coords, resolution=3)
    values = backend.put(torch.randn(10, 8, 2))
    testing.check_operator(corners_module._corner_mean_op, values, corners.cubes, len(corners.keys))


def test_compiles():
    coords = random_voxels(20, 4)
    values = torch.randn(20, 8, 2, generator=testing.generator(5))

    def mean(coords, values):
        corners = ops.voxel_corners(coords, resolution=4)
        return ops.corner_mean(values, corners), ops.corner_neighbors(corners)

    testing.check_compiles(mean, coords, values)


def test_wrong_inputs(backend):
    coords = backend.put(torch.tensor([[0, 1, 2], [0, 5, 2]], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"`coords` must have shape \(N, 3\) or \(N, 4\), got \(2, 2\)"):
        ops.voxel_corners(coords[:, :2].contiguous())
    with pytest.raises(TypeError, match="`coords` must be int32, got int64"):
        ops.voxel_corners(coords.long())
    with pytest.raises(ValueError, match="`coords` must be contiguous"):
        ops.voxel_corners(coords[:, [0, 1, 2]].T.contiguous().T)
    with pytest.raises(ValueError, match=r"`coords` must lie in \[0, 5\], got \[0, 9, 2\] in row 1"):
        ops.voxel_corners(
            coords + torch.tensor([0, 4, 0], device=coords.device).int() * (coords > 4), resolution=5
        )
    with pytest.raises(
        ValueError, match=r"`coords` must lie in .*, and a shape in \[0, 8\), got \[-1, 0, 0, 0\]"
    ):
        ops.voxel_corners(backend.put(torch.tensor([[-1, 0, 0, 0]], dtype=torch.int32)))
    with pytest.raises(ValueError, match=r"`resolution` must lie in \[1, 1048574\], got 0"):
        ops.voxel_corners(coords, resolution=0)
    corners = ops.voxel_corners(coords)
    with pytest.raises(ValueError, match=r"`values` must have shape \(N, 8, C\), got \(2, 8\)"):
        ops.corner_mean(backend.put(torch.zeros(2, 8)), corners)
    with pytest.raises(ValueError, match=r"`index` must have shape \(N, 8\), got"):
        ops.corner_mean(backend.put(torch.zeros(3, 8, 1)), corners)
