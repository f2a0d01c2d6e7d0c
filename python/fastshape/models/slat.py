"""The structured latents of TRELLIS: pictures of a shape as latents of its voxels, and its mesh from these.

Xiang et al.: "Structured 3D Latents for Scalable and Versatile 3D Generation", CVPR 2025 (arXiv 2412.01506);
its encoder and its mesh decoder, the layers those of its code.

    features (V, 1024)                   of each occupied voxel the mean of what pictures show of it; 64^3
    x = linear(features) + embed(voxel); depth times: window attention, feed-forward
    z ~ N(to_mean(norm(x)), exp(to_logvar(norm(x))))                               (V, latent_channels)
    x = linear(z) + embed(voxel); depth times the same; twice: voxels to their eight children
    distance, deformation, weights and colors of each fine voxel (101 numbers), and FlexiCubes over the grid

The transformers are those of TripoSF. Nothing is pruned; what is no voxel is outside: surfaces are closed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from fastshape.models.pretrained import ModelConfig, PretrainedModel
from fastshape.models.triposf import SparseFlexDecoder, SparseLatentEncoder, SparsePosterior, surface_mesh
from fastshape.nn import Generators
from fastshape.nn.sparse_tensor import SparseTensor
from fastshape.nn.sparseflex import (
    COLOR_CHANNELS,
    SHAPE_CHANNELS,
    SparseFlexSurface,
    sparseflex_surface,
)

if TYPE_CHECKING:
    from fastshape.geometry import Mesh

_UPSAMPLING = 4


@dataclass(frozen=True)
class SLatConfig(ModelConfig):
    """Sizes of a `SLatVAE`; the defaults are the published model.

    Attributes:
        resolution: voxels along an axis; a surface has four times as many.
        feature_dim: channels of a voxel's features; 1024 of DINOv2 L.
        dim, depth, heads, ratio, window, latent_channels, groups, qk_norm: as of `TripoSFConfig`.
        colors: whether a fine voxel has colors.
    """

    resolution: int = 64
    feature_dim: int = 1024
    dim: int = 768
    depth: int = 12
    heads: int = 12
    ratio: float = 4.0
    window: int = 8
    latent_channels: int = 8
    groups: int = 32
    qk_norm: bool = False
    colors: bool = True

    def __post_init__(self) -> None:
        for name in ("resolution", "feature_dim", "heads", "window", "latent_channels", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.depth < 0:
            raise ValueError(f"`depth` must not be negative, got {self.depth}")
        if self.dim < 6 or self.dim % self.heads:
            raise ValueError(f"`heads` must divide `dim` of at least 6, got {self.heads} and {self.dim}")


class SLatOutput(NamedTuple):
    """What `forward` returns: the fine voxels, and the posterior."""

    fine: SparseTensor
    posterior: SparsePosterior


class SLatVAE(PretrainedModel):
    """TRELLIS' structured latents with its mesh decoder.

    Example:
        >>> model = SLatVAE(SLatVAE.Config()).eval()
        >>> features = ops.project_features(pictures, matrices, centers)       # (V, 1024), of a picture model
        >>> latents = model.encode(SparseTensor(voxels, features)).mode()
        >>> mesh = model.extract(model.decode(latents))
    """

    Config = SLatConfig
    configs: ClassVar[Mapping[str, SLatConfig]] = MappingProxyType({"64": SLatConfig()})

    bounds: ClassVar[float] = 0.5
    """Half side of the cube that the voxels fill."""

    config: SLatConfig

    def __init__(self, config: SLatConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SparseLatentEncoder(config)
        channels = SHAPE_CHANNELS + (COLOR_CHANNELS if config.colors else 0)
        self.decoder = SparseFlexDecoder(config, prunes=False, out_channels=channels)

    def encode(self, features: SparseTensor) -> SparsePosterior:
        """Voxels with feature_dim channels -> the posterior over their latents.

        Raises:
            TypeError, ValueError: not a SparseTensor, or other channels.
        """
        _require(features, "features", self.config.feature_dim)
        return self.encoder.moments(features)

    def decode(self, latents: SparseTensor) -> SparseTensor:
        """Voxels with latent_channels -> voxels four times as fine with 101 channels, or 53 without colors.

        Raises:
            TypeError, ValueError: not a SparseTensor, or other channels.
        """
        _require(latents, "latents", self.config.latent_channels)
        return self.decoder.subdivide(self.decoder(latents))[0]

    def surface(self, fine: SparseTensor, *, training: bool = False) -> SparseFlexSurface:
        """The surface of what was decoded of one item, with gradients; see `nn.sparseflex_surface`."""
        return sparseflex_surface(
            fine,
            _UPSAMPLING * self.config.resolution,
            bounds=self.bounds,
            scaled=False,
            closed=True,
            training=training,
        )

    @torch.no_grad()
    def extract(self, fine: SparseTensor) -> Mesh:
        """The surface of one item as a mesh in [-0.5, 0.5]^3, without its colors.

        Raises:
            NoSurfaceError: no quad.
            ValueError: several items.
        """
        return surface_mesh(self.surface(fine))

    def forward(
        self, features: SparseTensor, *, sample: bool | None = None, generator: Generators | None = None
    ) -> SLatOutput:
        """One training pass: encode, sample the posterior, decode.

        Args:
            features: as in `encode`.
            sample: draw the latents (True) or take the mode (False); None: draw in training only.
            generator: draws the posterior's noise.
        """
        posterior = self.encode(features)
        sampled = self.training if sample is None else sample
        return SLatOutput(
            self.decode(posterior.sample(generator) if sampled else posterior.mode()), posterior
        )

    @classmethod
    def from_official(
        cls,
        encoder: str | os.PathLike[str] | Mapping[str, Tensor],
        decoder: str | os.PathLike[str] | Mapping[str, Tensor],
        config: SLatConfig | None = None,
    ) -> SLatVAE:
        """Loads the two official checkpoints: see `fastshape.checkpoints.slat.load`."""
        from fastshape.checkpoints import slat

        return slat.load(encoder, decoder, config)


def _require(x: SparseTensor, name: str, channels: int) -> None:
    if not isinstance(x, SparseTensor):
        raise TypeError(f"`{name}` must be a SparseTensor, got {type(x).__name__}")
    if x.num_channels != channels:
        raise ValueError(f"`{name}` must have {channels} channels, got {x.num_channels}")
