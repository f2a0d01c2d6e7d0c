"""The reference of the sparse family on cases worked out by hand."""

import torch

from fastshape.reference import sparse as reference

THREE = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 2], [1, 1, 1, 1]], dtype=torch.int32)


def test_lookup():
    assert reference.lookup_voxels(THREE, THREE.flip(0)).tolist() == [2, 1, 0]
    assert reference.lookup_voxels(THREE, THREE + 1).tolist() == [-1, -1, -1]


def test_neighbors_of_three_voxels():
    rows = reference.neighbor_table(THREE)
    assert [(m, k, rows[m, k].item()) for m, k in (rows >= 0).nonzero().tolist()] == [
        (0, 13, 0), (0, 14, 1), (1, 12, 0), (1, 13, 1), (2, 13, 2),
    ]  # fmt: skip


def test_offsets():
    assert reference.kernel_offsets(3)[[0, 1, 3, 9, 26]].tolist() == [
        [-1, -1, -1], [-1, -1, 0], [-1, 0, -1], [0, -1, -1], [1, 1, 1],
    ]  # fmt: skip
    assert reference.kernel_offsets(2)[[0, 1, 2, 4]].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_downsampling():
    coarse, index = reference.downsample_voxels(THREE)
    assert coarse.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    assert index.tolist() == [0, 1, 2]
    strided = reference.neighbor_table(THREE, coarse, kernel_size=2, stride=2)
    assert [(m, k, strided[m, k].item()) for m, k in (strided >= 0).nonzero().tolist()] == [
        (0, 7, 0), (1, 6, 1), (2, 7, 2),
    ]  # fmt: skip
    assert reference.invert_table(strided, 3).amax(1).tolist() == [0, 1, 2]


def test_children():
    children = reference.subdivide_voxels(THREE[1:2])
    assert children.tolist() == [
        [0, 2, 2, 4], [0, 2, 2, 5], [0, 2, 3, 4], [0, 2, 3, 5],
        [0, 3, 2, 4], [0, 3, 2, 5], [0, 3, 3, 4], [0, 3, 3, 5],
    ]  # fmt: skip


def test_segments():
    values = torch.tensor([[1.0, -1.0], [3.0, -5.0], [7.0, 7.0]])
    index = torch.tensor([1, 1, -1])
    reduced = {
        m: reference.segment_reduce(values, index, 3, m) for m in ("sum", "mean", "mean_with_zero", "max")
    }
    assert reduced["sum"].tolist() == [[0, 0], [4, -6], [0, 0]]
    assert reduced["mean"].tolist() == [[0, 0], [2, -3], [0, 0]]
    assert reduced["mean_with_zero"][1].tolist() == [(torch.tensor(4.0) / 3).item(), -2]
    assert reduced["max"].tolist() == [[0, 0], [3, -1], [0, 0]]
    assert reference.gather_segments(values, torch.tensor([2, -1, 0])).tolist() == [[7, 7], [0, 0], [1, -1]]


def test_convolution_of_a_full_grid_is_the_dense_one():
    grid = torch.cartesian_prod(torch.arange(2), *3 * [torch.arange(4)])
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(2, 3, 4, 4, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 3, 3, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(5, generator=generator, dtype=torch.float64)
    feats = dense.permute(0, 2, 3, 4, 1).flatten(0, 3)
    result = reference.sparse_conv3d(feats, weight, bias, reference.neighbor_table(grid))
    expected = torch.nn.functional.conv3d(dense, weight.permute(0, 4, 1, 2, 3), bias, padding=1)
    torch.testing.assert_close(result, expected.permute(0, 2, 3, 4, 1).flatten(0, 3))
