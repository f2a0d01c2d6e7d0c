"""The two heads of a `VAT`: its field out of three planes with mipmaps, or out of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastshape.models.vat_config import VATConfig
from fastshape.nn import CrossAttentionBlock, FourierEmbed

_AXES = ((0, 1), (1, 2), (0, 2))  # of the planes XY, YZ, XZ


class PlaneStage(nn.Module):
    """Planes of twice the size, and their mipmap."""

    def __init__(self, channels: int, out_channels: int, plane_dim: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(math.gcd(32, out_channels), out_channels)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.to_plane = nn.Conv2d(out_channels, plane_dim, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, r, r) -> (B, C', 2r, 2r) and (B, plane_dim, 2r, 2r)."""
        x = self.conv_in(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        x = self.conv_out(F.silu(self.norm(x)))
        return x, self.to_plane(x)


class PlaneHead(nn.Module):
    """The field of three planes with mipmaps.

    The MLP's first layer is linear in what is sampled, and sampling is linear in the planes: on a lattice of
    n points an axis they become tables (3, n, n, mlp_dim) of its outputs, made once, of which a point adds
    three rows. Equal up to rounding.
    """

    def __init__(self, config: VATConfig) -> None:
        super().__init__()
        widths = (config.dim, *config.channels)
        self.size, self.plane_dim = config.plane_size, config.plane_dim
        self.stages = nn.ModuleList(
            PlaneStage(before, after, config.plane_dim) for before, after in pairwise(widths)
        )
        self.first = nn.Linear(3 * len(config.channels) * config.plane_dim, config.mlp_dim)
        self.second = nn.Linear(config.mlp_dim, config.mlp_dim)
        self.to_logits = nn.Linear(config.mlp_dim, 1)

    def planes(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (B, 3 r^2, dim), plane by plane and row by row -> each mipmap, coarsest first, (B, 3, C, n, n).

        A row runs along a plane's first axis.
        """
        batch = x.shape[0]
        x = x.reshape(3 * batch, self.size, self.size, -1).permute(0, 3, 1, 2)
        mipmaps = []
        for stage in self.stages:
            x, mipmap = stage(x)
            mipmaps.append(mipmap.unflatten(0, (batch, 3)))
        return tuple(mipmaps)

    def sample(self, mipmaps: Sequence[Tensor], points: Tensor) -> Tensor:
        """mipmaps (B, 3, C, n, n), points (B, Q, 3) -> (B, Q, 3 * C * mipmaps)."""
        batch, count = points.shape[:2]
        places = torch.stack([points[..., axes] for axes in _AXES], 1).flatten(0, 1)[:, :, None]
        found = [_bilinear(mipmap.flatten(0, 1), places) for mipmap in mipmaps]
        # (B * 3, C, Q, 1) each -> (B, Q, 3 * C), a plane after the other
        rows = [f.view(batch, -1, count).transpose(1, 2) for f in found]
        return torch.cat(rows, dim=-1)

    def tables(self, mipmaps: Sequence[Tensor], resolution: int, bounds: float) -> Tensor:
        """The first layer's output of each plane at the lattice's places: (3, n, n, mlp_dim), of one shape.

        The first index is along a plane's first axis.
        """
        like = mipmaps[0]
        line = torch.linspace(-bounds, bounds, resolution, dtype=like.dtype, device=like.device)
        places = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).expand(3, -1, -1, -1)
        weight = self.first.weight.unflatten(1, (len(mipmaps), 3, self.plane_dim))
        table = like.new_zeros(3, resolution, resolution, len(weight))
        for mipmap, part in zip(mipmaps, weight.unbind(1), strict=True):  # part (mlp_dim, 3, C)
            table += torch.einsum("pcij,hpc->pijh", _bilinear(mipmap[0], places), part)
        table[0] += self.first.bias
        return table

    def lookup(self, tables: Tensor, points: Tensor, bounds: float) -> Tensor:
        """What the first layer gives at points of the lattice, (1, Q, 3) -> (1, Q, mlp_dim)."""
        index = lattice_places(points, tables.shape[1], bounds).round().long()
        return sum(tables[p][index[..., a], index[..., b]] for p, (a, b) in enumerate(_AXES))  # type: ignore[return-value]

    def finish(self, hidden: Tensor) -> Tensor:
        """The MLP behind its first layer: (B, Q, mlp_dim) -> (B, Q)."""
        return self.to_logits(F.silu(self.second(F.silu(hidden)))).squeeze(-1)


class CrossHead(nn.Module):
    """The field as a cross-attention from points to tokens: table 4 of the paper."""

    def __init__(self, config: VATConfig) -> None:
        super().__init__()
        self.fourier = FourierEmbed(8, include_pi=True)
        self.proj = nn.Linear(self.fourier.dim, config.dim)
        self.block = CrossAttentionBlock(config.dim, **config.attention)
        self.norm = nn.LayerNorm(config.dim)
        self.to_logits = nn.Linear(config.dim, 1)

    def forward(self, points: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """points (B, Q, 3), keys and values of the decoder's tokens -> (B, Q)."""
        x = self.proj(self.fourier(points).to(self.proj.weight.dtype))
        return self.to_logits(self.norm(self.block.attend(x, keys, values))).squeeze(-1)


def _bilinear(planes: Tensor, places: Tensor) -> Tensor:
    """planes (P, C, n, n) at places (P, H, W, 2) -> (P, C, H, W); beyond the border its last value."""
    wide = torch.promote_types(planes.dtype, torch.float32)  # half ones would round places to whole texels
    found = F.grid_sample(planes.to(wide), places.to(wide), padding_mode="border", align_corners=False)
    return found.to(planes.dtype)


def lattice_places(points: Tensor, resolution: int, bounds: float) -> Tensor:
    """Points in steps of the lattice, from 0 to resolution - 1."""
    return (points + bounds) * ((resolution - 1) / (2.0 * bounds))
