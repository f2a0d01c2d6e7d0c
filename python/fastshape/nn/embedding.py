"""Embeddings of 3D points."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sine_frequencies(num_frequencies: int) -> Tensor:
    """The frequencies pi * 2^i, i < num_frequencies, in float32: (num_frequencies,)."""
    return torch.pow(2.0, torch.arange(num_frequencies, dtype=torch.float32)) * math.pi


class PointEmbed(nn.Module):
    """Embeds points as `Linear([sin(e), cos(e), p])` with e = p_axis * pi * 2^i, axis after axis.

    The angles are computed in float32 whatever the autocast or parameter dtype: at 2^7 * pi half precision
    would lose the phase.

    Reference: 3DShape2VecSet (Zhang et al., SIGGRAPH 2023), section 5.1; LaGeM uses the same layer. The
    official code multiplies by a (3, 3 * num_frequencies) basis that is zero off its blocks; the elementwise
    product here gives the same bits.
    """

    frequencies: Tensor

    def __init__(self, dim: int, num_frequencies: int = 8) -> None:
        super().__init__()
        self.register_buffer("frequencies", sine_frequencies(num_frequencies), persistent=False)
        self.proj = nn.Linear(3 * (2 * num_frequencies + 1), dim)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        # A half-precision model keeps exact float32 frequencies.
        if self.frequencies.dtype != torch.float64:
            device = self.frequencies.device
            self.frequencies = sine_frequencies(self.frequencies.numel()).to(device)
        return self

    def forward(self, points: Tensor) -> Tensor:
        """points (..., 3) -> (..., dim)."""
        angles = (points[..., None] * self.frequencies.to(points.dtype)).flatten(-2)  # (..., 3 * F)
        features = torch.cat([angles.sin(), angles.cos(), points], dim=-1)
        return self.proj(features.to(self.proj.weight.dtype))
