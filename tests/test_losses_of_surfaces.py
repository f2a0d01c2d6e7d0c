import math

import pytest
import torch

from fastshape import losses, ops, testing


def test_sign_change_by_hand():
    sdf = torch.tensor([-1.0, 2.0, 3.0, -0.5], dtype=torch.float64)
    edges = torch.tensor([[0, 1], [1, 2], [2, 3]])  # the first and the last are crossed
    ends = [(-1.0, 1), (2.0, 0), (3.0, 0), (-0.5, 1)]
    entropy = [math.log1p(math.exp(-x)) if target else math.log1p(math.exp(x)) for x, target in ends]
    # The mean over edges for each of both ends, and their sum, as in the published code.
    assert losses.sign_change_loss(sdf, edges).item() == pytest.approx(sum(entropy) / 2)


def test_sign_change_without_a_crossing():
    sdf = torch.ones(4, requires_grad=True)
    loss = losses.sign_change_loss(sdf, torch.tensor([[0, 1], [2, 3]]))
    loss.backward()
    assert loss.item() == 0
    assert (sdf.grad == 0).all()


def test_sign_change_gradient_makes_both_ends_agree():
    sdf = torch.tensor([-1.0, 2.0], requires_grad=True)
    losses.sign_change_loss(sdf, torch.tensor([[0, 1]])).backward()
    assert sdf.grad[0] < 0 < sdf.grad[1]  # descent raises the first and lowers the second
    testing.check_gradients(
        lambda sdf: losses.sign_change_loss(sdf, torch.tensor([[0, 1], [1, 2]])),
        torch.tensor([-1.0, 2.0, -0.3], dtype=torch.float64),
    )


def test_edges_of_voxels():
    corners = ops.voxel_corners(torch.tensor([[0, 0, 0], [1, 0, 0]], dtype=torch.int32), resolution=2)
    edges = losses.corner_edges(ops.corner_neighbors(corners))
    assert len(edges) == 20  # two cubes of twelve with a face of four in common
    steps = corners.coords[edges[:, 1]] - corners.coords[edges[:, 0]]
    assert (steps.sum(1) == 1).all()
    assert (steps >= 0).all()


@pytest.mark.parametrize("direction", [(1.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2.0, -1.0, 0.5)])
def test_total_variation_of_a_linear_field(direction):
    """The length of its slope where a corner has all three neighbors."""
    axis = torch.arange(4, dtype=torch.int32)
    corners = ops.voxel_corners(torch.cartesian_prod(axis, axis, axis), resolution=4)
    slope = torch.tensor(direction, dtype=torch.float64)
    sdf = corners.coords.double() @ slope
    neighbors = ops.corner_neighbors(corners)
    there = (neighbors >= 0).double()
    expected = (there * slope).norm(dim=1).mean()
    assert losses.total_variation_loss(sdf, neighbors).item() == pytest.approx(expected.item(), rel=1e-5)
    inner = neighbors.amin(1) >= 0
    assert inner.sum() == 64
    testing.check_gradients(lambda sdf: losses.total_variation_loss(sdf, neighbors), sdf + slope.norm() / 9)


def test_means_of_nothing():
    assert losses.deviation_loss(torch.zeros(0)).item() == 0
    assert losses.deviation_loss(torch.tensor([1.0, 3.0])).item() == 2
    assert losses.weight_loss(torch.tensor([[-1.0, 3.0]])).item() == 2
    assert losses.total_variation_loss(torch.zeros(0), torch.zeros(0, 3, dtype=torch.int64)).item() == 0
