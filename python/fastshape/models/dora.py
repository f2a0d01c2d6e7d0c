"""Dora-VAE: a shape as a set of latent vectors, encoded from its surface and its sharp edges.

Chen et al.: "Dora: Sampling and Benchmarking for 3D Shape Variational Auto-Encoders", CVPR 2025 (arXiv
2412.17808), its parts on sharp edge sampling and on dual cross-attention.

    surface, sharp (B, N, 6)              points and unit normals, uniform and on sharp edges
    c, s = linear(fourier(surface)), linear'(fourier(sharp))                   (B, N, dim) each
    x = [c at FPS(surface) | s at FPS(sharp)]                                  (B, M, dim), half and half
    x = cross(x, c) + cross'(x, s)        full residual blocks: x itself is added twice
    x = norm(encoder_depth times: x += attention(x); x += feed_forward(x))     encoder
    z ~ N(to_mean(x), exp(to_logvar(x)))                                       bottleneck, (B, M, latent_dim)
    x = from_latent(z); depth times: x += attention(x); x += feed_forward(x)   decoder, (B, M, dim)
    value(q) = to_values(norm(cross(linear(fourier(q)), x)))                   per query point, with residual

The official code starts farthest point sampling at a random point, in evaluation too; here the start is point
0 of each stream unless asked otherwise. It draws the number of tokens from a table and takes 2048 in
evaluation; here any number does. It orders attention's rows head by head as [q | k | v]; here queries, keys
and values are apart, and `from_official` permutes the rows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastshape.models.field import (
    Context,
    FieldAutoencoder,
    FieldOutput,
    require_cloud,
    require_points,
    require_tokens,
    sample_rows,
)
from fastshape.models.pretrained import ModelConfig
from fastshape.nn import (
    CrossAttentionBlock,
    FourierEmbed,
    Generators,
    KLBottleneck,
    Posterior,
    SelfAttentionBlock,
)


@dataclass(frozen=True)
class DoraConfig(ModelConfig):
    """Sizes of a `DoraVAE`; the defaults are version 1.1.

    Attributes:
        dim: width of the tokens.
        heads: heads of every attention, dim / heads channels each.
        encoder_depth: self-attention layers of the encoder.
        depth: self-attention layers of the decoder.
        latent_dim: channels of the KL bottleneck.
        num_latents: tokens per shape, half of them from each stream, and the default of `encode`; no
            parameter depends on it.
        num_inputs: points per stream in training; no parameter depends on it.
        point_features: channels beside the coordinates of an input point: 3 for its normal.
        num_frequencies: of the Fourier features.
        include_pi: whether these frequencies are multiplied by pi.
        qkv_bias: biases of queries, keys and values.
        encoder_norm: a LayerNorm behind the encoder's self-attention.
        output: what `query` returns: "tsdf", the signed distance divided by `truncation` and cut at -1 and 1
            (version 1.1), or "occupancy" logits (version 1.0). Both are positive inside.
        truncation: the distance at which the field saturates; used with "tsdf".
        init_scale: linear layers of the blocks start as N(0, init_scale^2 / dim).
    """

    dim: int = 768
    heads: int = 12
    encoder_depth: int = 8
    depth: int = 16
    latent_dim: int = 64
    num_latents: int = 2048
    num_inputs: int = 32768
    point_features: int = 3
    num_frequencies: int = 8
    include_pi: bool = False
    qkv_bias: bool = False
    encoder_norm: bool = True
    output: str = "tsdf"
    truncation: float = 0.015
    init_scale: float = 0.25

    def __post_init__(self) -> None:
        for name in ("dim", "heads", "latent_dim", "num_latents", "num_inputs", "num_frequencies"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        for name in ("encoder_depth", "depth", "point_features", "init_scale"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ValueError(f"`heads` must divide `dim`, got {self.heads} and {self.dim}")
        if self.output not in ("tsdf", "occupancy"):
            raise ValueError(f"`output` must be 'tsdf' or 'occupancy', got {self.output!r}")
        if self.truncation <= 0:
            raise ValueError(f"`truncation` must be positive, got {self.truncation}")

    @property
    def block(self) -> dict[str, Any]:
        """The options of every attention block."""
        head_dim = self.dim // self.heads
        return {"heads": self.heads, "head_dim": head_dim, "gated": False, "qkv_bias": self.qkv_bias}


class Encoder(nn.Module):
    """Tokens of two streams of points: dual cross-attention."""

    def __init__(self, config: DoraConfig) -> None:
        super().__init__()
        self.embed = FourierEmbed(config.num_frequencies, include_pi=config.include_pi)
        width = self.embed.dim + config.point_features
        self.surface_proj = nn.Linear(width, config.dim)
        self.sharp_proj = nn.Linear(width, config.dim)
        self.surface_block = CrossAttentionBlock(config.dim, **config.block)
        self.sharp_block = CrossAttentionBlock(config.dim, **config.block)
        self.layers = nn.ModuleList(
            SelfAttentionBlock(config.dim, **config.block) for _ in range(config.encoder_depth)
        )
        self.norm = nn.LayerNorm(config.dim) if config.encoder_norm else nn.Identity()

    def project(self, points: Tensor, proj: nn.Linear) -> Tensor:
        """points (B, N, 3 + point_features) -> (B, N, dim)."""
        features = torch.cat([self.embed(points[..., :3]), points[..., 3:]], dim=-1)
        return proj(features.to(proj.weight.dtype))

    def forward(self, samples: Tensor, surface: Tensor, sharp: Tensor) -> Tensor:
        """samples (B, M, dim), surface (B, N, dim), sharp (B, S, dim) -> (B, M, dim)."""
        x = self.surface_block(samples, surface) + self.sharp_block(samples, sharp)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Head(nn.Module):
    """The field. Unlike 3DShape2VecSet's, the query's embedding is added to the answer."""

    def __init__(self, config: DoraConfig) -> None:
        super().__init__()
        self.embed = FourierEmbed(config.num_frequencies, include_pi=config.include_pi)
        self.query_proj = nn.Linear(self.embed.dim, config.dim)
        self.block = CrossAttentionBlock(config.dim, **config.block)
        self.norm = nn.LayerNorm(config.dim)
        self.to_values = nn.Linear(config.dim, 1)

    def forward(self, points: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """points (B, Q, 3), keys and values of the decoded tokens -> values (B, Q)."""
        queries = self.query_proj(self.embed(points).to(self.query_proj.weight.dtype))
        return self.to_values(self.norm(self.block.attend(queries, keys, values))).squeeze(-1)


class DoraVAE(FieldAutoencoder):
    """The Dora variational autoencoder.

    `query` returns the truncated signed distance over its truncation with the OPPOSITE sign of an sdf, or
    occupancy logits, as the configuration says; both are positive inside with the surface at 0. Nothing cuts
    the first at -1 and 1.

    Example:
        >>> model = DoraVAE(DoraVAE.configs["v1.1"]).eval()
        >>> latents = model.encode(surface, sharp).mode()         # (B, N, 6), (B, S, 6) -> (B, 2048, 64)
        >>> values = model.query(queries, model.decode(latents))  # queries (B, Q, 3) -> (B, Q)
    """

    Config = DoraConfig
    configs: ClassVar[Mapping[str, DoraConfig]] = MappingProxyType(
        {"v1.1": DoraConfig(), "v1.0": DoraConfig(output="occupancy")}
    )
    inputs = ("surface", "sharp")
    bounds = 1.05  # its shapes are a shell around a mesh that fills [-1, 1]^3, and its queries go as far

    config: DoraConfig

    def __init__(self, config: DoraConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.bottleneck = KLBottleneck(config.dim, config.latent_dim)
        self.layers = nn.ModuleList(
            SelfAttentionBlock(config.dim, **config.block) for _ in range(config.depth)
        )
        self.head = Head(config)
        for module in self.modules():
            if isinstance(module, (CrossAttentionBlock, SelfAttentionBlock)):
                module.apply(self._initialize)

    @property
    def input_channels(self) -> int:
        """Channels of each input point."""
        return 3 + self.config.point_features

    def encode(
        self,
        surface: Tensor,
        sharp: Tensor,
        *,
        num_latents: int | None = None,
        start: int | Tensor | str = 0,
        generator: torch.Generator | None = None,
    ) -> Posterior:
        """Encodes surface points and points on sharp edges.

        Args:
            surface: (B, N, 6) float32, coordinates in [-1, 1] and unit normals, any N >= 1.
            sharp: (B, S, 6), the same on sharp edges, any S >= 1; `geometry.sample_sharp_edges` has a rule
                for meshes without any.
            num_latents: tokens M, half of them from each stream (of an odd number the surface has one more);
                None is the configuration's. Any number from 2 works, whatever the training used.
            start: the first point of farthest point sampling in each stream: an index, (B,) indices, or
                "random".
            generator: used by start="random".

        Returns:
            Posterior over latents (B, M, latent_dim), the surface's tokens first.

        Raises:
            ValueError: the shape of `surface` or `sharp`, an empty stream, or fewer than 2 tokens.
        """
        for name, points in (("surface", surface), ("sharp", sharp)):
            require_cloud(points, name, self.input_channels)
        if surface.shape[0] != sharp.shape[0]:
            raise ValueError(
                f"`surface` and `sharp` must agree on B, got {tuple(surface.shape)} and {tuple(sharp.shape)}"
            )
        count = self._checked_count(num_latents)
        if count < 2:
            raise ValueError(f"`num_latents` must be at least 2, a token of each stream, got {count}")

        c = self.encoder.project(surface, self.encoder.surface_proj)  # (B, N, dim)
        s = self.encoder.project(sharp, self.encoder.sharp_proj)  # (B, S, dim)
        samples = [
            sample_rows(c, surface, (count + 1) // 2, start, generator),
            sample_rows(s, sharp, count // 2, start, generator),
        ]
        return self.bottleneck(self.encoder(torch.cat(samples, dim=1), c, s))

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, M, latent_dim) -> features (B, M, dim): all of the self-attention, once per shape."""
        require_tokens(latents, "latents", self.config.latent_dim)
        x = self.bottleneck.from_latent(latents)
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(
        self,
        surface: Tensor,
        sharp: Tensor,
        queries: Tensor,
        *,
        sample: bool | None = None,
        num_latents: int | None = None,
        generator: Generators | None = None,
        start: int | Tensor | str = 0,
    ) -> FieldOutput:
        """One training pass: encode, sample the posterior, decode, query in one unpadded piece.

        Args:
            surface, sharp, num_latents, start: as in `encode`.
            queries: (B, Q, 3).
            sample: draw the latents from the posterior (True) or take its mode (False); None: draw in
                training only.
            generator: draws the posterior's noise: one, or one for each of the B shapes.

        Returns:
            Values (B, Q), positive inside, and the posterior.
        """
        require_points(queries, "queries")
        one = generator if isinstance(generator, torch.Generator) else None
        posterior = self.encode(surface, sharp, num_latents=num_latents, start=start, generator=one)
        return self._pass(posterior, queries, sample, generator)

    @classmethod
    def from_official(
        cls, source: str | os.PathLike[str] | Mapping[str, Tensor], config: DoraConfig | None = None
    ) -> DoraVAE:
        """Loads a checkpoint of the official repository: see `fastshape.checkpoints.dora.load`."""
        from fastshape.checkpoints import dora

        return dora.load(source, config)

    def _prepare(self, levels: Sequence[Tensor]) -> Context:
        return (self.head.block.keys_values(levels[0]),)

    def _field(self, points: Tensor, context: Context) -> Tensor:
        return self.head(points, *context[0])

    def _query_width(self) -> tuple[int, int]:
        return self.config.dim, self.config.heads

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.init_scale * self.config.dim**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
