"""Layers over sparse voxels: convolution, GroupNorm, subdivision, and pooling of points."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastshape import ops
from fastshape.nn.rows import by_rows
from fastshape.nn.sparse_tensor import SparseTensor
from fastshape.nn.volume import at_least_single


class SparseConv3d(nn.Module):
    """A convolution of 3^3 (or 1, with `kernel_size`) that keeps the voxels; what is no voxel counts as zero.

    The weight is (out, x, y, z, in), as spconv stores it.
    """

    def __init__(self, channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.empty(out_channels, *(kernel_size,) * 3, channels))
        self.bias = nn.Parameter(torch.empty(out_channels))
        bound = 1.0 / math.sqrt(channels * kernel_size**3)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """x of `channels` -> the same voxels, `out_channels`."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        table = x.neighbors(self.kernel_size)
        return x.replace(ops.sparse_conv3d(x.feats.contiguous(), weight, bias, table))


class SparseGroupNorm(nn.GroupNorm):
    """GroupNorm with the statistics of all voxels of an item together, in float32 at least.

    So a voxel's result depends on which others there are: a part of a shape has other statistics.
    """

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__(groups, channels, eps=1e-5)

    def forward(self, x: SparseTensor) -> SparseTensor:  # type: ignore[override]
        """x of `channels` -> the same voxels, channels and dtype."""
        groups = at_least_single(x.feats).unflatten(
            1, (self.num_groups, -1)
        )  # (N, groups, channels / groups)
        mean = ops.segment_reduce(groups.mean(-1).contiguous(), x.items)  # (B, groups)
        centered = groups - ops.gather_segments(mean, x.items)[..., None]
        variance = ops.segment_reduce(centered.square().mean(-1).contiguous(), x.items)
        scale = ops.gather_segments((variance + self.eps).rsqrt(), x.items)[..., None]
        feats = (centered * scale).flatten(1)
        feats = feats * at_least_single(self.weight) + at_least_single(self.bias)
        return x.replace(feats.to(x.dtype))


class SubdivideBlock(nn.Module):
    """Each voxel becomes its eight children, and says of each whether the surface is there.

    h = conv(silu(norm(x to its children))); y = conv(silu(norm(h))) + skip(x to its children); the logits of
    the children are two layers over y. The second convolution starts at zero.

    Args:
        channels, out_channels: of the voxels and of their children.
        groups: of the norms.
        prunes: whether there are logits.

    Reference: He et al. 2025, "SparseFlex" (TripoSF): its self-pruning upsampling; without the logits Xiang
    et al. 2024 (TRELLIS), whose code's norm is of the parents' features, as here.
    """

    def __init__(self, channels: int, out_channels: int, *, groups: int = 32, prunes: bool = True) -> None:
        super().__init__()
        self.norm1 = SparseGroupNorm(channels, groups)
        self.conv1 = SparseConv3d(channels, out_channels)
        self.norm2 = SparseGroupNorm(out_channels, groups)
        self.conv2 = SparseConv3d(out_channels, out_channels)
        self.skip = nn.Linear(channels, out_channels)
        self.pruning = None
        if prunes:
            hidden = 4 * out_channels
            self.pruning = nn.Sequential(
                nn.Linear(out_channels, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, 1)
            )
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: SparseTensor, *, prune: bool = False) -> tuple[SparseTensor, Tensor | None]:
        """x of `channels` -> its children of `out_channels`, and their logits.

        Args:
            x: the voxels.
            prune: leave the children out whose logit is negative.

        Returns:
            The children, those of a voxel behind each other, and the logits (8 N,) of all; None without.
        """
        hidden = self.norm1(x)
        coords = ops.subdivide_voxels(x.coords)
        fine = SparseTensor(coords, ops.subdivide_features(F.silu(hidden.feats)), x.batch_size)
        fine = self.norm2(self.conv1(fine))
        fine = self.conv2(fine.replace(F.silu(fine.feats)))
        # The skip connection is linear: what it makes of a voxel is what it makes of its children.
        fine = fine.replace(fine.feats + ops.subdivide_features(self.skip(x.feats)))
        if self.pruning is None:
            return fine, None
        logits = by_rows(self.pruning, fine.feats).squeeze(1)
        return (fine.select(logits >= 0) if prune else fine), logits


class ResidualMLP(nn.Module):
    """shortcut(x) + fc_1(gelu(fc_0(gelu(x)))), GELU in its tanh form, the shortcut linear without a bias."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.fc_0 = nn.Linear(channels, out_channels)
        self.fc_1 = nn.Linear(out_channels, out_channels)
        self.shortcut = nn.Linear(channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, channels) -> (N, out_channels)."""
        hidden = self.fc_0(F.gelu(x, approximate="tanh"))
        return self.shortcut(x) + self.fc_1(F.gelu(hidden, approximate="tanh"))


class PointPool(nn.Module):
    """Features of voxels from the points in them: a PointNet that pools over voxels again and again.

    Each point starts with its place within its voxel, in [-1, 1]^3, and what else there is of it; between
    the layers it learns the mean of its voxel's points. A voxel without points gets zeros.

    Args:
        channels: of a point: 3 coordinates and the rest.
        hidden: channels within.
        out_channels: of a voxel.
        depth: residual layers.

    Reference: Peng et al. 2020 (convolutional occupancy networks); TripoSF's local PointNet.
    """

    def __init__(self, channels: int, hidden: int, out_channels: int, depth: int = 5) -> None:
        super().__init__()
        self.fc_pos = nn.Linear(channels, 2 * hidden)
        self.blocks = nn.ModuleList(ResidualMLP(2 * hidden, hidden) for _ in range(depth))
        self.fc_c = nn.Linear(hidden, out_channels)

    def forward(self, points: Tensor, rows: Tensor, places: Tensor, num_voxels: int) -> Tensor:
        """What points say of their voxels.

        Args:
            points: (N, channels - 3), what there is beside the coordinates.
            rows: (N,) int64, the voxel of each point; -1 for a point that no voxel is for.
            places: (N, 3) within the voxel, in [-1, 1].
            num_voxels: V.

        Returns:
            (V, out_channels).
        """
        segments = ops.make_segments(rows.contiguous(), num_voxels)
        hidden = by_rows(lambda part: self.blocks[0](self.fc_pos(part)), torch.cat([places, points], 1))
        for block in self.blocks[1:]:
            pooled = ops.gather_segments(ops.segment_reduce(hidden, segments), segments)
            hidden = by_rows(block, torch.cat([hidden, pooled], 1))
        return ops.segment_reduce(self.fc_c(hidden), segments)


def voxel_places(points: Tensor, resolution: int, bounds: float = 0.5) -> tuple[Tensor, Tensor]:
    """The voxels (N, 3) int32 of points (N, 3) in the cube [-bounds, bounds]^3, and where in them (N, 3) they
    lie, in [-1, 1]. Points on or beyond the border belong to the last voxel.
    """
    inside = (points / (2 * bounds) + 0.5).clamp(1e-6, 1 - 1e-6) * resolution
    voxels = inside.detach().floor()
    return voxels.int(), 2.0 * (inside - (voxels + 0.5))
