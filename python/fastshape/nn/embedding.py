"""Embeddings of 3D points."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sine_frequencies(num_frequencies: int, *, include_pi: bool = True) -> Tensor:
    """The frequencies 2^i, i < num_frequencies, times pi if `include_pi`, in float32: (num_frequencies,)."""
    powers = torch.pow(2.0, torch.arange(num_frequencies, dtype=torch.float32))
    return powers * math.pi if include_pi else powers


class Angles(nn.Module):
    """Angles of points: p_axis * frequency, axis after axis, (..., 3) -> (..., 3 * num_frequencies).

    They are computed in float32 whatever the autocast or parameter dtype: at 2^7 * pi half precision would
    lose the phase.
    """

    frequencies: Tensor

    def __init__(self, num_frequencies: int, *, include_pi: bool = True) -> None:
        super().__init__()
        self.include_pi = include_pi
        frequencies = sine_frequencies(num_frequencies, include_pi=include_pi)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        # A half-precision model keeps exact float32 frequencies.
        if self.frequencies.dtype != torch.float64:
            exact = sine_frequencies(self.frequencies.numel(), include_pi=self.include_pi)
            self.frequencies = exact.to(self.frequencies.device)
        return self

    def angles(self, points: Tensor) -> Tensor:
        """points (..., 3) -> (..., 3 * num_frequencies)."""
        return (points[..., None] * self.frequencies.to(points.dtype)).flatten(-2)


class PointEmbed(Angles):
    """Embeds points as `Linear([sin(e), cos(e), p])` with e = p_axis * pi * 2^i, axis after axis.

    Reference: 3DShape2VecSet (Zhang et al., SIGGRAPH 2023), section 5.1; LaGeM uses the same layer. The
    official code multiplies by a (3, 3 * num_frequencies) basis that is zero off its blocks; the elementwise
    product here gives the same bits.
    """

    def __init__(self, dim: int, num_frequencies: int = 8) -> None:
        super().__init__(num_frequencies)
        self.proj = nn.Linear(3 * (2 * num_frequencies + 1), dim)

    def forward(self, points: Tensor) -> Tensor:
        """points (..., 3) -> (..., dim)."""
        angles = self.angles(points)
        features = torch.cat([angles.sin(), angles.cos(), points], dim=-1)
        return self.proj(features.to(self.proj.weight.dtype))


class FourierEmbed(Angles):
    """Fourier features `[p, sin(e), cos(e)]` with e = p_axis * 2^i, times pi if `include_pi`; no parameters.

    Reference: Dora-VAE (Chen et al., CVPR 2025), which has no pi; Michelangelo, Hunyuan3D-2 and TripoSG use
    the same layer. The order is the reverse of `PointEmbed`'s.
    """

    def __init__(self, num_frequencies: int = 8, *, include_pi: bool = False) -> None:
        super().__init__(num_frequencies, include_pi=include_pi)
        self.dim = 3 * (2 * num_frequencies + 1)

    def forward(self, points: Tensor) -> Tensor:
        """points (..., 3) -> (..., dim), in the dtype of `points`."""
        angles = self.angles(points)
        return torch.cat([points, angles.sin(), angles.cos()], dim=-1)
