"""Convolutional layers over dense volumes (B, C, X, Y, Z)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def at_least_single(tensor: Tensor) -> Tensor:
    """In float32, or float64 as it is: statistics of half precision lose too much."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class ChannelNorm3d(nn.LayerNorm):
    """LayerNorm over the channels of each voxel, computed in float32 whatever the parameters' dtype."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, X, Y, Z) -> the same shape and dtype."""
        weight, bias = at_least_single(self.weight), at_least_single(self.bias)
        last = at_least_single(x).movedim(1, -1)
        return F.layer_norm(last, self.normalized_shape, weight, bias, self.eps).movedim(-1, 1).to(x.dtype)


class GroupNorm3d(nn.GroupNorm):
    """GroupNorm of 32 groups, computed in float32 whatever the parameters' dtype."""

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, X, Y, Z) -> the same shape and dtype."""
        weight, bias = at_least_single(self.weight), at_least_single(self.bias)
        return F.group_norm(at_least_single(x), self.num_groups, weight, bias, self.eps).to(x.dtype)


class ResBlock3d(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x)))))), convolutions of 3^3; `conv2` starts at zero.

    Reference: TRELLIS (Xiang et al., CVPR 2025), the structure VAE of its code, whose blocks have the norm
    over channels whatever its configuration says.
    """

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        out = channels if out_channels is None else out_channels
        self.norm1 = ChannelNorm3d(channels)
        self.norm2 = ChannelNorm3d(out)
        self.conv1 = nn.Conv3d(channels, out, 3, padding=1)
        self.conv2 = nn.Conv3d(out, out, 3, padding=1)
        self.skip_connection = nn.Conv3d(channels, out, 1) if out != channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        if self.conv2.bias is not None:
            nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, X, Y, Z) -> (B, out_channels, X, Y, Z)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.skip_connection(x) + self.conv2(F.silu(self.norm2(hidden)))


class Downsample3d(nn.Module):
    """A convolution of 2^3 with stride 2."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, 2 X, 2 Y, 2 Z) -> (B, out_channels, X, Y, Z)."""
        return self.conv(x)


class Upsample3d(nn.Module):
    """A convolution of 3^3 to eight times the channels, which `pixel_shuffle_3d` lays side by side."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, 8 * out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, X, Y, Z) -> (B, out_channels, 2 X, 2 Y, 2 Z)."""
        return pixel_shuffle_3d(self.conv(x), 2)


def pixel_shuffle_3d(x: Tensor, factor: int) -> Tensor:
    """Moves channels into space: (B, C f^3, X, Y, Z) -> (B, C, f X, f Y, f Z).

    Channel ((c f + i) f + j) f + k of a voxel becomes channel c of its child (i, j, k).

    Raises:
        ValueError: a wrong shape, or channels that are not a multiple of factor^3.
    """
    if x.dim() != 5 or factor < 1 or x.shape[1] % factor**3:
        raise ValueError(
            f"`x` must have shape (B, C * {factor**3}, X, Y, Z) for the factor {factor}, got {tuple(x.shape)}"
        )
    batch, channels, *size = x.shape
    children = x.reshape(batch, channels // factor**3, factor, factor, factor, *size)
    return children.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, -1, *(factor * n for n in size))
