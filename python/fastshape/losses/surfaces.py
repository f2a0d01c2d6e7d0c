"""Regularizers of surfaces that FlexiCubes extracts from sparse voxels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def corner_consistency_loss(values: Tensor, mean: Tensor, index: Tensor) -> Tensor:
    """How far voxels are from the mean of what they say of their common corners: squared, the mean over all.

    Args:
        values: (N, 8, C) of the voxels.
        mean: (P, C) of :func:`fastshape.ops.corner_mean` of them; its gradient is nothing, as deviations from
            a mean sum up to nothing, and is left out.
        index: (N, 8) the voxels' corners.

    Returns:
        Scalar.

    Reference: Xiang et al. 2024 (TRELLIS): the consistency loss of its mesh decoder.
    """
    return F.mse_loss(values, mean.detach().index_select(0, index.flatten()).view_as(values))


def deviation_loss(deviation: Tensor) -> Tensor:
    """The mean of FlexiCubes' deviations, nothing where there is no surface.

    Args:
        deviation: (E,) of :func:`fastshape.ops.flexicubes`.

    Returns:
        Scalar.

    Reference: Shen et al. 2023 (FlexiCubes), eq. 8; TRELLIS weighs it 0.5.
    """
    return deviation.sum() / max(deviation.numel(), 1)


def weight_loss(weights: Tensor) -> Tensor:
    """The mean magnitude of FlexiCubes' weights before their activation, where nothing is the middle.

    Args:
        weights: (..., 20) beta and alpha as a network gives them, or either alone.

    Returns:
        Scalar.

    Reference: FlexiCubes' example weighs it 0.1, TRELLIS 0.2; gamma is left out in both.
    """
    return weights.abs().mean()


def corner_edges(neighbors: Tensor) -> Tensor:
    """The edges between corners and their next ones.

    Args:
        neighbors: (P, 3) int64 of :func:`fastshape.ops.corner_neighbors`.

    Returns:
        (M, 2) int64: both ends of each edge, the lower one first.
    """
    lower = torch.arange(neighbors.shape[0], device=neighbors.device)[:, None].expand_as(neighbors)
    there = neighbors >= 0
    return torch.stack([lower[there], neighbors[there]], 1)


def sign_change_loss(sdf: Tensor, edges: Tensor) -> Tensor:
    """Cross-entropy of both ends of the crossed edges, each with the other's sign as its target.

    It takes surfaces away where they are not needed, inside of a shape above all.

    Args:
        sdf: (P,) values; outside where they are positive, as in the published code.
        edges: (M, 2) int64, the ends of all edges, as :func:`corner_edges` gives them.

    Returns:
        Scalar, the mean over the crossed edges of both ends' sum; nothing where no edge is crossed.

    Reference: Shen et al. 2023 (FlexiCubes), the regularizer of its example, from Munkberg et al. 2021;
    weighed 0.2 at first and 0.01 from a quarter of the steps on.
    """
    ends = sdf[edges]
    outside = ends > 0
    crossed = ends[outside[:, 0] != outside[:, 1]]
    targets = (crossed.flip(1) > 0).to(sdf.dtype)
    losses = F.binary_cross_entropy_with_logits(crossed, targets, reduction="none").sum()
    return losses / max(crossed.shape[0], 1)


def total_variation_loss(sdf: Tensor, neighbors: Tensor) -> Tensor:
    """The mean length of the differences to the next corners along x, y and z.

    Args:
        sdf: (P,) of the corners, in units of a voxel: sqrt(3) along the diagonal of slope one in each axis.
        neighbors: (P, 3) int64 of :func:`fastshape.ops.corner_neighbors`; a difference is nothing where there
            is no neighbor.

    Returns:
        Scalar.

    Reference: Fridovich-Keil et al. 2022 (Plenoxels), eq. 3, over sparse corners.
    """
    ahead = sdf[neighbors.clamp_min(0)]
    differences = torch.where(neighbors >= 0, ahead - sdf[:, None], 0.0)
    return (differences.square().sum(1) + 1e-12).sqrt().sum() / max(sdf.numel(), 1)
