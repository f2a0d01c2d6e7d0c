"""The structure autoencoder of TRELLIS: which voxels of a coarse grid a shape touches, as a small volume.

Xiang et al.: "Structured 3D Latents for Scalable and Versatile 3D Generation", CVPR 2025 (arXiv 2412.01506),
its part on the sparse structure; the layers are those of its code.

    occupancy (B, 1, R, R, R)                 1 where a voxel touches the surface, else 0; axes x, y, z
    h = conv(occupancy); per level: residual blocks, then half the resolution; middle residual blocks
    mean, logvar = conv(silu(norm(h)))                                      (B, latent, R/4, R/4, R/4) each
    z ~ N(mean, exp(logvar))
    logits = the same backwards, up by convolution and pixel shuffle        (B, 1, R, R, R), > 0: occupied

The decoder is the encoder's mirror image. The log variance is not clamped, as in the official code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastshape import ops
from fastshape.models.pretrained import ModelConfig, PretrainedModel
from fastshape.nn import (
    ChannelNorm3d,
    Downsample3d,
    Generators,
    GroupNorm3d,
    Posterior,
    ResBlock3d,
    Upsample3d,
)

if TYPE_CHECKING:
    from fastshape.geometry import Mesh


@dataclass(frozen=True)
class SparseStructureConfig(ModelConfig):
    """Sizes of a `SparseStructureVAE`; the defaults are the published model.

    Attributes:
        resolution: voxels along an axis, of the data; no parameter depends on it.
        channels: of each level of the encoder, the finest first; each further level halves the resolution.
        latent_channels: of the latent volume.
        num_res_blocks: residual blocks of each level, in the encoder and in the decoder.
        num_res_blocks_middle: residual blocks at the coarsest resolution, beside those of its level.
        norm: before each last convolution: "layer", over channels, or "group", which needs multiples of 32.
    """

    resolution: int = 64
    channels: tuple[int, ...] = (32, 128, 512)
    latent_channels: int = 8
    num_res_blocks: int = 2
    num_res_blocks_middle: int = 2
    norm: str = "layer"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # JSON has lists
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"`channels` must have a positive number for each level, got {self.channels}")
        for name in ("resolution", "latent_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        for name in ("num_res_blocks", "num_res_blocks_middle"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        if self.norm not in ("layer", "group"):
            raise ValueError(f"`norm` must be 'layer' or 'group', got {self.norm!r}")
        if self.norm == "group" and (self.channels[0] % 32 or self.channels[-1] % 32):
            raise ValueError(f"`norm` 'group' needs `channels` in multiples of 32, got {self.channels}")
        if self.resolution % self.factor:
            raise ValueError(
                f"`resolution` must be a multiple of {self.factor} for {len(self.channels)} levels, "
                f"got {self.resolution}"
            )

    @property
    def factor(self) -> int:
        """How many voxels along an axis share a latent."""
        return 2 ** (len(self.channels) - 1)


class StructureOutput(NamedTuple):
    """What `forward` returns: occupancy logits (B, 1, X, Y, Z), and the posterior."""

    logits: Tensor
    posterior: Posterior


def _last(channels: int, out_channels: int, norm: str) -> nn.Sequential:
    kind = ChannelNorm3d if norm == "layer" else GroupNorm3d
    return nn.Sequential(kind(channels), nn.SiLU(), nn.Conv3d(channels, out_channels, 3, padding=1))


def _res_blocks(channels: int, count: int) -> list[nn.Module]:
    return [ResBlock3d(channels) for _ in range(count)]


class StructureEncoder(nn.Module):
    """Occupancy to the moments of the latents."""

    def __init__(self, config: SparseStructureConfig) -> None:
        super().__init__()
        widths = config.channels
        self.input_layer = nn.Conv3d(1, widths[0], 3, padding=1)
        blocks: list[nn.Module] = []
        for level, width in enumerate(widths):
            blocks += _res_blocks(width, config.num_res_blocks)
            if level + 1 < len(widths):
                blocks.append(Downsample3d(width, widths[level + 1]))
        self.blocks = nn.ModuleList(blocks)
        self.middle_block = nn.Sequential(*_res_blocks(widths[-1], config.num_res_blocks_middle))
        self.out_layer = _last(widths[-1], 2 * config.latent_channels, config.norm)

    def forward(self, occupancy: Tensor) -> Tensor:
        """occupancy (B, 1, X, Y, Z) -> (B, 2 * latent_channels, X / factor, Y / factor, Z / factor)."""
        x = self.input_layer(occupancy)
        for block in self.blocks:
            x = block(x)
        return self.out_layer(self.middle_block(x))


class StructureDecoder(nn.Module):
    """Latents to occupancy logits."""

    def __init__(self, config: SparseStructureConfig) -> None:
        super().__init__()
        widths = config.channels[::-1]
        self.input_layer = nn.Conv3d(config.latent_channels, widths[0], 3, padding=1)
        self.middle_block = nn.Sequential(*_res_blocks(widths[0], config.num_res_blocks_middle))
        blocks: list[nn.Module] = []
        for level, width in enumerate(widths):
            blocks += _res_blocks(width, config.num_res_blocks)
            if level + 1 < len(widths):
                blocks.append(Upsample3d(width, widths[level + 1]))
        self.blocks = nn.ModuleList(blocks)
        self.out_layer = _last(widths[-1], 1, config.norm)

    def forward(self, latents: Tensor) -> Tensor:
        """latents (B, latent_channels, x, y, z) -> logits (B, 1, factor x, factor y, factor z)."""
        x = self.middle_block(self.input_layer(latents))
        for block in self.blocks:
            x = block(x)
        return self.out_layer(x)


class SparseStructureVAE(PretrainedModel):
    """Occupied voxels to a small latent volume and back.

    `encode` takes the occupancy itself, not points; `decode` gives its logits, positive where a voxel is
    occupied. Both are convolutions: any resolution works that is a multiple of `config.factor`.

    Example:
        >>> model = SparseStructureVAE(SparseStructureVAE.Config()).eval()
        >>> voxels = ops.voxelize_mesh(vertices, faces, 64, (-1.0, 1.0))     # (N, 3)
        >>> latents = model.encode(model.occupancy([voxels])).mode()         # (1, 8, 16, 16, 16)
        >>> occupied = model.coords(model.decode(latents))                   # (M, 4): 0, x, y, z
    """

    Config = SparseStructureConfig
    configs: ClassVar[Mapping[str, SparseStructureConfig]] = MappingProxyType(
        {"trellis": SparseStructureConfig()}
    )

    bounds: ClassVar[float] = 1.0
    """Half side of the cube that the voxels fill; TRELLIS' own is 0.5, which no parameter knows of."""

    config: SparseStructureConfig

    def __init__(self, config: SparseStructureConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = StructureEncoder(config)
        self.decoder = StructureDecoder(config)

    def occupancy(self, voxels: Any, *, resolution: int | None = None) -> Tensor:
        """Lists of voxels as a dense volume in the parameters' dtype, on their device.

        Args:
            voxels: a sequence of (N_i, 3) integer tensors, x, y, z of each shape.
            resolution: voxels along an axis; None is the configuration's.

        Returns:
            (B, 1, R, R, R), 1 where a voxel is listed and else 0.

        Raises:
            TypeError, ValueError: not integers, a wrong shape, or a voxel out of range.
        """
        size = self.config.resolution if resolution is None else resolution
        parameter = next(self.parameters())
        grid = torch.zeros(len(voxels), 1, size, size, size, dtype=parameter.dtype, device=parameter.device)
        for item, coords in enumerate(voxels):
            require_voxels(coords, f"voxels[{item}]", size)
            x, y, z = coords.to(grid.device).long().unbind(1)
            grid[item, 0, x, y, z] = 1.0
        return grid

    @staticmethod
    def coords(logits: Tensor) -> Tensor:
        """The occupied voxels (N, 4) int32 of logits (B, 1, X, Y, Z): item, x, y, z, in that order."""
        require_volume(logits, "logits", 1)
        return torch.argwhere(logits[:, 0] > 0).int()

    def encode(self, occupancy: Tensor) -> Posterior:
        """The posterior over latents (B, latent_channels, X / factor, Y / factor, Z / factor).

        Args:
            occupancy: (B, 1, X, Y, Z), floating: 1 where a voxel is occupied, else 0.

        Raises:
            ValueError: a wrong shape, or an axis that is not a multiple of `config.factor`.
        """
        require_volume(occupancy, "occupancy", 1)
        if any(size % self.config.factor for size in occupancy.shape[2:]):
            raise ValueError(
                f"`occupancy` must have axes in multiples of {self.config.factor}, "
                f"got {tuple(occupancy.shape)}"
            )
        mean, logvar = self.encoder(occupancy).chunk(2, dim=1)
        return Posterior(mean, logvar)

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, latent_channels, x, y, z) -> logits (B, 1, factor x, factor y, factor z)."""
        require_volume(latents, "latents", self.config.latent_channels)
        return self.decoder(latents)

    def forward(
        self, occupancy: Tensor, *, sample: bool | None = None, generator: Generators | None = None
    ) -> StructureOutput:
        """One training pass: encode, sample the posterior, decode.

        Args:
            occupancy: as in `encode`.
            sample: draw the latents (True) or take the mode (False); None: draw in training only.
            generator: draws the posterior's noise: one, or one for each of the B shapes.
        """
        posterior = self.encode(occupancy)
        sampled = self.training if sample is None else sample
        return StructureOutput(
            self.decode(posterior.sample(generator) if sampled else posterior.mode()), posterior
        )

    @torch.no_grad()
    def extract(self, logits: Tensor, *, fill: bool = True) -> Mesh:
        """The surface around the occupied voxels of one shape, in the cube [-bounds, bounds]^3.

        Marching cubes over the logits at the voxels' centers. What the occupied voxels enclose counts as
        occupied too unless `fill` is False; without it a closed shape has an inner skin beside the outer one.
        The surface lies about half a voxel outside of the one that was voxelized.

        Args:
            logits: (1, 1, X, Y, Z) or (X, Y, Z), of equal axes.
            fill: count what is enclosed as occupied.

        Raises:
            NoSurfaceError: no voxel is occupied.
            ValueError: logits of several shapes, or a wrong shape.
        """
        from fastshape.geometry import Mesh, NoSurfaceError

        volume = logits if logits.dim() == 3 else logits.squeeze(0).squeeze(0)
        if volume.dim() != 3 or len(set(volume.shape)) != 1:
            raise ValueError(
                f"`logits` must be of one shape, (1, 1, R, R, R) or (R, R, R), got {tuple(logits.shape)}"
            )
        if not bool((volume > 0).any()):
            raise NoSurfaceError("no voxel is occupied")
        size = volume.shape[0]
        values = F.pad(-volume.detach().float().clamp(-_CAP, _CAP), (1,) * 6, value=_CAP)
        if fill:
            values = torch.where(interior(values < 0), -_CAP, values)
        vertices, faces = ops.marching_cubes(values.contiguous())
        # Entry i of the padded volume is the center of voxel i - 1.
        places = (vertices - 0.5) * (2.0 * self.bounds / size) - self.bounds
        return Mesh(places.cpu(), faces.cpu())

    @classmethod
    def from_official(
        cls,
        encoder: str | os.PathLike[str] | Mapping[str, Tensor],
        decoder: str | os.PathLike[str] | Mapping[str, Tensor],
        config: SparseStructureConfig | None = None,
    ) -> SparseStructureVAE:
        """Loads the two official checkpoints: see `fastshape.checkpoints.structure.load`."""
        from fastshape.checkpoints import structure

        return structure.load(encoder, decoder, config)


_CAP = 10.0  # logits beyond it say the same, and would draw the surface's vertices to the voxels' centers


def interior(solid: Tensor) -> Tensor:
    """The voxels (X, Y, Z) bool that are not solid and that nothing outside reaches over faces."""
    empty = (~solid).flatten().nonzero()[:, 0]
    filled = solid.flatten().nonzero()[:, 0]
    reached = ops.flood_fill(empty, filled, shape=tuple(solid.shape), solid_is_sorted=True)  # type: ignore[arg-type]
    inner = torch.zeros(solid.numel(), dtype=torch.bool, device=solid.device)
    inner[empty[~reached]] = True
    return inner.view(solid.shape)


def require_volume(volume: Tensor, name: str, channels: int) -> None:
    """TypeError or ValueError unless `volume` is a tensor (B, channels, X, Y, Z)."""
    if not isinstance(volume, Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(volume).__name__}")
    if volume.dim() != 5 or volume.shape[1] != channels:
        raise ValueError(f"`{name}` must have shape (B, {channels}, X, Y, Z), got {tuple(volume.shape)}")


def require_voxels(coords: Tensor, name: str, resolution: int) -> None:
    """TypeError or ValueError unless `coords` is an integer tensor (N, 3) in [0, resolution)."""
    if not isinstance(coords, Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(coords).__name__}")
    if coords.is_floating_point() or coords.dtype == torch.bool:
        raise TypeError(f"`{name}` must hold integers, got {coords.dtype}")
    if coords.dim() != 2 or coords.shape[1] != 3:
        raise ValueError(f"`{name}` must have shape (N, 3), got {tuple(coords.shape)}")
    if len(coords) and not (int(coords.min()) >= 0 and int(coords.max()) < resolution):
        raise ValueError(
            f"`{name}` must lie in [0, {resolution}), "
            f"got coordinates from {int(coords.min())} to {int(coords.max())}"
        )
